"""Reading a torch_dist folder (torch's distributed checkpoint format, as megatron-core writes it) tensor by tensor.

The index says of every tensor which chunks it was cut into, of any layout, and in which file and at which byte each
chunk lies, as a small torch.save archive of its own. Opening looks at weights only: the optimizer's entries, usually
six times the weights, are passed over and their bytes never read.
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.index import METADATA, Chunk, StoredTensor, read_index
from megatron_sky.checkpoint.reader.lazy import ITEM_SIZE, LazyTensor, bits_dtype, read_into
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.errors import CheckpointError

COMMON = "common.pt"
_MOST_CELLS = 1 << 24  # of the grid that a tensor's chunks make; a cut along every axis of 4,096 ranks makes fewer
_NOT_WEIGHTS = (
    "optimizer",
    "chained_",
    "fp8.",
    "rng_state",
    "rerun_state",
    "common_state",
    "iteration",
    "opt_param_scheduler",
)


def read_stored(folder: Path, prefix: str | None = None) -> dict[str, StoredTensor]:
    """Key -> tensor of all weights in a torch_dist folder, whose chunks and files are all there; with `prefix`, of all
    tensors whose key begins with it, by the rest of their keys.

    Raises CheckpointError naming what is missing or damaged.
    """
    path = folder / METADATA
    stored = read_index(path).tensors
    if prefix is None:
        tensors = {key: tensor for key, tensor in stored.items() if not key.startswith(_NOT_WEIGHTS)}
    else:
        tensors = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    for tensor in tensors.values():
        _check_covered(path, tensor)
    _check_files(folder, tensors)
    return tensors


def read_object(folder: Path, key: str) -> object | None:
    """The object saved under `key` (`common_state`), tolerantly read; None where the folder has none."""
    archive = object_archive(folder, key)
    return None if archive is None else archive.content(tolerant=True)


def object_archive(folder: Path, key: str) -> TorchArchive | None:
    """The archive of the object saved under `key`; None where the folder has none."""
    for name, place in read_index(folder / METADATA).objects.items():
        if name == key or name.startswith(f"{key}/"):
            return TorchArchive(folder / place.file, place.offset, place.length)
    return None


def weight_tensors(folder: Path, stored: dict[str, StoredTensor]) -> dict[str, LazyTensor]:
    """The stored weights as lazy tensors under canonical names (`weights`), one for each layer; or what else lies under
    weights' names, as an optimizer's moments do."""
    by_name: dict[str, LazyTensor] = {}
    for key, tensor in _without_halves(stored).items():
        name = key.removeprefix(weights.LAYERS)
        if key.startswith(weights.LAYERS) and tensor[0].shape and not name[:1].isdigit():
            for number in range(tensor[0].shape[0]):
                halves = [_lazy(folder, part, number) for part in tensor]
                whole = weights.canonical(f"{weights.LAYERS}{number}.{name}")
                weights.put(by_name, whole, halves[0].joined_with(halves[1:], 0))
        else:
            halves = [_lazy(folder, part, None) for part in tensor]
            weights.put(by_name, weights.canonical(key), halves[0].joined_with(halves[1:], 0))
    return by_name


def flat_slice(folder: Path, tensor: StoredTensor, start: int, shape: tuple[int, ...]) -> LazyTensor:
    """A tensor of `shape` whose elements lie in the flat `tensor` from `start` on."""
    end = start + math.prod(shape)
    chunks = [c for c in tensor.chunks if c.offsets[0] < end and c.offsets[0] + c.sizes[0] > start]
    place = f"{folder}: {tensor.key}[{start:,}:{end:,}]"
    held = sum(min(end, c.offsets[0] + c.sizes[0]) - max(start, c.offsets[0]) for c in chunks)
    if held != end - start:
        raise CheckpointError(f"{place}: {held:,} of its elements are there: a shard is missing")

    def load() -> np.ndarray:
        target = np.empty(end - start, bits_dtype(tensor.dtype))
        for chunk in chunks:
            archive, ref = _open_chunk(folder, tensor, chunk)
            first, last = max(start, chunk.offsets[0]), min(end, chunk.offsets[0] + chunk.sizes[0])
            offset = archive.data_offset(ref) + (ref.storage_offset + first - chunk.offsets[0]) * target.itemsize
            read_into(archive.path, offset, target[first - start : last - start], place)
        return target.reshape(shape)

    return LazyTensor(tensor.dtype, shape, load, place)


def load_row(folder: Path, tensor: StoredTensor, corner: tuple[int, ...]) -> np.ndarray:
    """The bits of the last axis of `tensor` at `corner` of the others, whose chunks hold one place each."""
    target = np.empty(tensor.shape[-1], bits_dtype(tensor.dtype))
    for chunk in tensor.chunks:
        if chunk.offsets[:-1] == corner:
            part = target[chunk.offsets[-1] : chunk.offsets[-1] + chunk.sizes[-1]]
            _load_chunk(folder, tensor, chunk, part.reshape(chunk.sizes))
    return target


def check_chunks(folder: Path, stored: dict[str, StoredTensor]) -> None:
    """Raises CheckpointError where a chunk's archive holds another tensor than the index says. No numbers are read."""
    for tensor in stored.values():
        for chunk in tensor.chunks:
            _open_chunk(folder, tensor, chunk)


