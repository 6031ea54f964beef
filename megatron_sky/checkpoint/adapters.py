"""Adapters in a checkpoint: saved alone, whole in every layout, under names of their own.

A checkpoint of a run that trains adapters holds them and their optimizer's state, and not the weights beneath, which it
names (`train_state.json`, docs/formats.md).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError
from megatron_sky.model.lora import NAME, Placed, adapters_of

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
    from megatron.core.transformer import MegatronModule

STATE = "adapters"  # the part of a checkpoint's state that they are
_WITHIN = f".{NAME}."


def sharded_adapters(chunks: "Sequence[MegatronModule]", context: ParallelContext) -> dict:
    """Every adapter's halves as megatron-core saves them, by their keys; empty where the model has none."""
    gated = chunks[0].config.gated_linear_unit
    return {
        f"{placed.key}.{half}": _sharded(placed, half, context, is_gated=gated)
        for chunk in chunks
        for placed in adapters_of(chunk)
        for half in ("lora_a", "lora_b")
    }


def _sharded(
    placed: Placed, half: str, context: ParallelContext, *, is_gated: bool
) -> "ShardedTensor | ShardedTensorFactory":
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.transformer.mlp import apply_swiglu_sharded_factory

    adapter = placed.adapter
    is_split = adapter.is_column == (half == "lora_b")
    rank, copy = adapter.group.rank(), context.dp_cp_group.rank()
    offsets = [(0 if half == "lora_b" else 1, rank, adapter.parts)] if is_split else []
    whole = ShardedTensor.from_rank_offsets(
        f"{placed.key}.{half}", getattr(adapter, half), *offsets, replica_id=(0, 0 if is_split else rank, copy)
    )
    if half == "lora_b" and is_gated and placed.place.endswith("linear_fc1"):  # a rank holds rows of both its halves
        return apply_swiglu_sharded_factory(whole, (), False)
    return whole


def fill_adapters(chunks: "Sequence[MegatronModule]", loaded: dict) -> None:
    """Takes over what was loaded as `sharded_adapters` asks for it."""
    for chunk in chunks:
        for placed in adapters_of(chunk):
            for half in ("lora_a", "lora_b"):
                getattr(placed.adapter, half).copy_(loaded[f"{placed.key}.{half}"])


def check_holds_model(keys: Iterable[str], folder: Path) -> None:
    """Raises CheckpointError where the tensors `keys` of the checkpoint `folder` are adapters' alone."""
    if any(key.startswith(f"{STATE}.") for key in keys):
        raise CheckpointError(
            f"{folder}: holds adapters alone, and not the model beneath\n"
            f"  fix: `megatron-sky convert to-hf {folder} OUT --merge`, and give OUT"
        )


def without_adapters(state: dict) -> dict:
    """A model's state but for its adapters'."""
    return {name: value for name, value in state.items() if _WITHIN not in name}
