"""Whether an index describes its `.bin` file from front to back: each sequence where the one before it ends, each
document after the one before it.

A pair is what its index says. Other tools filter or shuffle one by writing another index beside the same tokens;
megatron-core goes by its pointers. Here a pair is one flat stream, so that such a pair is refused and `data merge`
writes it in its index's order.
"""

import os
from functools import lru_cache

import numpy as np

from megatron_sky.data.tokens.indexed import IndexedTokens, chunks, idx_path
from megatron_sky.errors import DataError


def check_index(pair: IndexedTokens) -> int:
    """Pointers, lengths and bounds, in pieces; returns the number of documents without a sequence.

    Raises:
        DataError: the first place at which the index leaves the order of the file, with its byte.
    """
    check_pointers(pair)
    return check_bounds(pair)


def check_index_once(pair: IndexedTokens) -> None:
    """`check_index`, which reads 20 bytes a document, once a process for a file that is not changed."""
    path = idx_path(pair.prefix)
    status = os.stat(path)
    _checked(os.path.realpath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _checked(path: str, size: int, changed: int) -> None:
    with IndexedTokens(path.removesuffix(".idx"), allow_empty=True) as pair:
        check_index(pair)


def check_pointers(pair: IndexedTokens) -> None:
    path, header, width = idx_path(pair.prefix), pair.header, pair.dtype.itemsize
    first, expected = 0, 0
    for lengths in chunks(pair.lengths, pair.num_sequences):
        pointers = pair.pointers(first, len(lengths))
        if (lengths < 0).any():
            at = first + int(np.argmax(lengths < 0))
            raise DataError(f"{path}, byte {header.lengths_at + 4 * at:,}: sequence {at:,} has a negative length")
        steps = np.cumsum(lengths.astype(np.int64)) * width
        right = np.concatenate([[0], steps[:-1]]) + expected
        if (wrong := right != pointers).any():
            at = int(np.argmax(wrong))
            raise DataError(
                f"{path}, byte {header.pointers_at + 8 * (first + at):,}: sequence {first + at:,} begins at byte "
                f"{pointers[at]:,} by its pointer, at {right[at]:,} by the lengths before it: the index leaves out, "
                "repeats or reorders what the .bin file holds\n"
                f"  fix: `megatron-sky data merge {pair.prefix} --out NEW` writes the pair that the index describes"
            )
        first, expected = first + len(lengths), expected + int(steps[-1])


def check_bounds(pair: IndexedTokens) -> int:
    """The documents' bounds; returns the number of documents without a sequence."""
    path, first, before, empty = idx_path(pair.prefix), 1, 0, 0
    for bounds in chunks(pair.bounds, pair.num_documents, first=1):
        steps = np.diff(bounds, prepend=before)
        if (steps < 0).any() or bounds[-1] > pair.num_sequences:
            at = first + int(np.argmax((steps < 0) | (bounds > pair.num_sequences)))
            raise DataError(
                f"{path}, byte {pair.header.bounds_at + 8 * at:,}: document {at - 1:,} ends at sequence "
                f"{bounds[at - first]:,}, before its own begin or beyond the last of {pair.num_sequences:,}\n"
                "  fix: copy the pair again from its source, or make it again"
            )
        empty += int((steps == 0).sum())
        first, before = first + len(bounds), int(bounds[-1])
    return empty
