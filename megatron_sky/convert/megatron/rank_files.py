"""Megatron-LM's `torch` format, written: a `model_optim_rng.pt` for each tensor- and pipeline-parallel rank.

torch.save wants a rank's tensors in memory. They are laid into a file beside the folder's others first and mapped, so
that memory holds one tensor at a time, and the disk two copies of one rank's. Each file is read back and compared. The
distributed optimizer's state lies beside it, in `distrib_optim.pt`, as flat buffers (`buckets`).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES, LazyTensor, bits_dtype, same_bits
from megatron_sky.checkpoint.reader.pickles import TensorRef
from megatron_sky.checkpoint.reader.torch_files import TorchArchive
from megatron_sky.checkpoint.store import size_and_hash
from megatron_sky.config import Config
from megatron_sky.convert import training_state
from megatron_sky.convert.megatron import buckets
from megatron_sky.convert.megatron.flat_state import STATE_FILE
from megatron_sky.convert.megatron.ranks import COLUMNS, Layout, Shapes, chunk_shapes, is_whole
from megatron_sky.convert.megatron.split_files import FILE
from megatron_sky.convert.output import Output
from megatron_sky.convert.sources import Source
from megatron_sky.convert.training_state import KEYS, MASTER, TrainingState
from megatron_sky.convert.weight_file import cant_write
from megatron_sky.errors import CheckpointError
from megatron_sky.log import get_logger

if TYPE_CHECKING:
    import torch

log = get_logger(__name__)
_SCRATCH = "scratch"


@dataclass(frozen=True)
class HandedBack:
    """What is written. `common`: what stands beside the tensors. `training`: None for the weights alone."""

    source: Source
    config: Config
    layout: Layout
    weights: dict[str, LazyTensor]
    training: TrainingState | None
    common: dict


def write(content: HandedBack, output: Output) -> dict:
    """Writes the files of all ranks that are not finished."""
    for stage in range(content.layout.pp_size):
        for tp_rank in range(content.layout.tp_size):
            suffix = f"_{stage:03d}" if content.layout.pp_size > 1 else ""
            rank = _Rank(content, tp_rank, stage)
            _write_rank(rank, output, f"mp_rank_{tp_rank:02d}{suffix}")
    return {}


class _Rank:
    """What one rank holds: `shapes` by local name, and where its tensors come from."""

    def __init__(self, content: HandedBack, tp_rank: int, stage: int):
        self.content, self.tp_rank, self.stage = content, tp_rank, stage
        self.model, self.layout = content.config.model, content.layout
        rows = content.weights[weights.WORD_EMBEDDING].shape[0]
        self.shapes: Shapes = chunk_shapes(self.model, self.layout, stage=stage, chunk=0, rows=rows)

    def cut(self, tensors: dict[str, LazyTensor], name: str) -> np.ndarray:
        """The bits of this rank's part of the tensor that is called `name` in its stage."""
        whole = tensors[self.global_name(name)].load()
        part = _part(whole, name, self.layout, self.tp_rank, gated=self.model.activation == "swiglu")
        assert part.shape == self.shapes[name], f"{name}: {part.shape}, not {self.shapes[name]}"
        return part

    def global_name(self, name: str) -> str:
        if name == weights.OUTPUT_LAYER and self.model.tie_embeddings:
            return weights.WORD_EMBEDDING
        if not name.startswith(weights.LAYERS):
            return name
        number, _, rest = name.removeprefix(weights.LAYERS).partition(".")
        first = self.stage * self.layout.num_layers(self.model, self.stage)
        return f"{weights.LAYERS}{first + int(number)}.{rest}"


def _part(whole: np.ndarray, name: str, layout: Layout, tp_rank: int, *, gated: bool) -> np.ndarray:
    if is_whole(name) or layout.tp_size == 1:
        return whole
    if name.endswith(COLUMNS):
        return np.ascontiguousarray(np.split(whole, layout.tp_size, axis=1)[tp_rank])
    if gated and "mlp.linear_fc1." in name:
        gate, up = np.split(whole, 2)
        return np.concatenate([np.split(half, layout.tp_size)[tp_rank] for half in (gate, up)])
    return np.split(whole, layout.tp_size)[tp_rank]


