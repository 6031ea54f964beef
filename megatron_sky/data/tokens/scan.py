"""One pass over a pair's tokens: hashes, counts of each id, and whatever else is asked of each block.

Blocks of `HASH_BLOCK` bytes are read in order, a few at once, and hashed on all cores.
"""

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from megatron_sky.data.tokens.indexed import IndexedTokens, bin_path, idx_path
from megatron_sky.data.tokens.meta import (
    HASH_BLOCK,
    DocumentCounts,
    FileCounts,
    FileRecord,
    Meta,
    ShardRecord,
    TokenizerRecord,
    entropy,
)
from megatron_sky.files import hash_range
from megatron_sky.tokenizer.kinds import Tokenizer

LARGEST_COUNTED_ID = 1 << 22  # ids beyond are not counted one by one
_READ_AT_ONCE = 1 << 20  # bytes
_COUNTED_AT_ONCE = 1 << 17  # tokens; numpy makes 8 bytes of each, which should stay in the processor's cache


Places = Callable[[int, int], np.ndarray]
"""Which tokens of those from one number on to before another are asked for: their numbers, int64, in order."""


@dataclass(frozen=True)
class ScannedBlock:
    """One block of a `.bin` file.

    Attributes:
        first: the number of its first token.
        length: its tokens.
        xxh3: hash of its bytes.
        has_negative: whether an id is negative.
        max_id: the largest id, -1 where it has none.
        places, ids: the tokens that were asked for, by number, and their ids.
        counts: how often each id occurs, where that is asked and no id is negative or too large.
    """

    first: int
    length: int
    xxh3: str
    has_negative: bool
    max_id: int
    places: np.ndarray
    ids: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class TokenScan:
    """All of a `.bin` file: XXH3 of each block, how often each id occurs (if counted), the largest id (-1: none)."""

    blocks: tuple[str, ...]
    counts: np.ndarray
    max_id: int


def _no_places(start: int, stop: int) -> np.ndarray:
    return np.empty(0, np.int64)


