"""Tensors of a conversion as a torch_dist folder: chunks in `.distcp` files, and `.metadata` that says where each lies.

megatron-core's writer wants the model in memory; here each chunk is saved by torch.save as it comes, at most `_CHUNK`
bytes, and `.metadata` is made at the end from what was written. All layers of a weight are one tensor with a leading
axis, and so are their optimizer's tensors. Each chunk is compared on its way to the disk, and then found again by this
package's own reader.
"""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, cast

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.index import METADATA
from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES, LazyTensor
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_dist import COMMON
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.convert.output import Output
from megatron_sky.convert.pieces import Piece, read_pieces
from megatron_sky.convert.weight_file import WeightFile
from megatron_sky.errors import CheckpointError

_CHUNK = 128 << 20  # bytes
_OBJECTS = "__0_state.distcp"
_LAYER = re.compile(rf"(.*?{re.escape(weights.LAYERS)})(\d+)\.(.*)")
# Layers whose modules have an extra state in megatron-core's checkpoints; empty unless FP8 scales are kept.
_EXTRA_STATES = tuple(
    f"{linear}._extra_state"
    for linear in ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
)


@dataclass(frozen=True)
class DistTensors:
    """What a folder gets. `tensors`: by name, that of a layer with its number. `rows`: how many the stored tensor has,
    where those are more than the tensor's: zeros follow."""

    num_layers: int
    tensors: Mapping[str, LazyTensor]
    rows: Mapping[str, int] = field(default_factory=dict)

    def num_rows(self, name: str) -> int:
        return self.rows.get(name, self.tensors[name].shape[0])