def _write_rank(rank: _Rank, output: Output, folder: str) -> None:
    (output.folder / folder).mkdir(exist_ok=True)
    training = rank.content.training
    if training is not None and training.is_sharded and f"{folder}/{STATE_FILE}" not in output.finished:
        with _scratch(output, len(KEYS) * 4 * _buffer_size(rank)) as scratch:
            _save(output, f"{folder}/{STATE_FILE}", _flat_state(rank, training, scratch))
    if f"{folder}/{FILE}" in output.finished:
        return
    elements = sum(math.prod(shape) for shape in rank.shapes.values())
    with _scratch(output, elements * (8 + (0 if training is None or training.is_sharded else 12))) as scratch:
        model = {
            _spelled(name, rank.layout): scratch.take(
                rank.cut(rank.content.weights, name), rank.content.weights[rank.global_name(name)].dtype
            )
            for name in rank.shapes
        }
        state = dict(rank.content.common) | {"model": model}
        if training is not None:
            state["optimizer"] = _optimizer(rank, training, scratch)
        _save(output, f"{folder}/{FILE}", state)


def _optimizer(rank: _Rank, training: TrainingState, scratch: "_Scratch") -> dict:
    """`optimizer` of a rank's file; without a distributed optimizer its tensors are in it."""
    import torch

    dtype, config = rank.content.source.dtype, rank.content.config
    common = training_state.optimizer_common(training, dtype, config)
    if training.is_sharded:
        return {name: value for name, value in common.items() if name != "param_state_sharding_type"}
    inner = common if dtype == "F32" else common["optimizer"]
    masters, number = [], 0
    inner["state"] = {}
    for group, decays in zip(inner["param_groups"], (True, False), strict=True):
        names = [n for n, s in rank.shapes.items() if decays == (len(s) > 1 and not n.endswith(".bias"))]
        group["params"] = list(range(number, number + len(names)))
        number += len(names)
        for index, name in zip(group["params"], names, strict=True):
            entry = {key: scratch.take(rank.cut(training.moments[key], name), "F32") for key in KEYS if key != MASTER}
            if not rank.layout.is_fused:  # torch's AdamW keeps it there, Transformer Engine's in the group
                entry["step"] = torch.tensor(float(training.optimizer_step))
            inner["state"][index] = entry
        if dtype != "F32":
            masters.append([scratch.take(rank.cut(training.moments[MASTER], name), "F32") for name in names])
    return common if dtype == "F32" else common | {"fp32_from_fp16_params": masters}


def _flat_state(rank: _Rank, training: TrainingState, scratch: "_Scratch") -> dict:
    """What megatron-core's `save_parameter_state` saves: the buffer of the rank's one model chunk."""
    import torch

    placed = _placed(rank)
    size = sum(bucket.size for bucket in placed)
    flat = {}
    for key in KEYS:
        target, first = scratch.room((size,), "F32"), 0
        for bucket in placed:
            for name, start in bucket.starts.items():
                bits = rank.cut(training.moments[key], name).reshape(-1)
                target[first + start : first + start + len(bits)] = bits
            first += bucket.size
        flat[key] = scratch.as_torch(target, "F32")
    param = getattr(torch, TORCH_NAMES[rank.content.source.dtype])
    gradients = param if param == torch.float16 else torch.float32  # as Megatron-LM reduces them by default
    return {"buckets_coalesced": True, 0: {(param, gradients): flat | {"numel_unpadded": size}}}


