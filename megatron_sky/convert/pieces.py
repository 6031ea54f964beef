"""Tensors read in pieces of rows into memory that is used again, and what each piece must be where it is written.

New memory for each tensor would cost more of the system's time than its bytes cost the disk. A piece is hashed and
looked through block by block as it is read, while it is in the processor's cache.
"""

import contextlib
import mmap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from megatron_sky.checkpoint.reader.lazy import LazyTensor, ahead, bits_dtype, count_not_finite

_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class Piece:
    """Rows of the tensor `name` from `first` on; of their bytes the XXH3; how many of the numbers are not finite."""

    name: str
    first: int
    bits: np.ndarray
    xxh3: bytes
    not_finite: int


def read_pieces(wanted: Iterable[tuple[str, LazyTensor, int]], size: int) -> Iterator[Piece]:
    """The pieces, of at most `size` bytes or one row, of each (name, tensor, number of rows) of `wanted`.

    Rows that a tensor lacks are zeros. A thread reads the next piece while the caller uses this one, whose `bits` are
    valid until the one after it is asked for: its memory is used again.
    """
    return ahead(_pieces(wanted, size))


def whole_piece(name: str, bits: np.ndarray, dtype: str) -> Piece:
    """An array in memory, numbers of the format `dtype`, as a piece."""
    flat, measure = np.ascontiguousarray(bits).reshape(-1), _Measure(dtype)
    step = _BLOCK // flat.itemsize
    for start in range(0, len(flat), step):
        measure.add(flat[start : start + step])
    return measure.piece(name, 0, flat.reshape(bits.shape))


class _Measure:
    def __init__(self, dtype: str):
        self._dtype, self._digest, self._not_finite = dtype, xxhash.xxh3_128(), 0

    def add(self, block: np.ndarray) -> None:
        self._digest.update(block.reshape(-1).data)
        self._not_finite += count_not_finite(block, self._dtype)

    def piece(self, name: str, first: int, bits: np.ndarray) -> Piece:
        return Piece(name, first, bits, self._digest.digest(), self._not_finite)


def _pieces(wanted: Iterable[tuple[str, LazyTensor, int]], size: int) -> Iterator[Piece]:
    memory, other = np.empty(0, np.uint8), np.empty(0, np.uint8)
    for name, tensor, rows in wanted:
        row_bytes = max(1, tensor.num_bytes // max(1, tensor.shape[0]))
        step, whole = max(1, size // row_bytes), None if tensor.fill is not None else tensor.load()
        for first in range(0, rows, step):
            shape = (min(step, rows - first), *tensor.shape[1:])
            if memory.nbytes < shape[0] * row_bytes:
                memory = _memory(shape[0] * row_bytes)
            target = memory[: shape[0] * row_bytes].view(bits_dtype(tensor.dtype)).reshape(shape)
            yield _filled(name, tensor, first, target, whole)
            memory, other = other, memory


def _memory(size: int) -> np.ndarray:
    """New memory, at the begin of a page, where the kernel copies to twice as fast; in huge pages where it has them."""
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # of a kernel that has none
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _filled(name: str, tensor: LazyTensor, first: int, target: np.ndarray, whole: np.ndarray | None) -> Piece:
    """`target` with the tensor's rows from `first` on: of `whole`, which is the tensor where it is read at once."""
    measure, step = _Measure(tensor.dtype), max(1, _BLOCK // max(1, target[:1].nbytes))
    for start in range(0, len(target), step):
        block = target[start : start + step]
        there = max(0, min(len(block), tensor.shape[0] - first - start))
        if whole is not None:
            block[:there] = whole[first + start : first + start + there]
        elif there and tensor.fill is not None:
            tensor.fill(block[:there], first + start)
        block[there:] = 0
        measure.add(block)
    return measure.piece(name, first, target)