@dataclass(frozen=True)
class _Chunk:
    """A piece that was written: `offsets` and `sizes` in the stored tensor, `begin` and `length` in the file."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    begin: int
    length: int


def stored_key(name: str) -> tuple[str, tuple[int, ...]]:
    """(megatron-core's key, the index on its leading axis): all layers share one tensor."""
    if (match := _LAYER.fullmatch(name)) is None:
        return name, ()
    return match[1] + match[3], (int(match[2]),)


def write_file(content: DistTensors, path: Path, names: Sequence[str]) -> dict:
    """Writes one `.distcp` file; returns its record, with the place of every chunk."""
    chunks: list[_Chunk] = []
    begins: list[int] = []
    wanted = [(name, content.tensors[name], content.num_rows(name)) for name in names]
    with WeightFile(path) as file:
        for piece in read_pieces(wanted, _CHUNK):
            key, lead = stored_key(piece.name)
            begin, shape = file.size, (1,) * len(lead) + piece.bits.shape
            begins.append(_save(file, piece, shape, content.tensors[piece.name].dtype))
            offsets = (*lead, piece.first, *(0,) * (piece.bits.ndim - 1))
            chunks.append(_Chunk(key, offsets, shape, begin, file.size - begin))
        record = file.finish()
    formats = {stored_key(name)[0]: content.tensors[name].dtype for name in names}
    for chunk, begin in zip(chunks, begins, strict=True):
        _check_archive(path, chunk, begin, formats[chunk.key])
    return record | {"chunks": [[c.key, c.offsets, c.sizes, c.begin, c.length] for c in chunks]}


class _Archive:
    """For torch.save, of one piece: a file that notes where the piece's bytes begin."""

    def __init__(self, file: WeightFile, piece: Piece):
        self._file, self._piece = file, piece
        self.begin = -1

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        if not len(view) or np.frombuffer(view, np.uint8).ctypes.data != self._piece.bits.ctypes.data:
            return self._file.write(view)
        self.begin = self._file.write_piece(self._piece, view)
        return len(view)

    def flush(self) -> None:
        """Nothing is to be flushed before the file's end (torch.save asks)."""


def _save(file: WeightFile, piece: Piece, shape: tuple[int, ...], dtype: str) -> int:
    """Appends a piece as a tensor of `shape`; returns where in the file its bytes begin."""
    import torch

    archive = _Archive(file, piece)
    tensor = torch.from_numpy(piece.bits.reshape(shape)).view(getattr(torch, TORCH_NAMES[dtype]))
    torch.save(tensor, cast(IO[bytes], archive))  # of which torch asks that it can write and flush
    return archive.begin


def _check_archive(path: Path, chunk: _Chunk, begin: int, dtype: str) -> None:
    """Raises CheckpointError unless this package's own reader finds the chunk, and its bytes from `begin` on."""
    archive = TorchArchive(path, chunk.begin, chunk.length)
    ref = archive.content()
    is_same = isinstance(ref, TensorRef) and (ref.shape, ref.dtype) == (chunk.sizes, dtype)
    if not isinstance(ref, TensorRef) or not is_same or not ref.is_contiguous or ref.storage_offset:
        raise CheckpointError(f"{path}: {chunk.key}: read back, is not the tensor that was written")
    if math.prod(chunk.sizes) and archive.data_offset(ref) != begin:
        raise CheckpointError(f"{path}: {chunk.key}: read back, its numbers do not lie where they were written")


def write_state(content: DistTensors, output: Output, names: Sequence[str], common: dict) -> None:
    """Everything of the format but the tensors, which are in the files `names`: `.metadata`, the modules' extra states,
    and `common`, where megatron-core before 0.17 looks for it and where later versions do."""
    import torch

    with WeightFile(output.folder / _OBJECTS) as file:
        objects = {key: _save_object(file, value) for key, value in _objects(content.num_layers, common).items()}
        file.finish()
    _write_metadata(content, output, names, objects)
    torch.save(common, output.folder / COMMON)
    backends = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    output.write_text("metadata.json", json.dumps(backends))


def _objects(layers: int, common: dict) -> dict[str, object]:
    """Key -> what megatron-core saves beside tensors: the modules' empty extra states, and the common state."""
    extra = {
        f"{weights.LAYERS}{name}/shard_{number}_{layers}": [None] for name in _EXTRA_STATES for number in range(layers)
    }
    # Transformer Engine's final norm asks for one; others pass it over
    return extra | {"decoder.final_layernorm._extra_state/shard_0_1": [None], "common_state/shard_0_1": [common]}


def _save_object(file: WeightFile, value: object) -> tuple[int, int]:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    begin = file.size
    return begin, file.write(buffer.getvalue())


def _write_metadata(
    content: DistTensors, output: Output, names: Sequence[str], objects: dict[str, tuple[int, int]]
) -> None:
    """`.metadata`, by torch's own classes."""
    import pickle

    import torch
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    tensors: dict[str, dcp.TensorStorageMetadata] = {}
    storage = {}
    dtypes = {stored_key(name)[0]: tensor.dtype for name, tensor in content.tensors.items()}
    shapes = _stored_shapes(content)
    for file in names:
        for key, offsets, sizes, begin, length in output.finished[file]["chunks"]:
            properties = dcp.TensorProperties(dtype=getattr(torch, TORCH_NAMES[dtypes[key]]))
            entry = tensors.setdefault(key, dcp.TensorStorageMetadata(properties, torch.Size(shapes[key]), []))
            entry.chunks.append(dcp.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            storage[dcp.MetadataIndex(key, torch.Size(offsets))] = _StorageInfo(file, begin, length)
    for key, (begin, length) in objects.items():
        storage[dcp.MetadataIndex(key)] = _StorageInfo(_OBJECTS, begin, length)
    entries = tensors | {key: dcp.BytesStorageMetadata() for key in objects}
    described = dcp.Metadata(entries, storage_data=storage, storage_meta=dcp.StorageMeta())
    (output.folder / METADATA).write_bytes(pickle.dumps(described))


def _stored_shapes(content: DistTensors) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, tensor in content.tensors.items():
        key, lead = stored_key(name)
        shapes[key] = (content.num_layers,) * len(lead) + (content.num_rows(name), *tensor.shape[1:])
    return shapes
