"""Any source to a native torch_dist checkpoint, from which a run starts in any layout (`checkpoint.init_from`).

The folder is what a run of one process would have saved without its optimizer: chunks in `.distcp` files, `.metadata`,
the common state, config.yaml, train_state.json, manifest. megatron-core's writer wants the model in memory; here each
chunk is saved by torch.save as it comes, at most `_CHUNK` bytes, and `.metadata` is made at the end from what was
written. Padding rows of the vocabulary are zeros. Each chunk is read back by this package's own reader and compared; at
the end the whole is opened as any reader opens it.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, cast

import numpy as np

from megatron_sky.checkpoint import description, state, store
from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.index import METADATA
from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES, LazyTensor, common_format, read_ahead
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_dist import COMMON
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.config import Config, dump_config
from megatron_sky.convert.huggingface import config as hf_config
from megatron_sky.convert.output import (
    DEFAULT_FILE_SIZE,
    RECORD,
    Converted,
    Output,
    convert,
    plan_files,
    write_weights,
)
from megatron_sky.convert.sources import HF, Source
from megatron_sky.convert.weight_file import Expected, WeightFile
from megatron_sky.errors import CheckpointError
from megatron_sky.files import json_text
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files

log = get_logger(__name__)

_CHUNK = 128 << 20  # bytes
_PRECISION = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}
# Layers whose modules have an extra state in megatron-core's checkpoints; empty unless FP8 scales are kept.
_EXTRA_STATES = tuple(
    f"{linear}._extra_state"
    for linear in ("self_attention.linear_proj", "self_attention.linear_qkv", "mlp.linear_fc1", "mlp.linear_fc2")
)


@dataclass(frozen=True)
class _Chunk:
    """A piece that was written: `offsets` and `sizes` in the stored tensor, `begin` and `length` in the file."""

    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    begin: int
    length: int


def write_native(
    source: Source, out: Path, *, vocab_multiple: int | None = None, file_size: int = DEFAULT_FILE_SIZE
) -> Converted:
    """Writes `source` as a native checkpoint and verifies it. Raises CheckpointError; then `out` isn't there.

    `vocab_multiple`: rows of the embedding are padded to a multiple of it, which the target's tensor-parallel size must
    divide; None: the recipe's default.
    """
    if vocab_multiple is not None:
        source = replace(source, model=source.model.model_copy(update={"vocab_multiple": vocab_multiple}))
    source = _one_format_for_all_layers(source)
    config = _recipe(source)
    conversion = {"to": "native", "file_size": file_size, "padded_vocab_size": source.model.padded_vocab_size}
    return convert(source, out, conversion, lambda output: _write(source, output, config, file_size))


def _one_format_for_all_layers(source: Source) -> Source:
    """The source with each weight in the same number format in all layers, which are one tensor in the checkpoint."""
    formats: dict[str, set[str]] = {}
    for name, tensor in source.weights.items():
        formats.setdefault(_stored_key(name)[0], set()).add(tensor.dtype)
    wider = {key: common_format(dtypes) for key, dtypes in formats.items() if len(dtypes) > 1}
    if not wider:
        return source
    tensors = {
        name: tensor.widened(wider.get(_stored_key(name)[0], tensor.dtype)) for name, tensor in source.weights.items()
    }
    keys = ", ".join(f"{key.removeprefix(weights.LAYERS)} ({dtype})" for key, dtype in wider.items())
    line = f"weights whose layers have several number formats are written in one that holds all their numbers: {keys}"
    return replace(source, weights=tensors, warnings=(*source.warnings, line))


def _recipe(source: Source) -> Config:
    """The recipe that goes with the weights: the model, its number format, and the least that a recipe must hold.

    No training made this checkpoint, so there is no schedule or data to record; a run that starts from it has its own.
    """
    if unknown := source.formats.keys() - _PRECISION.keys():
        name = next(name for name, tensor in source.weights.items() if tensor.dtype in unknown)
        raise CheckpointError(
            f"{source.folder}: {name} is in {source.weights[name].dtype}, more than a run computes with\n"
            f"  fix: save it in one of {', '.join(_PRECISION)}"
        )
    return Config.model_validate(
        {
            "model": source.model.model_dump() | {"preset": None},
            "precision": {"dtype": _PRECISION[source.dtype]},
            "tokenizer": {"path": None},
            "schedule": {"lr": 1e-5, "style": "constant"},
            "train": {"run_dir": "none", "tokens": source.model.seq_length, "global_batch_size": 1},
        }
    )


def _write(source: Source, output: Output, config: Config, file_size: int) -> dict:
    files = {f"__0_{number}.distcp": names for number, names in enumerate(plan_files(source, file_size))}
    write_weights(source, output, files, lambda path, names: _write_file(source, path, names))
    _write_description(source, output, config, list(files))
    known = {name: store.FileRecord(entry["size"], xxh3=entry["xxh3"]) for name, entry in output.finished.items()}
    rest = [name for name in store.files_of(output.folder) if name not in known and name != RECORD]
    records = known | store.hash_files(output.folder, rest, "xxh3")
    output.write_text(store.MANIFEST, json_text(store.manifest_of(0, records), indent=1))
    return {}


def _write_file(source: Source, path: Path, listed: list[str]) -> dict:
    chunks: list[_Chunk] = []
    with WeightFile(path) as file:
        loaded = read_ahead(source.weights[weight] for weight in listed)
        for weight, bits in zip(listed, loaded, strict=True):
            chunks += _write_weight(file, weight, bits, source)
        record = file.finish()
    return record | {"chunks": [[c.key, c.offsets, c.sizes, c.begin, c.length] for c in chunks]}


def _write_weight(file: WeightFile, weight: str, bits: np.ndarray, source: Source) -> list[_Chunk]:
    """Writes one weight in chunks of rows and has each read back."""
    tensor = source.weights[weight]
    key, lead = _stored_key(weight)
    written = []
    for start, piece in _pieces(bits, weight, source):
        begin = file.size
        piece = np.ascontiguousarray(piece)
        _save(file, piece.reshape((1,) * len(lead) + piece.shape), tensor.dtype)
        offsets = (*lead, start, *(0,) * (piece.ndim - 1))
        chunk = _Chunk(key, offsets, (1,) * len(lead) + piece.shape, begin, file.size - begin)
        file.verify_written([_expected(file.path, chunk, piece, tensor, weight)])
        written.append(chunk)
    return written


def _stored_key(weight: str) -> tuple[str, tuple[int, ...]]:
    """(megatron-core's key, the index on its leading axis): all layers share one tensor."""
    if not weight.startswith(weights.LAYERS):
        return weight, ()
    number, _, name = weight.removeprefix(weights.LAYERS).partition(".")
    return f"{weights.LAYERS}{name}", (int(number),)


def _pieces(bits: np.ndarray, weight: str, source: Source) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, rows) of at most `_CHUNK` bytes, the vocabulary's padding rows included."""
    rows = source.model.padded_vocab_size if weight in weights.VOCABULARY_ROWS else len(bits)
    step = max(1, _CHUNK // max(1, bits[:1].nbytes))
    for start in range(0, rows, step):
        piece = bits[start : min(start + step, rows)]
        missing = min(start + step, rows) - start - len(piece)
        if missing:
            piece = np.concatenate([piece, np.zeros((missing, *bits.shape[1:]), bits.dtype)])
        yield start, piece


def _save(file: WeightFile, bits: np.ndarray, dtype: str) -> None:
    import torch

    tensor = torch.from_numpy(bits).view(getattr(torch, TORCH_NAMES[dtype]))
    torch.save(tensor, cast(IO[bytes], file))  # of which torch asks that it can write and flush


def _expected(path: Path, chunk: _Chunk, piece: np.ndarray, tensor: LazyTensor, weight: str) -> Expected:
    """Where the chunk's bytes must stand, as this package's own reader finds them."""
    archive = TorchArchive(path, chunk.begin, chunk.length)
    ref = archive.content()
    is_same = isinstance(ref, TensorRef) and (ref.shape, ref.dtype) == (chunk.sizes, tensor.dtype)
    if not isinstance(ref, TensorRef) or not is_same or not ref.is_contiguous or ref.storage_offset:
        raise CheckpointError(f"{path}: {chunk.key}: read back, is not the tensor that was written")
    return Expected(archive.data_offset(ref), piece, tensor.dtype, weight)


def _write_description(source: Source, output: Output, config: Config, names: list[str]) -> None:
    """Everything but the weights."""
    import torch

    folder = output.folder
    common = {"content_metadata": state.content_metadata(holds_optimizer=False)}
    with WeightFile(folder / "__0_state.distcp") as file:
        objects = {key: _save_object(file, value) for key, value in _objects(source, common).items()}
        file.finish()
    _write_metadata(source, output, names, objects)
    torch.save(common, folder / COMMON)  # megatron-core before 0.17 reads this, later versions the object of that name
    backends = {
        "sharded_backend": "torch_dist",
        "sharded_backend_version": 1,
        "common_backend": "torch",
        "common_backend_version": 1,
    }
    output.write_text("metadata.json", json.dumps(backends))
    output.write_text(description.CONFIG, dump_config(config))
    progress = {"step": 0, "consumed_samples": 0, "consumed_tokens": 0}
    described = {"progress": progress, "data": {}, "layout": f"converted from a {source.kind}: {source.folder.name}"}
    output.write_text(store.TRAIN_STATE, description.train_state(described))
    if (kept := source.hugging_face) is not None:
        output.write_text(f"{hf_config.KEPT}/{hf_config.CONFIG}", json.dumps(kept.config, indent=1))
        if kept.generation is not None:
            output.write_text(f"{hf_config.KEPT}/{hf_config.GENERATION}", json.dumps(kept.generation, indent=1))
    if source.tokenizer is not None:
        tokenizer_files.copy(source.tokenizer, folder, settings=True)
    elif source.kind == HF:
        log.warning("%s: has no tokenizer, so the checkpoint gets none", source.folder)


def _objects(source: Source, common: dict) -> dict[str, object]:
    """Key -> what megatron-core saves beside tensors: the modules' empty extra states, and the common state."""
    layers = source.model.num_layers
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


def _write_metadata(source: Source, output: Output, names: list[str], objects: dict[str, tuple[int, int]]) -> None:
    """`.metadata`, by torch's own classes."""
    import pickle

    import torch
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    tensors: dict[str, dcp.TensorStorageMetadata] = {}
    storage = {}
    dtypes = {_stored_key(name)[0]: tensor.dtype for name, tensor in source.weights.items()}
    shapes = _stored_shapes(source)
    for file in names:
        for key, offsets, sizes, begin, length in output.finished[file]["chunks"]:
            properties = dcp.TensorProperties(dtype=getattr(torch, TORCH_NAMES[dtypes[key]]))
            entry = tensors.setdefault(key, dcp.TensorStorageMetadata(properties, torch.Size(shapes[key]), []))
            entry.chunks.append(dcp.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
            storage[dcp.MetadataIndex(key, torch.Size(offsets))] = _StorageInfo(file, begin, length)
    for key, (begin, length) in objects.items():
        storage[dcp.MetadataIndex(key)] = _StorageInfo("__0_state.distcp", begin, length)
    entries = tensors | {key: dcp.BytesStorageMetadata() for key in objects}
    content = dcp.Metadata(entries, storage_data=storage, storage_meta=dcp.StorageMeta())
    (output.folder / METADATA).write_bytes(pickle.dumps(content))


def _stored_shapes(source: Source) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for name, tensor in source.weights.items():
        key, lead = _stored_key(name)
        rows = source.model.padded_vocab_size if name in weights.VOCABULARY_ROWS else tensor.shape[0]
        shapes[key] = (source.model.num_layers,) * len(lead) + (rows, *tensor.shape[1:])
    return shapes