def _check_files(folder: Path, stored: dict[str, StoredTensor]) -> None:
    """Raises CheckpointError naming the first file that is missing or shorter than its chunks need."""
    ends: dict[str, int] = {}
    for tensor in stored.values():
        for chunk in tensor.chunks:
            place = chunk.place
            ends[place.file] = max(ends.get(place.file, 0), place.offset + place.length)
    for name, end in sorted(ends.items()):
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing: {METADATA} says that weights lie in it")
        if path.stat().st_size < end:
            raise CheckpointError(
                f"{path}: has {path.stat().st_size:,} bytes, {METADATA} describes {end:,}: the file is truncated"
            )


def _check_covered(path: Path, tensor: StoredTensor) -> None:
    """Raises CheckpointError unless the chunks fill the tensor, each element once, and their bytes have room where they
    are said to lie."""
    if not _each_once(tensor):
        volume, whole = sum(math.prod(chunk.sizes) for chunk in tensor.chunks), math.prod(tensor.shape)
        raise CheckpointError(
            f"{path}: the chunks of {tensor.key} hold {volume:,} elements, its shape {list(tensor.shape)} needs "
            f"{whole:,}, each once: a shard is missing"
        )
    item = ITEM_SIZE.get(tensor.dtype, 0)
    for chunk in tensor.chunks:
        if math.prod(chunk.sizes) * item > chunk.place.length:
            raise CheckpointError(
                f"{path}: {tensor.key}: a chunk of shape {list(chunk.sizes)} in {tensor.dtype} is said to lie in "
                f"{chunk.place.length:,} bytes, too few for it"
            )


def _each_once(tensor: StoredTensor) -> bool:
    """Whether the chunks cover the tensor without overlap: counted on the grid that all their edges make."""
    edges = [{0, size} for size in tensor.shape]
    for chunk in tensor.chunks:
        for axis, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
            edges[axis] |= {offset, offset + size}
    number = [{edge: place for place, edge in enumerate(sorted(axis))} for axis in edges]
    cells = [len(axis) - 1 for axis in edges]
    if math.prod(cells) > _MOST_CELLS or any(
        max(axis) != n or n == 0 for axis, n in zip(edges, tensor.shape, strict=True)
    ):
        return False
    grid = np.zeros(cells, np.int32)
    for chunk in tensor.chunks:
        box = zip(number, chunk.offsets, chunk.sizes, strict=True)
        grid[tuple(slice(place[offset], place[offset + size]) for place, offset, size in box)] += 1
    return bool((grid == 1).all())


def _without_halves(stored: dict[str, StoredTensor]) -> dict[str, list[StoredTensor]]:
    """Joins what some checkpoints keep as two tensors: `linear_fc1.weight_w` (gate) and `_v` (up)."""
    joined: dict[str, list[StoredTensor]] = {}
    for key, tensor in stored.items():
        head, tail = key[:-2], key[-2:]
        if tail == "_w" and f"{head}_v" in stored:
            joined[head] = [tensor, stored[f"{head}_v"]]
            if joined[head][1].shape != tensor.shape:
                raise CheckpointError(f"{key} and {head}_v, the halves of a weight, have different shapes")
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


def _load_chunk(folder: Path, tensor: StoredTensor, chunk: Chunk, target: np.ndarray) -> None:
    """Reads a chunk into `target`, which has the chunk's shape, or lacks its leading 1."""
    archive, ref = _open_chunk(folder, tensor, chunk)
    if target.shape != ref.shape:
        ref = replace(ref, shape=ref.shape[1:], stride=ref.stride[1:])
    archive.tensor_into(ref, tensor.key, target)


def _open_chunk(folder: Path, tensor: StoredTensor, chunk: Chunk) -> tuple[TorchArchive, TensorRef]:
    """A chunk's archive and the tensor in it, which is the one that the index says."""
    archive = TorchArchive(folder / chunk.place.file, chunk.place.offset, chunk.place.length)
    ref = archive.content()
    if not isinstance(ref, TensorRef) or (ref.shape, ref.dtype) != (chunk.sizes, tensor.dtype):
        raise CheckpointError(
            f"{archive.path}: at byte {chunk.place.offset:,} lies no {tensor.dtype} tensor of shape "
            f"{list(chunk.sizes)}, which {METADATA} says of {tensor.key}"
        )
    archive.tensor(ref, tensor.key)
    return archive, ref
