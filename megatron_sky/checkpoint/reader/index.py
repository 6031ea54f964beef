"""The index of a torch_dist folder (`.metadata`): which tensors it has, of which chunks, and where each chunk lies.

It is torch's pickle, read as data (`pickles`) and checked here, once for every reader: counts are whole numbers, files
lie in the folder, nothing is compressed. Conversion and diff take the `Index`; for torch's own reader, which training
and generation load by, `as_torch` makes torch's classes of it, so that torch never unpickles the file itself.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES
from megatron_sky.checkpoint.reader.pickles import INDEX_NAMES, DtypeName, Plain, counts, read_pickle
from megatron_sky.errors import CheckpointError
from megatron_sky.files import lies_inside, read_bytes, stays_inside

if TYPE_CHECKING:
    from torch.distributed.checkpoint.metadata import Metadata

METADATA = ".metadata"
MAX_BYTES = 1 << 30
"""Of an index: that of a thousand ranks' shards of a hundred layers has a tenth of it."""
_PROPERTIES = {"dtype", "layout", "requires_grad", "memory_format", "pin_memory"}  # those that torch.empty takes
_CLASSES: dict[tuple[str, str], type[Plain]] = {
    (module, name): type(name, (Plain,), {}) for module, names in INDEX_NAMES.items() for name in names.split()
}
_TENSOR = _CLASSES["torch.distributed.checkpoint.metadata", "TensorStorageMetadata"]
_KEY = _CLASSES["torch.distributed.checkpoint.metadata", "MetadataIndex"]
_MALFORMED = (AttributeError, TypeError, ValueError, IndexError, KeyError)  # what fields of another kind cause


@dataclass(frozen=True)
class Place:
    """`length` bytes of a file of the folder, from `offset` on: an archive of torch.save."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor: its corner, its extent, and where it lies."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: Place


@dataclass(frozen=True)
class StoredTensor:
    """A whole tensor; `dtype` in safetensors' spelling."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """`objects`: what is no tensor. `mcore_data`: megatron-core's notes on tensors that it keeps in another form."""

    tensors: dict[str, StoredTensor]
    objects: dict[str, Place]
    mcore_data: dict


def read_index(path: Path) -> Index:
    """The index in `path`. Raises CheckpointError where it is missing, damaged, or names what no index needs."""
    try:
        data = read_bytes(path, MAX_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error
    content = read_pickle(data, str(path), names=_CLASSES)
    try:
        index = _checked(content)
        _check_links(path.parent, index)
        return index
    except _MALFORMED as error:
        raise CheckpointError(
            f"{path}: is no index of tensors: {error}\n  fix: restore the checkpoint from a copy"
        ) from error


def _check_links(folder: Path, index: Index) -> None:
    """Raises ValueError where a file of the folder is a link that leads out of it."""
    places = [*index.objects.values(), *(chunk.place for tensor in index.tensors.values() for chunk in tensor.chunks)]
    for file in sorted({place.file for place in places}):
        if not stays_inside(folder / file, folder):
            raise ValueError(f"{file} is a link that leads out of the folder")


def _checked(content: object) -> Index:
    if not isinstance(content, Plain):
        raise TypeError(f"it holds a {type(content).__name__}")
    places = {}
    for key, info in content.storage_data.items():
        if not isinstance(key, _KEY) or not isinstance(key.fqn, str):
            raise ValueError(f"{str(key)[:80]} among its places is no tensor's name")
        corner = vars(key).get("offset")
        places[key.fqn, None if corner is None else counts(corner, f"{key.fqn}: offset")] = _place(key.fqn, info)
    tensors, objects = {}, {}
    for key, entry in content.state_dict_metadata.items():
        if isinstance(entry, _TENSOR):
            tensors[key] = _stored(key, entry, places)
        else:
            objects[key] = _find(places, key, None)
    notes = vars(content).get("mcore_data") or {}
    return Index(tensors, objects, notes if isinstance(notes, dict) else {})


def _stored(key: str, entry: Plain, places: dict) -> StoredTensor:
    dtype, shape = entry.properties.state[0], counts(entry.size, f"{key}: size")
    if not isinstance(dtype, DtypeName):
        raise ValueError(f"{key}: has no number format")
    chunks = []
    for chunk in entry.chunks:
        offsets, sizes = counts(chunk.offsets, f"{key}: offsets"), counts(chunk.sizes, f"{key}: sizes")
        if not len(offsets) == len(sizes) == len(shape):
            raise ValueError(f"{key}: a chunk of shape {sizes} at {offsets} is no part of {shape}")
        chunks.append(Chunk(offsets, sizes, _find(places, key, offsets)))
    return StoredTensor(key, dtype.name, shape, tuple(chunks))


def _find(places: dict, key: str, corner: tuple[int, ...] | None) -> Place:
    if (key, corner) not in places:
        raise ValueError(f"it says nowhere where {key}{'' if corner is None else f' at {corner}'} lies")
    return places[key, corner]


def _place(key: str, info: Plain) -> Place:
    file = info.relative_path
    if not isinstance(file, str) or not lies_inside(file):
        raise ValueError(f"{key} is said to lie in {file!r}, which is no file of the folder")
    if transforms := vars(info).get("transform_descriptors"):
        raise ValueError(
            f"{key} is compressed or encoded ({transforms}); save the checkpoint again without a transform"
        )
    return Place(file, *counts((info.offset, info.length), f"{key}: offset and length"))


def as_torch(path: Path) -> "Metadata":
    """The index in `path` as torch's Metadata, whichever version of torch wrote it. Raises CheckpointError."""
    import torch
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    index = read_index(path)
    entries: dict[str, dcp.STORAGE_TYPES] = {key: dcp.BytesStorageMetadata() for key in index.objects}
    storage = {dcp.MetadataIndex(key): _StorageInfo(*_fields(place)) for key, place in index.objects.items()}
    for key, tensor in index.tensors.items():
        properties = dcp.TensorProperties(dtype=getattr(torch, TORCH_NAMES.get(tensor.dtype, tensor.dtype)))
        for name in vars(properties).keys() - _PROPERTIES:
            delattr(properties, name)  # megatron-core hands all of them to torch.empty
        chunks = [dcp.ChunkStorageMetadata(torch.Size(c.offsets), torch.Size(c.sizes)) for c in tensor.chunks]
        entries[key] = dcp.TensorStorageMetadata(properties, torch.Size(tensor.shape), chunks)
        storage |= {
            dcp.MetadataIndex(key, torch.Size(c.offsets)): _StorageInfo(*_fields(c.place)) for c in tensor.chunks
        }
    metadata = dcp.Metadata(entries, storage_data=storage, storage_meta=dcp.StorageMeta())
    vars(metadata)["mcore_data"] = index.mcore_data  # megatron-core's own, which torch does not know
    return metadata


def _fields(place: Place) -> tuple[str, int, int]:
    return place.file, place.offset, place.length
