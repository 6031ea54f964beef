"""How much each pass will write, said before it starts; a build that the disk has no room for is refused.

Before the texts are read their size is estimated from that of the files, afterwards it is known from the account. The
shares are from above: texts of news and exercises took 0.36 bytes of zstd a byte, and a paragraph for each 127.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.corpus.ledger import Amount, num_done, read_stage
from megatron_sky.corpus.plan import Plan
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.errors import RunError

if TYPE_CHECKING:
    from megatron_sky.corpus.passes import Pass

_TEXT = {"warc": 0.25, "wet": 1.0, "html": 0.5, "parquet": 3.0}  # bytes of text in a stored byte; other kinds: 1
_UNPACKED = {"warc": 4.0, "wet": 3.0}  # bytes in a byte that is compressed; other kinds: 4
_PACKED = (".gz", ".bz2", ".xz", ".zst")
_DOCUMENT = 2000  # bytes of text, where it is not known
_ZSTD = 0.5  # of text
_PARAGRAPHS = 8 / 40  # bytes of a hash, and of the shortest paragraph on average
_TOKENS = 1.2  # bytes of tokens in a byte of text


@dataclass(frozen=True)
class DiskNeed:
    """Bytes that a pass will still write."""

    name: str
    bytes: int


def disk_needs(recipe: CorpusRecipe, plan: Plan, passes: "Sequence[Pass]", folder: Path) -> list[DiskNeed]:
    """What each pass that is not done will write, in order, by what is known of the texts now."""
    sources = {source.name: source.kind for source in recipe.sources}
    pieces = [(sources[unit.source], piece) for unit in plan.units for piece in unit.pieces]
    texts = sum((piece.end - piece.start) * _text_share(kind, piece.path) for kind, piece in pieces)
    amount = Amount(int(texts) // _DOCUMENT + 1, int(texts))
    needs, known = [], ""
    for one in passes:
        done = num_done(folder, one.name)
        if done < one.num_tasks:
            if known:
                amount, known = _kept_by(known, folder), ""
            needs.append(DiskNeed(one.name, int(_written(one.name, recipe, amount) * (1 - done / one.num_tasks))))
        elif one.stages:
            known = one.stages[-1]
    return needs


def _kept_by(stage: str, folder: Path) -> Amount:
    amount = Amount()
    for account in read_stage(folder, stage).values():
        amount.add(account.kept)
    return amount


def _text_share(kind: str, path: str) -> float:
    return _TEXT.get(kind, 1.0) * (_UNPACKED.get(kind, 4.0) if path.endswith(_PACKED) else 1.0)


def _written(name: str, recipe: CorpusRecipe, amount: Amount) -> float:
    near = recipe.duplicates.near
    signature = near.num_buckets * (8 * near.hashes_per_bucket + 4) + 21 if near.enabled else 0
    shares = {"read": _ZSTD, "paragraphs": _PARAGRAPHS, "clean": _ZSTD, "finish": _ZSTD, "tokenize": _TOKENS}
    shares |= {"recurrence": _PARAGRAPHS / (recipe.recurrence.max_documents + 1)}
    entries = {"read": 42, "copies": 18, "clean": signature, "buckets": 32, "clusters": 32, "tokenize": 20}
    return shares.get(name, 0) * amount.bytes + entries.get(name, 0) * amount.documents


def check_disk(needs: Sequence[DiskNeed], folder: Path, *, refuse: bool) -> str:
    """What is needed and free, in a line. Raises RunError where more is needed than is free, and that is refused."""
    total, free = sum(need.bytes for need in needs), shutil.disk_usage(folder).free
    parts = ", ".join(f"{need.name} {_shown(need.bytes)}" for need in needs if need.bytes)
    line = f"disk: about {_shown(total)} ({parts or 'nothing'}); {_shown(free)} are free"
    if total > free and refuse:
        fix = "free some, build elsewhere with out=FOLDER, or give execution.check_disk=false if you know it takes less"
        raise RunError(f"{folder}: there is not enough space\n  {line}\n  fix: {fix}")
    return line


def _shown(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
