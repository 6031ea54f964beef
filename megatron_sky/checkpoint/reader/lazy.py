"""Tensors that stay on disk until they are asked for, as numpy arrays of raw bits.

Conversion moves weights and never computes with them, so a bf16 element is a uint16 here: what comes out is bit for bit
what went in, and torch is not needed. Only `as_float32` reads the bits as numbers.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from megatron_sky.errors import CheckpointError

# Number formats of weights, then those of constants that lie beside them in files; as safetensors spells them.
WEIGHT_FORMATS = ("F64", "F32", "F16", "BF16")
ITEM_SIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2} | {
    **{"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1},
    **{"F8_E4M3": 1, "F8_E5M2": 1},
}
TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"} | {
    **{"I64": "int64", "U64": "uint64", "I32": "int32", "U32": "uint32", "I16": "int16", "U16": "uint16"},
    **{"I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}
FORMAT_OF_TORCH = {name: dtype for dtype, name in TORCH_NAMES.items()} | {"half": "F16"}
T = TypeVar("T")
_COMPARED = 1 << 17  # words compared at once: 1 MiB stays in the processor's cache
_BITS = {8: np.uint64, 4: np.uint32, 2: np.uint16, 1: np.uint8}


def bits_dtype(dtype: str) -> np.dtype:
    """The unsigned integer type that holds one element of `dtype`."""
    return np.dtype(_BITS[ITEM_SIZE[dtype]])


@dataclass(frozen=True)
class LazyTensor:
    """A tensor not yet read. `load()` gives its bits in an array of `shape`; `place` names it in errors.

    `fill(target, row)`, of one that can be read in parts: has its rows from `row` on in the C-contiguous `target`.
    """

    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], np.ndarray]
    place: str
    fill: Callable[[np.ndarray, int], None] | None = None

    @property
    def is_weight(self) -> bool:
        """Whether its number format is one that weights have."""
        return self.dtype in WEIGHT_FORMATS

    @property
    def num_bytes(self) -> int:
        return ITEM_SIZE[self.dtype] * math.prod(self.shape)

    def rows(self, start: int, stop: int) -> "LazyTensor":
        """The rows of this tensor from `start` to before `stop`."""
        if (start, stop) == (0, self.shape[0]):
            return self
        if (fill := self.fill) is not None:
            shape = (stop - start, *self.shape[1:])
            return filled(self.dtype, shape, lambda target, row: fill(target, start + row), self.place)
        return LazyTensor(self.dtype, (stop - start, *self.shape[1:]), lambda: self.load()[start:stop], self.place)

    def joined_with(self, others: list["LazyTensor"], axis: int) -> "LazyTensor":
        """This tensor and `others`, side by side along `axis`. Raises CheckpointError where they don't fit together."""
        parts = [self, *others]
        if len(parts) == 1:
            return self
        for part in others:
            if part.dtype != self.dtype or _without(part.shape, axis) != _without(self.shape, axis):
                raise CheckpointError(
                    f"{part.place}: is {part.dtype} {list(part.shape)}, which does not go beside {self.dtype} "
                    f"{list(self.shape)} of {self.place}\n  fix: restore the checkpoint from a copy"
                )
        shape = (*self.shape[:axis], sum(part.shape[axis] for part in parts), *self.shape[axis + 1 :])
        return LazyTensor(
            self.dtype, shape, lambda: np.concatenate([part.load() for part in parts], axis=axis), self.place
        )

    def widened(self, dtype: str) -> "LazyTensor":
        """The same numbers in a format of which `common_format` says that it holds them all."""
        if dtype == self.dtype:
            return self
        return LazyTensor(dtype, self.shape, lambda: _widened(self.load(), self.dtype, dtype), self.place)


def common_format(dtypes: Iterable[str]) -> str:
    """The narrowest format of weights that holds every number of all `dtypes`, which are formats of weights."""
    kinds = set(dtypes)
    return kinds.pop() if len(kinds) == 1 else "F64" if "F64" in kinds else "F32"


def _widened(bits: np.ndarray, dtype: str, wider: str) -> np.ndarray:
    values = as_float32(bits, dtype)  # exact: F64 is never widened
    return values.astype(np.float64).view(np.uint64) if wider == "F64" else values.view(np.uint32)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """The sizes along all axes but `axis`; one that lacks it fits beside none that has it."""
    return (*shape[:axis], len(shape), *shape[axis + 1 :])


