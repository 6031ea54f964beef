"""What our datatrove steps share: a stage that judges documents and keeps the account, and the files between passes.

datatrove's own readers and filters pass over what they can't use with a line in a log; here each document is counted.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter

from megatron_sky.corpus.ledger import Accounts, StageAccount, dropped_part, num_done, write_part
from megatron_sky.corpus.skips import RULE
from megatron_sky.errors import RunError
from megatron_sky.files import replacing

DOCUMENTS = "${rank}.jsonl.zst"
_KEPT_CHARACTERS = 20_000  # of a dropped document
FROM_READER = "_size"
"""In a document's metadata: the bytes of what it was made from, where its text is not that."""


def size_of(document: Document) -> int:
    """UTF-8 bytes of a text."""
    return len(document.text.encode("utf-8", "surrogatepass"))


def save_array(path: Path, table: np.ndarray) -> None:
    """Writes `table` as a .npy file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        np.save(file, table)


class UnitWriter(JsonlWriter):
    """`<folder>/<rank>.jsonl.zst`, there also where a unit has no documents, and emptied when a task begins again."""

    def __init__(self, folder: Path, filename: str = DOCUMENTS):
        super().__init__(str(folder), output_filename=filename, compression="zstd")

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.output_mg.get_file(self.output_filename.substitute(rank=str(rank).zfill(5)))
        yield from super().run(data, rank, world_size)


class UnitReader(JsonlReader):
    """The documents that a pass has written for the unit of this task's number."""

    def __init__(self, folder: Path):
        super().__init__(str(folder), compression="zstd", add_file_path=False)
        self.skipped: frozenset[int] = frozenset()  # units that are not read

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        assert data is None
        if rank in self.skipped:
            return
        yield from self.read_files_shard([f"{rank:05d}.jsonl.zst"])


class Stage(PipelineStep):
    """A step that judges each document: goes on (perhaps changed), or is dropped by a rule's name."""

    type = "🔻 - FILTER"

    def __init__(self, stage: str, folder: Path, *, keep_dropped: bool):
        self.name = self.stage = stage
        super().__init__()
        self.folder, self.keep_dropped = folder, keep_dropped
        self.skipped: frozenset[int] = frozenset()  # units whose documents, which `before` gave on, were not read
        self.before = ""
        self._accounts: Accounts = {}

    @abstractmethod
    def judge(self, document: Document) -> str | None:
        """The rule by which the document is dropped; None: it goes on."""

    def begin(self, rank: int) -> None:
        """What a task needs before its first document."""

    def account_of(self, document: Document) -> StageAccount:
        return self.account(str(document.metadata["source"]))

    def account(self, source: str) -> StageAccount:
        return self._accounts.setdefault(source, StageAccount())

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self._accounts = dropped_part(self.folder, self.before, rank, RULE) if rank in self.skipped else {}
        self.begin(rank)
        dropped = JsonlWriter(str(self.folder / "dropped" / self.stage), DOCUMENTS, compression="zstd")
        with dropped:
            if self.keep_dropped:
                dropped.output_mg.get_file(f"{rank:05d}.jsonl.zst")
            for document in data:
                with self.track_time():
                    account, size = self.account_of(document), self.size_before(document)
                    account.take(size)
                    rule = self._judge(document)
                    self.stat_update("total", f"dropped_{rule}" if rule else "forwarded")
                    if rule is None:
                        account.keep(size_of(document))
                    else:
                        account.drop(rule, size)
                        if self.keep_dropped:
                            dropped.write(_excerpt(document, self.stage, rule), rank)
                if rule is None:
                    yield document
        write_part(self.folder, self.stage, rank, self._accounts)

    def _judge(self, document: Document) -> str | None:
        try:
            return self.judge(document)
        except Exception as error:
            error.add_note(f"stage {self.stage}, {document.metadata['file']} at {document.metadata['place']}")
            raise

    def size_before(self, document: Document) -> int:
        return int(document.metadata.pop(FROM_READER, None) or size_of(document))


def _excerpt(document: Document, stage: str, rule: str) -> Document:
    text = document.text[:_KEPT_CHARACTERS].encode("utf-8", "replace").decode()  # JSON has no half of a surrogate pair
    return Document(text, document.id, metadata={**document.metadata, "dropped_by": stage, "rule": rule})


class NotReady(RunError):
    """The pass before is not done."""


class After(PipelineStep):
    """The first step of a pass: all tasks of the pass before are done. Slurm starts an array also where one of the
    arrays that it depends on has failed, when that was one of several."""

    type, name = "⏳ - WAIT", "after"

    def __init__(self, folder: Path, name_before: str, num_tasks: int):
        super().__init__()
        self.folder, self.name_before, self.num_tasks = folder, name_before, num_tasks

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]  # gives nothing on
        done = num_done(self.folder, self.name_before)
        if done < self.num_tasks:
            fix = "look at its log files, then give the same command again to go on"
            raise NotReady(f"{self.name_before}: {done:,} of {self.num_tasks:,} tasks are done\n  fix: {fix}")
