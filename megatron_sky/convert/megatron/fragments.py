"""The distributed optimizer's `fully_sharded_model_space`, of megatron-core up to 0.13: flat parts of tensors.

A tensor of shape [X, Y] of which each rank's model holds [x, y] is stored as [X/x, Y/y, x*y]: a cell of the grid is one
rank's tensor, flat, cut anywhere between data-parallel ranks. The whole shape stands among megatron-core's notes in the
index. All layers of a weight are one tensor with a leading axis.
"""

import math
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader import torch_dist, weights
from megatron_sky.checkpoint.reader.index import METADATA, StoredTensor, read_index
from megatron_sky.checkpoint.reader.lazy import LazyTensor, bits_dtype
from megatron_sky.errors import CheckpointError

_SHAPE = "nd_reformulated_orig_global_shape"


def fragments(folder: Path, prefix: str) -> dict[str, LazyTensor]:
    """The tensors that lie in flat parts under keys that begin with `prefix`, by their weights' canonical names."""
    notes = read_index(folder / METADATA).mcore_data
    tensors: dict[str, LazyTensor] = {}
    for key, stored in torch_dist.read_stored(folder, prefix).items():
        whole = notes.get(stored.key, {}).get(_SHAPE)
        if whole is None:
            raise CheckpointError(
                f"{folder}: {stored.key} is in flat parts, and no {_SHAPE} says of which shape it is: megatron-core "
                "before 0.7 saved it so\n  fix: load and save it once with a Megatron-LM of 0.7 to 0.13"
            )
        shape = tuple(int(size) for size in whole)
        name = key.removeprefix(weights.LAYERS)
        if key.startswith(weights.LAYERS) and not name[:1].isdigit():
            for number in range(shape[0]):
                layer = weights.canonical(f"{weights.LAYERS}{number}.{name}")
                weights.put(tensors, layer, _lazy(folder, stored, shape, number))
        else:
            weights.put(tensors, weights.canonical(key), _lazy(folder, stored, shape, None))
    return tensors


def is_fragmented(folder: Path, prefix: str) -> bool:
    """Whether what lies under `prefix` is in flat parts."""
    index = read_index(folder / METADATA)
    return any(key.startswith(prefix) and _SHAPE in (note or {}) for key, note in index.mcore_data.items())


def _lazy(folder: Path, stored: StoredTensor, shape: tuple[int, ...], layer: int | None) -> LazyTensor:
    """The whole tensor of `shape`, or one entry of its leading axis."""
    grid = stored.shape[:-1]
    lead = 0 if layer is None else 1
    cell = tuple(size // parts for size, parts in zip(shape, grid, strict=True))
    if math.prod(cell) != stored.shape[-1]:
        raise CheckpointError(f"{folder}: {stored.key}: {list(stored.shape)} is no grid of parts of {list(shape)}")

    def load() -> np.ndarray:
        target = np.empty(shape[lead:], bits_dtype(stored.dtype))
        for place in np.ndindex(*grid[lead:]):
            corner = (*((layer,) if layer is not None else ()), *place)
            flat = torch_dist.load_row(folder, stored, corner)
            box = tuple(slice(i * size, (i + 1) * size) for i, size in zip(place, cell[lead:], strict=True))
            target[box] = flat.reshape(cell[lead:])
        return target

    return LazyTensor(stored.dtype, shape[lead:], load, f"{folder}: {stored.key}")