def read_into(path: Path, offset: int, target: np.ndarray, what: str) -> None:
    """Fills the C-contiguous `target` with the bytes of `path` from `offset` on, or raises CheckpointError."""
    view = target.reshape(-1).data.cast("B")
    handle = os.open(path, os.O_RDONLY)
    try:
        while view:
            count = os.preadv(handle, [view], offset)
            if count == 0:
                raise CheckpointError(f"{path}: ends {len(view):,} bytes before {what} does: the file is truncated")
            view, offset = view[count:], offset + count
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    finally:
        os.close(handle)


def in_file(path: Path, offset: int, dtype: str, shape: tuple[int, ...], name: str) -> LazyTensor:
    """A tensor that lies in one piece in a file."""

    def fill(target: np.ndarray, row: int) -> None:
        read_into(path, offset + row * math.prod(shape[1:]) * ITEM_SIZE[dtype], target, f"tensor {name}")

    return filled(dtype, shape, fill, f"{path}: {name}")


def filled(dtype: str, shape: tuple[int, ...], fill: Callable[[np.ndarray, int], None], place: str) -> LazyTensor:
    """A tensor that `fill` reads, whole or in parts (see `LazyTensor`)."""

    def load() -> np.ndarray:
        target = np.empty(shape, bits_dtype(dtype))
        fill(target, 0)
        return target

    return LazyTensor(dtype, shape, load, place, fill)


def of_runs(
    parts: list[LazyTensor], runs: list[tuple[int, int, int]], shape: tuple[int, ...], place: str
) -> LazyTensor:
    """A tensor whose rows are, run after run, (part, its first row, number of rows) of `parts`, each with a `fill`."""
    fills = [part.fill for part in parts if part.fill is not None]
    assert len(fills) == len(parts), place

    def fill(target: np.ndarray, row: int) -> None:
        begin = -row  # of the run, in the target
        for part, first, count in runs:
            start, stop = max(0, begin), min(len(target), begin + count)
            if start < stop:
                fills[part](target[start:stop], first + start - begin)
            begin += count

    return filled(parts[0].dtype, shape, fill, place)


def as_float32(bits: np.ndarray, dtype: str) -> np.ndarray:
    """The numbers that `bits` stand for, as float32."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.view({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype]).astype(np.float32)


def read_ahead(tensors: Iterable[LazyTensor]) -> Iterator[np.ndarray]:
    """The bits of each tensor in turn; a thread reads the next one while the caller uses this one."""
    return ahead(tensor.load() for tensor in tensors)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """`items`, of which a thread makes the next one while the caller uses this one."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same bits in the same shape."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.flags.c_contiguous and b.flags.c_contiguous):
        return bool(np.array_equal(a, b))
    return same_bytes(a.reshape(-1).view(np.uint8), b.reshape(-1).view(np.uint8))


def same_numbers(a: LazyTensor, b: LazyTensor) -> bool:
    """Whether two tensors of weights' or equal formats hold the same numbers, whichever format each has."""
    if a.dtype != b.dtype:
        if not (a.is_weight and b.is_weight):
            return False
        dtype = common_format((a.dtype, b.dtype))
        a, b = a.widened(dtype), b.widened(dtype)
    return a.shape == b.shape and same_bits(a.load(), b.load())


def count_not_finite(bits: np.ndarray, dtype: str) -> int:
    """How many of the numbers that `bits` stand for are infinite or none."""
    exponent = {"F64": 0x7FF << 52, "F32": 0xFF << 23, "F16": 0x1F << 10, "BF16": 0xFF << 7}.get(dtype)
    if exponent is None:
        return 0
    exponents = bits & bits.dtype.type(exponent)
    return int(np.count_nonzero(exponents == exponent)) if exponents.max(initial=0) == exponent else 0


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two flat byte arrays of equal length are equal; a block at a time, since numpy's answer takes memory."""
    whole = len(a) // 8 * 8
    a8, b8 = a[:whole].view(np.uint64), b[:whole].view(np.uint64)
    blocks = range(0, len(a8), _COMPARED)
    return all(np.array_equal(a8[i : i + _COMPARED], b8[i : i + _COMPARED]) for i in blocks) and np.array_equal(
        a[whole:], b[whole:]
    )