def _placed(rank: _Rank) -> list[buckets.Bucket]:
    is_copied = rank.model.tie_embeddings and rank.layout.pp_size > 1
    alone = (weights.WORD_EMBEDDING, weights.OUTPUT_LAYER) if is_copied else ()
    return buckets.place({n: math.prod(s) for n, s in rank.shapes.items()}, bucket_size=None, alone=alone)


def _buffer_size(rank: _Rank) -> int:
    return sum(bucket.size for bucket in _placed(rank))


def _spelled(name: str, layout: Layout) -> str:
    """A name as the module has it: where no linear holds the norm before it, the norm is a module of its own."""
    if not layout.is_fused:
        for alias, fused in weights.ALIASES.items():
            name = name.replace(fused, alias)
    return name


def _save(output: Output, name: str, state: dict) -> None:
    """Writes one file, compares what can be read back of it, and enters it."""
    import torch

    path = output.folder / name
    try:
        torch.save(state, path)
    except (OSError, RuntimeError) as error:  # torch's own is a RuntimeError
        raise CheckpointError(f"{path}: can't be written: {error}\n  fix: free space or permissions there") from error
    archive = TorchArchive(path)
    for place, tensor, ref in _pairs(name, state, archive.content(tolerant=True)):
        held = archive.tensor(ref, place) if isinstance(ref, TensorRef) else None
        if held is None or held.shape != tuple(tensor.shape) or not same_bits(held.load(), _bits(tensor)):
            raise CheckpointError(f"{path}: {place}: read back, differs from what was written")
    size, digest = size_and_hash(path, "xxh3")
    output.add(name, {"size": size, "xxh3": digest})
    log.info("%s: written and read back", name)


def _pairs(place: str, state: object, read: object) -> Iterator[tuple[str, "torch.Tensor", object]]:
    """(name, tensor, what was read in its place) of all tensors in nested containers."""
    import torch

    if isinstance(state, torch.Tensor):
        yield place, state, read
    elif isinstance(state, dict):
        values = list(read.values()) if isinstance(read, dict) else []
        for number, (key, value) in enumerate(state.items()):
            yield from _pairs(f"{place}.{key}", value, values[number] if number < len(values) else None)
    elif isinstance(state, list):
        for number, value in enumerate(state):
            yield from _pairs(f"{place}.{number}", value, read[number] if isinstance(read, list) else None)


def _bits(tensor: "torch.Tensor") -> np.ndarray:
    import torch

    widths = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    array = tensor.detach().view(widths[tensor.element_size()]).numpy()
    return array.view(f"u{tensor.element_size()}")


class _Scratch:
    """Room in a mapped file, taken piece by piece."""

    def __init__(self, room: np.ndarray):
        self._room, self._taken = room, 0

    def room(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Zeros in which a tensor's bits can be laid."""
        bits = bits_dtype(dtype)
        size = math.prod(shape) * bits.itemsize
        part = self._room[self._taken : self._taken + size].view(bits).reshape(shape)
        self._taken += -(-size // 8) * 8
        return part

    def take(self, bits: np.ndarray, dtype: str) -> "torch.Tensor":
        """A tensor of these bits whose memory is the file's."""
        target = self.room(bits.shape, dtype)
        target[...] = bits
        return self.as_torch(target, dtype)

    def as_torch(self, target: np.ndarray, dtype: str) -> "torch.Tensor":
        import torch

        signed = target.view(f"i{target.itemsize}")
        return torch.from_numpy(signed).view(getattr(torch, TORCH_NAMES[dtype]))


@contextmanager
def _scratch(output: Output, num_bytes: int) -> Iterator[_Scratch]:
    """A mapped file of that size in the output's folder, which is gone afterwards."""
    path: Path = output.folder / _SCRATCH
    size = num_bytes + (1 << 20)  # each piece begins at a multiple of 8
    output.check_space(2 * size)
    try:
        yield _Scratch(np.memmap(path, np.uint8, "w+", shape=(size,)))
    except OSError as error:
        raise cant_write(path, error) from error
    finally:
        path.unlink(missing_ok=True)
