"""The distribution filter: in how many documents of the whole corpus each paragraph is; what is in too many is cut.

Paragraphs are 64-bit hashes in files by partition. A partition is counted in pieces by hash that fit into memory, so
memory does not grow with the corpus. What recurs too often is a sorted array for each partition, which the last pass
maps into memory. Paragraphs are told apart by their letters and digits: a date within a footer makes another paragraph.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from megatron_sky.corpus.grams import hash_text, tokens_of
from megatron_sky.corpus.read import PAIR
from megatron_sky.corpus.recipe import RecurrenceConfig
from megatron_sky.corpus.stage import Stage, save_array

_WHOLE = ("code", PAIR)  # from which nothing is cut
_HELD = 1 << 17  # hashes of one partition in memory, until they are written
COUNTED_AT_ONCE = 1 << 25
"""Hashes that are sorted at a time: 256 MiB."""
_READ = 1 << 22  # hashes read at a time


def paragraph_key(paragraph: str) -> int | None:
    """Of its letters and digits; None where it has none."""
    tokens = tokens_of(paragraph)
    return hash_text(" ".join(tokens)) if tokens else None


def counted(paragraph: str, config: RecurrenceConfig) -> bool:
    return len(paragraph.strip()) >= config.min_characters


class WriteParagraphs(PipelineStep):
    """Writes each document's different paragraphs as hashes, `<folder>/<partition>/<rank>.u64`."""

    type, name = "🫂 - DEDUP", "paragraphs"

    def __init__(self, folder: Path, config: RecurrenceConfig):
        super().__init__()
        self.folder, self.config = folder, config

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        num_partitions = self.config.partitions
        held: list[list[int]] = [[] for _ in range(num_partitions)]
        files = [_open(self.folder, partition, rank) for partition in range(num_partitions)]
        try:
            for document in data:
                lines = document.text.split("\n")
                keys = {paragraph_key(line) for line in lines if counted(line, self.config)} - {None}
                for key in keys:
                    assert key is not None
                    held[key % num_partitions].append(key)
                    if len(held[key % num_partitions]) == _HELD:
                        _write(files[key % num_partitions], held[key % num_partitions])
            for file, keys_held in zip(files, held, strict=True):
                _write(file, keys_held)
        finally:
            for file in files:
                file.close()
        yield from ()


def _open(folder: Path, partition: int, rank: int) -> BinaryIO:
    place = folder / f"{partition:05d}"
    place.mkdir(parents=True, exist_ok=True)
    return open(place / f"{rank:05d}.u64", "wb")


def _write(file: BinaryIO, keys: list[int]) -> None:
    file.write(np.array(keys, dtype="<u8").tobytes())
    keys.clear()


class CountParagraphs(PipelineStep):
    """Task p counts partition p: the hashes of more documents than the limit, sorted, in `<out>/<p>.npy`."""

    type, name = "🫂 - DEDUP", "recurrence counts"

    def __init__(self, folder: Path, out: Path, config: RecurrenceConfig, at_once: int = COUNTED_AT_ONCE):
        super().__init__()
        self.folder, self.out, self.config, self.at_once = folder, out, config, at_once

    def run(self, data: None, rank: int = 0, world_size: int = 1) -> None:  # type: ignore[override]  # gives nothing on
        paths = sorted((self.folder / f"{rank:05d}").glob("*.u64"))
        total = sum(path.stat().st_size for path in paths) // 8
        num_pieces = max(1, -(-total // self.at_once))
        frequent = [self._frequent(paths, piece, num_pieces) for piece in range(num_pieces)]
        save_array(self.out / f"{rank:05d}.npy", np.sort(np.concatenate(frequent)))

    def _frequent(self, paths: list[Path], piece: int, num_pieces: int) -> np.ndarray:
        """Of the hashes that fall to this piece, those that come too often."""
        parts = [np.empty(0, dtype="<u8")]
        for path in paths:
            for start in range(0, path.stat().st_size // 8, _READ):
                keys = np.fromfile(path, dtype="<u8", count=_READ, offset=8 * start)
                parts.append(keys[(keys >> np.uint64(40)) % np.uint64(num_pieces) == piece])
        keys, counts = np.unique(np.concatenate(parts), return_counts=True)
        return keys[counts > self.config.max_documents]


class CutParagraphs(Stage):
    """Cuts the paragraphs that recur too often; drops documents of which too little is left."""

    def __init__(self, folder: Path, counts: Path, config: RecurrenceConfig, keep: bool):
        super().__init__("recurrence", folder, keep_dropped=keep)
        self.counts, self.config = counts, config
        self._frequent: list[np.ndarray] = []

    def begin(self, rank: int) -> None:
        paths = [self.counts / f"{partition:05d}.npy" for partition in range(self.config.partitions)]
        self._frequent = [np.load(path, mmap_mode="r") for path in paths]

    def judge(self, document: Document) -> str | None:
        if document.metadata.get("language") in _WHOLE:
            return None
        paragraphs = document.text.split("\n")
        kept = [paragraph for paragraph in paragraphs if not self._recurs(paragraph)]
        if len(kept) == len(paragraphs):
            return None
        self.account_of(document).note("cut_paragraphs", len(paragraphs) - len(kept))
        text = "\n".join(kept).strip()
        if len(text) < (1 - self.config.max_cut_share) * len(document.text):
            return "recurrent"
        document.text = text
        return "too_short_after_cut" if len(text) < self.config.min_length else None

    def _recurs(self, paragraph: str) -> bool:
        key = paragraph_key(paragraph) if counted(paragraph, self.config) else None
        if key is None:
            return False
        frequent = self._frequent[key % self.config.partitions]
        place = int(np.searchsorted(frequent, np.uint64(key)))
        return place < frequent.size and int(frequent[place]) == key