def scan_blocks(
    path: Path, dtype: np.dtype, *, threads: int | None = None, places: Places = _no_places, count: bool = False
) -> Iterator[ScannedBlock]:
    """The blocks of a `.bin` file in order, a few scanned ahead. `places` is asked for each block in turn."""
    threads = threads or min(8, os.cpu_count() or 1)
    size = path.stat().st_size
    starts = iter(range(0, size, HASH_BLOCK))
    waiting: deque[Future[ScannedBlock]] = deque()
    # Kept, since new memory is slow to write to, and at the begin of a page, where the kernel copies to twice as fast.
    memory = deque(np.frombuffer(mmap.mmap(-1, _READ_AT_ONCE), np.uint8) for _ in range(threads))
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(threads) as pool:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while True:
            while len(waiting) < threads + 2 and (start := next(starts, None)) is not None:
                end = min(start + HASH_BLOCK, size)
                asked = places(start // dtype.itemsize, end // dtype.itemsize)
                waiting.append(pool.submit(_scan_block, file.fileno(), start, end, dtype, asked, count, memory))
            if not waiting:
                return
            yield waiting.popleft().result()


def _scan_block(
    file: int, start: int, end: int, dtype: np.dtype, places: np.ndarray, count: bool, memory: deque[np.ndarray]
) -> ScannedBlock:
    """All that is asked of a block, piece by piece, while a piece is in the processor's cache: once into memory and out
    of it again, a block would cost several times the time that its hash takes."""
    buffer, digest, high = memory.pop(), xxhash.xxh3_128(), -1
    unsigned = np.dtype(f"u{dtype.itemsize}")  # in which a negative id is larger than all others
    ids, counts, done, length = np.empty(len(places), dtype), np.zeros(0, np.int64), start, 0
    while done < end and (got := _read(file, buffer[: end - done], done)):
        digest.update(buffer[:got].data)
        part = buffer[: got // dtype.itemsize * dtype.itemsize].view(unsigned)
        high = max(high, int(part.max(initial=0)))
        first = done // dtype.itemsize
        low, past = np.searchsorted(places, (first, first + len(part)))
        ids[low:past] = part.view(dtype)[places[low:past] - first]
        if count and high <= LARGEST_COUNTED_ID:
            counts = _counted(counts, part, high)
        done, length = done + got, length + len(part)
    memory.append(buffer)
    has_negative = dtype.kind == "i" and high > np.iinfo(dtype).max
    if high > LARGEST_COUNTED_ID:
        counts = counts[:0]
    return ScannedBlock(
        start // dtype.itemsize, length, digest.hexdigest(), has_negative, high if length else -1, places, ids, counts
    )


def _read(file: int, target: np.ndarray, at: int) -> int:
    """Fills `target`, or as much of it as the file has from byte `at` on; how many bytes that are."""
    done = 0
    while done < len(target) and (got := os.preadv(file, [target[done:].data], at + done)):
        done += got
    return done


def _counted(counts: np.ndarray, ids: np.ndarray, high: int) -> np.ndarray:
    """`counts` and those of `ids`, of which none is above `high`."""
    if high >= len(counts):
        counts = np.pad(counts, (0, high + 1 - len(counts)))
    count_ids(ids, counts)
    return counts


def scan_tokens(
    path: Path,
    dtype: np.dtype,
    *,
    visit: Callable[[ScannedBlock], None] = lambda block: None,
    places: Places = _no_places,
    count: bool = False,
) -> TokenScan:
    """Hash a whole `.bin` file, and count its ids if asked; `visit` sees every block, with the tokens at `places`."""
    counts, hashes, largest = np.zeros(0, np.int64), [], -1
    for block in scan_blocks(path, dtype, places=places, count=count):
        visit(block)
        hashes.append(block.xxh3)
        largest = max(largest, block.max_id)
        longer, shorter = sorted((counts, block.counts), key=len, reverse=True)
        longer[: len(shorter)] += shorter
        counts = longer
    return TokenScan(tuple(hashes), counts, largest)


def count_ids(tokens: np.ndarray, counts: np.ndarray) -> None:
    """Add to `counts`, which is as long as the vocabulary, how often each id occurs in `tokens`."""
    if len(tokens) < len(counts):
        np.add.at(counts, tokens, 1)
        return
    for start in range(0, len(tokens), _COUNTED_AT_ONCE):
        counts += np.bincount(tokens[start : start + _COUNTED_AT_ONCE], minlength=len(counts))


class TokenTally:
    """What a `TokenScan` says of a `.bin` file, gathered while it is written, so that it need not be read again.

    Args:
        vocab_size: one more than the largest id, at most `LARGEST_COUNTED_ID`.
    """

    def __init__(self, vocab_size: int):
        assert vocab_size <= LARGEST_COUNTED_ID, vocab_size
        self._counts = np.zeros(vocab_size, np.int64)
        self._blocks: list[str] = []
        self._digest, self._room = xxhash.xxh3_128(), HASH_BLOCK

    def add(self, tokens: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Tokens that are written, in order; `counts`: how often each id occurs among them, where that is known."""
        if counts is None:
            count_ids(tokens, self._counts)
        else:
            self._counts += counts
        data = tokens.view(np.uint8)
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._digest.update(part.data)
            self._room -= len(part)
            if self._room == 0:
                self._blocks.append(self._digest.hexdigest())
                self._digest, self._room = xxhash.xxh3_128(), HASH_BLOCK

    def scan(self) -> TokenScan:
        """Of all that was added."""
        last = [self._digest.hexdigest()] if self._room < HASH_BLOCK else []
        return TokenScan((*self._blocks, *last), self._counts, int(np.flatnonzero(self._counts).max(initial=-1)))


def describe(
    prefix: str | Path,
    tokenizer: Tokenizer | TokenizerRecord,
    *,
    append_eod: bool,
    documents: DocumentCounts,
    rejected: dict[str, int] | None = None,
    notes: dict[str, int] | None = None,
    sources: tuple[FileRecord, ...] = (),
    job: str = "",
    shard: ShardRecord | None = None,
    files: FileCounts | None = None,
    index: Path | None = None,
    scan: TokenScan | None = None,
) -> Meta:
    """The meta file's contents for a pair that is there, which is read once where no `scan` of it is given.

    `index`: where its index lies now.
    """
    index = index or idx_path(prefix)
    with IndexedTokens(prefix, allow_empty=True, index=index) as pair:
        scan = scan or scan_tokens(bin_path(prefix), pair.dtype, count=True)
        return Meta(
            tokenizer=record_of(tokenizer),
            dtype=pair.dtype.name,
            num_documents=pair.num_documents,
            num_sequences=pair.num_sequences,
            num_tokens=pair.num_tokens,
            max_token_id=scan.max_id,
            unigram_entropy=entropy(scan.counts),
            append_eod=append_eod,
            documents=documents,
            bin_size=bin_path(prefix).stat().st_size,
            idx_size=index.stat().st_size,
            bin_blocks=scan.blocks,
            idx_xxh3=hash_range(index),
            sources=sources,
            rejected=dict(rejected or {}),
            notes=dict(notes or {}),
            job=job,
            shard=shard,
            files=files,
        )


def record_of(tokenizer: Tokenizer | TokenizerRecord) -> TokenizerRecord:
    """What a meta file says of a tokenizer."""
    if isinstance(tokenizer, TokenizerRecord):
        return tokenizer
    return TokenizerRecord(tokenizer.name, tokenizer.sha256, tokenizer.vocab_size, tokenizer.eod_id)
