"""How far a tokenizing job has come: what `<prefix>.progress.json` holds, from which an interrupted one goes on."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from megatron_sky.data.ingest.encode import EncodedBlock
from megatron_sky.data.ingest.inputs import Block
from megatron_sky.files import read_json, write_json


@dataclass
class Progress:
    """What was done, and the counts of it.

    Attributes:
        fingerprint: of all that decides the output; another run's progress is not gone on with.
        blocks: blocks written.
        lines: lines read of the file that is being read, `path`; of the job's first file, from where the job begins.
        empty: documents without a token, for each key.
        encoded: all blocks are written; what is left is to put the files in place and describe them.
    """

    fingerprint: str
    blocks: int = 0
    path: str = ""
    lines: int = 0
    read: int = 0
    empty: list[int] = field(default_factory=list)
    blank: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    hashes: dict[str, list[str]] = field(default_factory=dict)
    writers: list[dict] = field(default_factory=list)
    rejects_size: int = 0
    encoded: bool = False

    @classmethod
    def load(cls, path: Path, fingerprint: str) -> "Progress | None":
        """That of the job with this fingerprint; None where there is none."""
        try:
            saved = cls(**read_json(path))
        except (FileNotFoundError, ValueError, TypeError):
            return None
        return saved if saved.fingerprint == fingerprint else None

    def save(self, path: Path) -> None:
        write_json(path, asdict(self), indent=None, sync=True)

    def begin(self, block: Block) -> None:
        if self.path != block.path:
            self.path, self.lines = block.path, 0

    def add(self, block: Block, encoded: EncodedBlock) -> None:
        """Count a block, or a part of one, whose documents are written and whose rejects are counted."""
        self.blocks += block.ends_block
        self.lines += encoded.lines
        self.read += encoded.documents + len(encoded.rejects)
        self.empty = [before + now for before, now in zip(self.empty, encoded.empty, strict=True)]
        self.blank += encoded.blank
        self.notes = dict(Counter(self.notes) + encoded.notes)
        if encoded.source_xxh3:
            self.hashes.setdefault(block.path, []).append(encoded.source_xxh3)
