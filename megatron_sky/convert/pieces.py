"""Tensors read in pieces of rows into memory that is used again, and what each piece must be where it is written.

New memory for each tensor would cost more of the system's time than its bytes cost the disk.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

from megatron_sky.checkpoint.reader.lazy import LazyTensor, ahead, bits_dtype, count_not_finite
from megatron_sky.distributed.cpu_memory import huge_pages

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


def piece_of(name: str, first: int, bits: np.ndarray, dtype: str) -> Piece:
    """Rows of a tensor that are in memory, numbers of the format `dtype`, as a piece."""
    flat, digest, not_finite = np.ascontiguousarray(bits).reshape(-1), xxhash.xxh3_128(), 0
    step = _BLOCK // flat.itemsize
    for start in range(0, len(flat), step):
        block = flat[start : start + step]
        digest.update(block.data)
        not_finite += count_not_finite(block, dtype)
    return Piece(name, first, flat.reshape(bits.shape), digest.digest(), not_finite)


def _pieces(wanted: Iterable[tuple[str, LazyTensor, int]], size: int) -> Iterator[Piece]:
    memory, other = np.empty(0, np.uint8), np.empty(0, np.uint8)
    for name, tensor, rows in wanted:
        row_bytes = max(1, tensor.num_bytes // max(1, tensor.shape[0]))
        step, whole = max(1, size // row_bytes), None if tensor.fill is not None else tensor.load()
        for first in range(0, rows, step):
            shape = (min(step, rows - first), *tensor.shape[1:])
            if memory.nbytes < shape[0] * row_bytes:
                memory = np.frombuffer(huge_pages(shape[0] * row_bytes), np.uint8)
            target = memory[: shape[0] * row_bytes].view(bits_dtype(tensor.dtype)).reshape(shape)
            _fill(tensor, first, target, whole)
            yield piece_of(name, first, target, tensor.dtype)
            memory, other = other, memory


def _fill(tensor: LazyTensor, first: int, target: np.ndarray, whole: np.ndarray | None) -> None:
    """`target` with the tensor's rows from `first` on: of `whole`, which is the tensor where it is read at once."""
    there = max(0, min(len(target), tensor.shape[0] - first))
    if whole is not None:
        target[:there] = whole[first : first + there]
    elif there and tensor.fill is not None:
        tensor.fill(target[:there], first)
    target[there:] = 0
