"""Reading a torch_dist folder (torch's distributed checkpoint format, as megatron-core writes it) tensor by tensor.

`.metadata` says of every tensor which chunks it was cut into, of any layout, and in which file and at which byte each
chunk lies, as a small torch.save archive of its own. It is a pickle, read by the rules of `pickles`. Opening looks at
weights only: the optimizer's entries, usually six times the weights, are passed over and their bytes never read.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import LazyTensor, bits_dtype
from megatron_sky.checkpoint.reader.pickles import INDEX_CLASSES
from megatron_sky.checkpoint.reader.torch_files import DtypeName, TensorRef, TorchArchive, read_pickle
from megatron_sky.errors import CheckpointError

METADATA = ".metadata"
COMMON = "common.pt"
_NOT_WEIGHTS = ("optimizer", "chained_", "rng_state", "rerun_state", "common_state", "iteration", "opt_param_scheduler")


class _Plain:
    """A dataclass of torch's as it was pickled: its fields as attributes, or, under `state`, what it saved instead."""

    def __init__(self, *args):
        self.state = args

    def __setstate__(self, state):
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.state = state


class _Tensor(_Plain):
    """TensorStorageMetadata: `properties`, `size`, `chunks`."""


class _Index(_Plain):
    """MetadataIndex: `fqn`, `offset`."""

    def __hash__(self):
        return id(self)


class _Info(_Plain):
    """_StorageInfo: `relative_path`, `offset`, `length`, maybe `transform_descriptors`."""


def _names() -> dict[tuple[str, str], Callable]:
    """The classes a `.metadata` may name, and what stands in for them."""
    base = "torch.distributed.checkpoint."
    names = {
        (module, name): type(name, (_Plain,), {}) for module, listed in INDEX_CLASSES.items() for name in listed.split()
    }
    return names | {
        (f"{base}metadata", "TensorStorageMetadata"): _Tensor,
        (f"{base}metadata", "MetadataIndex"): _Index,
        (f"{base}filesystem", "_StorageInfo"): _Info,
    }


@dataclass(frozen=True)
class _Chunk:
    """A box of a tensor: its corner, its extent, and where it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    info: _Info


@dataclass
class StoredTensor:
    """A whole tensor of a torch_dist folder, as `.metadata` describes it."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    chunks: list[_Chunk] = field(default_factory=list)


