"""Adapters and the model beneath them: merged into its weights, or written in PEFT's format.

A checkpoint of adapters names its base; `beneath` finds and proves it. Merged weights are computed one at a time, in
float32, when they are read: W + (alpha / rank) B A, rounded once to W's number format.

PEFT has an adapter for each of q, k and v, and of gate and up, where here one adapter serves the linear that holds them
together: each of PEFT's gets all of A and its own rows of B, which is the same sum.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.description import CheckpointDescription, check_same_base, read_description
from megatron_sky.checkpoint.reader import torch_dist, weights
from megatron_sky.checkpoint.reader.index import MAX_BYTES, METADATA
from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES, LazyTensor, as_float32
from megatron_sky.config.schema import LoraConfig
from megatron_sky.convert.huggingface import families
from megatron_sky.errors import CheckpointError
from megatron_sky.files import json_text, read_bytes, remove_tree, write_text

PREFIX = "adapters."
HALVES = ("lora_a", "lora_b")


def identity_of(folder: Path) -> str:
    """By which a native checkpoint is known again, wherever it lies: a hash of what holds the hashes of its files."""
    digest = hashlib.sha256()
    for name in (store.MANIFEST, METADATA):
        digest.update(read_bytes(folder / name, MAX_BYTES))
    return digest.hexdigest()


def beneath(held: CheckpointDescription, base: Path | None) -> Path:
    """The folder of the model beneath the adapters `held`; `base`: where it lies now. Raises CheckpointError."""
    assert held.adapter is not None, "it holds adapters"
    folder = Path(held.adapter.path) if base is None else base
    if not store.is_checkpoint(folder):
        raise CheckpointError(
            f"{held.folder}: holds adapters alone, and the model beneath is not in {folder}\n"
            "  fix: bring it back, or give its folder with --base"
        )
    check_same_base(held, identity_of(folder), folder)
    return folder


def lora_of(held: CheckpointDescription) -> LoraConfig:
    """The settings of the adapters `held`."""
    lora = held.config.finetune.lora if held.config.finetune else None
    if lora is None:
        raise CheckpointError(f"{held.folder}: holds adapters, and its recipe has no finetune.lora")
    return lora


def read_adapters(folder: Path) -> dict[str, dict[str, LazyTensor]]:
    """Weight (`decoder.layers.3.mlp.linear_fc2.weight`) -> `lora_a`, `lora_b`. Raises CheckpointError."""
    pairs: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in torch_dist.weight_tensors(folder, torch_dist.read_stored(folder)).items():
        place, _, half = name.removeprefix(PREFIX).rpartition(".")
        if not name.startswith(PREFIX) or half not in HALVES:
            raise CheckpointError(f"{folder}: holds {name}, which is no adapter's")
        pairs.setdefault(f"{weights.LAYERS}{place}.weight", {})[half] = tensor
    if lacking := [name for name, pair in pairs.items() if len(pair) < len(HALVES)]:
        raise CheckpointError(f"{folder}: the adapter of {lacking[0]} lacks one of its halves")
    return pairs


def merged(held: CheckpointDescription, base: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The weights `base` with the adapters `held` in them, and rows for the tokens that are new since the base."""
    scale, pairs = lora_of(held).scale, read_adapters(held.folder)
    if unknown := pairs.keys() - base.keys():
        raise CheckpointError(f"{held.folder}: the model beneath has no {min(unknown)}")
    assert held.adapter is not None, "it holds adapters"
    first, end = held.adapter.num_tokens, held.config.model.vocab_size
    result = {
        name: _with_adapter(tensor, pairs[name], scale) if name in pairs else tensor for name, tensor in base.items()
    }
    for name in weights.VOCABULARY_ROWS:
        if name in result and end > first:
            result[name] = _with_new_rows(result[name], first, end)
    return result


