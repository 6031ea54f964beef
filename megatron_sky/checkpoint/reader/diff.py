"""How two native checkpoints differ, tensor by tensor, without building the model."""

from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.description import CheckpointDescription, read_description
from megatron_sky.checkpoint.reader.lazy import LazyTensor, as_float32
from megatron_sky.checkpoint.reader.torch_dist import read_stored, weight_tensors
from megatron_sky.records import flattened


def differences(first: Path, second: Path) -> list[str]:
    """A line for each differing key of recipe and progress, and for each differing weight; empty where all is equal."""
    a, b = read_description(first), read_description(second)
    lines = [*_values("recipe", _recipe(a), _recipe(b)), *_values("progress", a.progress, b.progress)]
    weights_a, weights_b = (weight_tensors(folder, read_stored(folder)) for folder in (first, second))
    for name in sorted(weights_a.keys() | weights_b.keys()):
        if name not in weights_a or name not in weights_b:
            lines.append(f"weight {name}: only in {first if name in weights_a else second}")
        elif line := _weight(name, weights_a[name], weights_b[name]):
            lines.append(line)
    return lines


def _recipe(saved: CheckpointDescription) -> dict:
    return flattened(saved.config.model_dump(mode="json"))


def _values(kind: str, a: dict, b: dict) -> list[str]:
    return [f"{kind} {key}: {a.get(key)!r} | {b.get(key)!r}" for key in sorted(a | b) if a.get(key) != b.get(key)]


def _weight(name: str, a: LazyTensor, b: LazyTensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"weight {name}: {a.dtype} {list(a.shape)} | {b.dtype} {list(b.shape)}"
    bits_a, bits_b = a.load(), b.load()
    if np.array_equal(bits_a, bits_b):
        return ""
    difference = np.abs(as_float32(bits_a, a.dtype) - as_float32(bits_b, b.dtype))
    count = np.count_nonzero(difference)
    return f"weight {name}: largest difference {difference.max():.3g}, in {count:,} of {difference.size:,} numbers"