def read_stored(folder: Path) -> dict[str, StoredTensor]:
    """Key -> tensor of all weights in a torch_dist folder. Raises CheckpointError naming what is missing or damaged."""
    path = folder / METADATA
    metadata = _read_metadata(path)
    try:
        stored = {
            key: _stored(key, entry)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, _Tensor) and not key.startswith(_NOT_WEIGHTS)
        }
        places = {
            (index.fqn, tuple(index.offset)): info
            for index, info in metadata.storage_data.items()
            if index.fqn in stored and index.__dict__.get("offset") is not None
        }
        for key, tensor in stored.items():
            for chunk in metadata.state_dict_metadata[key].chunks:
                info = places.get((key, tuple(chunk.offsets)))
                if info is None:
                    raise CheckpointError(f"{path}: says nowhere where the chunk of {key} at {chunk.offsets} lies")
                tensor.chunks.append(_Chunk(tuple(chunk.offsets), tuple(chunk.sizes), info))
    except (AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: is no description of a torch_dist folder: {error}") from error
    for tensor in stored.values():
        _check_covered(path, tensor)
    return stored


def read_object(folder: Path, key: str) -> object | None:
    """The object saved under `key` (`common_state`), tolerantly read; None where the folder has none."""
    metadata = _read_metadata(folder / METADATA)
    for index, info in metadata.storage_data.items():
        if index.fqn == key or index.fqn.startswith(f"{key}/"):
            return TorchArchive(folder / info.relative_path, info.offset, info.length).content(tolerant=True)
    return None


def weight_tensors(folder: Path, stored: dict[str, StoredTensor]) -> dict[str, LazyTensor]:
    """The stored weights as lazy tensors under canonical names (`weights`), one for each layer."""
    found: dict[str, LazyTensor] = {}
    for key, tensor in _without_halves(stored).items():
        if key.startswith(weights.LAYERS) and not key.removeprefix(weights.LAYERS)[0].isdigit():
            name = key.removeprefix(weights.LAYERS)
            for number in range(tensor[0].shape[0]):
                halves = [_lazy(folder, part, number) for part in tensor]
                found[weights.canonical(f"{weights.LAYERS}{number}.{name}")] = halves[0].joined_with(halves[1:], 0)
        else:
            halves = [_lazy(folder, part, None) for part in tensor]
            found[weights.canonical(key)] = halves[0].joined_with(halves[1:], 0)
    return found


def check_files(folder: Path, stored: dict[str, StoredTensor]) -> None:
    """Raises CheckpointError naming the first file that is missing or shorter than its chunks need."""
    ends: dict[str, int] = {}
    for tensor in stored.values():
        for chunk in tensor.chunks:
            info = chunk.info
            if info.__dict__.get("transform_descriptors"):
                raise CheckpointError(
                    f"{folder / info.relative_path}: is compressed or encoded ({info.transform_descriptors}), which "
                    "isn't read\n  fix: save the checkpoint again without a stream transform"
                )
            ends[info.relative_path] = max(ends.get(info.relative_path, 0), info.offset + info.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CheckpointError(f"{folder / METADATA}: names the file {name!r}, which lies outside the folder")
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing: {METADATA} says that weights lie in it")
        if path.stat().st_size < end:
            raise CheckpointError(
                f"{path}: has {path.stat().st_size:,} bytes, {METADATA} describes {end:,}: the file is truncated"
            )


def _read_metadata(path: Path):
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
    return read_pickle(data, str(path), names=_names())


def _stored(key: str, entry: _Tensor) -> StoredTensor:
    dtype = entry.properties.state[0]
    assert isinstance(dtype, DtypeName)
    return StoredTensor(key, dtype.name, tuple(entry.size))


def _check_covered(path: Path, tensor: StoredTensor) -> None:
    """Chunks that fill the tensor, each element once: their volumes add up and none overlaps another."""
    volume = sum(int(np.prod(chunk.sizes, dtype=np.int64)) for chunk in tensor.chunks)
    whole = int(np.prod(tensor.shape, dtype=np.int64))
    outside = [
        chunk
        for chunk in tensor.chunks
        if any(o < 0 or o + s > n for o, s, n in zip(chunk.offsets, chunk.sizes, tensor.shape, strict=True))
    ]
    if volume != whole or outside or len({chunk.offsets for chunk in tensor.chunks}) != len(tensor.chunks):
        raise CheckpointError(
            f"{path}: the chunks of {tensor.key} hold {volume:,} elements, its shape {list(tensor.shape)} needs "
            f"{whole:,}, each once: a shard is missing"
        )


def _without_halves(stored: dict[str, StoredTensor]) -> dict[str, list[StoredTensor]]:
    """Joins what some checkpoints keep as two tensors: `linear_fc1.weight_w` (gate) and `_v` (up)."""
    joined: dict[str, list[StoredTensor]] = {}
    for key, tensor in stored.items():
        head, tail = key[:-2], key[-2:]
        if tail == "_w" and f"{head}_v" in stored:
            joined[head] = [tensor, stored[f"{head}_v"]]
        elif not (tail == "_v" and f"{head}_w" in stored):
            joined[key] = [tensor]
    return joined


def _lazy(folder: Path, tensor: StoredTensor, layer: int | None) -> LazyTensor:
    """`tensor`, or the `layer`-th entry of its leading axis."""
    lead = 0 if layer is None else 1
    chunks = [c for c in tensor.chunks if layer is None or c.offsets[0] <= layer < c.offsets[0] + c.sizes[0]]
    name = tensor.key if layer is None else f"{tensor.key}[{layer}]"
    shape = tensor.shape[lead:]

    def load() -> np.ndarray:
        target = np.empty(shape, bits_dtype(tensor.dtype))
        for chunk in chunks:
            box = zip(chunk.offsets[lead:], chunk.sizes[lead:], strict=True)
            part = target[tuple(slice(offset, offset + size) for offset, size in box)]
            if layer is None or chunk.sizes[0] == 1:
                _load_chunk(folder, tensor, chunk, part.reshape(chunk.sizes) if part.flags.c_contiguous else part)
            else:
                several = np.empty(chunk.sizes, target.dtype)
                _load_chunk(folder, tensor, chunk, several)
                part[...] = several[layer - chunk.offsets[0]]
        return target

    return LazyTensor(tensor.dtype, shape, load, f"{folder}: {name}")


def _load_chunk(folder: Path, tensor: StoredTensor, chunk: _Chunk, target: np.ndarray) -> None:
    """Reads a chunk into `target`, which has the chunk's shape, or lacks its leading 1."""
    archive = TorchArchive(folder / chunk.info.relative_path, chunk.info.offset, chunk.info.length)
    ref = archive.content()
    if not isinstance(ref, TensorRef) or (ref.shape, ref.dtype) != (chunk.sizes, tensor.dtype):
        raise CheckpointError(
            f"{archive.path}: at byte {chunk.info.offset:,} lies no {tensor.dtype} tensor of shape "
            f"{list(chunk.sizes)}, which {METADATA} says of {tensor.key}"
        )
    if target.shape != ref.shape:
        ref = replace(ref, shape=ref.shape[1:], stride=ref.stride[1:])
    archive.tensor_into(ref, tensor.key, target)