def check_merge(path: Path, *, merge: bool) -> None:
    """Raises CheckpointError where adapters would be merged and nobody asked for it, or asked for what can't be."""
    checkpoints = store.list_checkpoints(path) if path.is_dir() else []
    folder = checkpoints[-1][1] if checkpoints else path
    has_adapters = store.is_checkpoint(folder) and read_description(folder).adapter is not None
    if has_adapters and not merge:
        raise CheckpointError(
            f"{folder}: holds adapters alone\n  fix: --merge writes the model with them in its weights; "
            "`megatron-sky convert to-peft` writes them by themselves"
        )
    if merge and not has_adapters:
        raise CheckpointError(f"{folder}: holds no adapters to merge\n  fix: leave --merge out")


def _with_adapter(tensor: LazyTensor, pair: dict[str, LazyTensor], scale: float) -> LazyTensor:
    def load() -> np.ndarray:
        a, b = (as_float32(pair[half].load(), pair[half].dtype) for half in HALVES)
        return _bits(as_float32(tensor.load(), tensor.dtype) + scale * (b @ a), tensor.dtype)

    shape = (pair["lora_b"].shape[0], pair["lora_a"].shape[1])
    if shape != tensor.shape:
        raise CheckpointError(
            f"{pair['lora_a'].place}: is an adapter of {list(shape)}, the weight {list(tensor.shape)}"
        )
    return replace(tensor, load=load)


def _with_new_rows(tensor: LazyTensor, first: int, end: int) -> LazyTensor:
    """The mean of the rows before, as `trainer.finetune` fills them."""

    def load() -> np.ndarray:
        bits = tensor.load().copy()
        mean = as_float32(bits[:first], tensor.dtype).mean(axis=0, dtype=np.float64)
        bits[first:end] = _bits(mean.astype(np.float32), tensor.dtype)
        return bits

    return replace(tensor, load=load)


def _bits(values: np.ndarray, dtype: str) -> np.ndarray:
    """The bits of float32 `values`, rounded to nearest in a number format of weights."""
    import torch

    whole = {8: torch.int64, 4: torch.int32, 2: torch.int16}
    target = getattr(torch, TORCH_NAMES[dtype])
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(target)
    bits = rounded.view(whole[rounded.element_size()]).numpy()
    return bits.view(f"u{bits.itemsize}")


def write_peft(folder: Path, out: Path, *, base_model: str | None = None) -> int:
    """Writes the adapters of the checkpoint `folder` as PEFT's adapter_config.json and adapter_model.safetensors.

    `base_model`: what PEFT is to load them on, a Hugging Face folder or name. Returns the number of parameters. Raises
    CheckpointError; then `out` isn't there.
    """
    from safetensors.numpy import save_file

    held = read_description(folder)
    if held.adapter is None:
        raise CheckpointError(f"{folder}: holds no adapters\n  fix: `megatron-sky convert to-hf` exports all weights")
    architecture = families.architecture_for(held.config.model)
    if architecture != families.LLAMA:
        raise CheckpointError(f"{folder}: adapters of {architecture} can't be exported\n  fix: convert to-hf --merge")
    if out.exists():
        raise CheckpointError(f"{out}: is there already\n  fix: choose another folder")
    lora, tensors = lora_of(held), {}
    for name, pair in read_adapters(folder).items():
        a, b = (as_float32(pair[half].load(), pair[half].dtype) for half in HALVES)
        rule = families.rule_for(name, held.config.model, architecture)
        for named, rows in zip(rule.names, families.rows_of(name, b, held.config.model), strict=True):
            stem = f"base_model.model.{named.removesuffix('.weight')}"
            tensors[f"{stem}.lora_A.weight"] = np.ascontiguousarray(a)
            tensors[f"{stem}.lora_B.weight"] = np.ascontiguousarray(rows)
    modules = sorted({name.split(".")[-3] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model or "",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, partial / "adapter_model.safetensors", metadata={"format": "pt"})
        write_text(partial / "adapter_config.json", json_text(config, indent=2) + "\n")
        partial.rename(out)
    finally:
        if partial.exists():
            remove_tree(partial)
    return sum(tensor.size for tensor in tensors.values())
