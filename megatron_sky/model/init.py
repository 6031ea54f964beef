"""Initial weights drawn by global name, so that they are equal in every layout.

megatron-core's own initialisation restarts a generator on each rank, which makes a weight depend on the rank that
holds it. Here each whole tensor is drawn from a generator seeded by its checkpoint key and layer, and each rank keeps
its part. Traded: a rank draws whole tensors one at a time (0.5 GB at most for a 13 B model) and keeps a share.

Normal with model.init_std; the layers that write to the residual stream use init_std / sqrt(2 * num_layers)
(Radford et al. 2019, section 2.3). Norms keep their ones, biases their zeros.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from megatron_sky.config.schema import ModelConfig
from megatron_sky.distributed.seeding import tensor_seed

if TYPE_CHECKING:
    from megatron.core.dist_checkpointing.mapping import ShardedTensor
    from megatron.core.models.gpt import GPTModel

_WRITES_TO_RESIDUAL = ("linear_proj.weight", "linear_fc2.weight")


@torch.no_grad()
def init_weights(chunks: "Sequence[GPTModel]", model: ModelConfig, seed: int) -> None:
    """Fills the weights of `chunks` (this rank's GPTModels, before DDP wraps them) in place."""
    for chunk in chunks:
        for shard in _shards(chunk.sharded_state_dict()):
            if _is_weight(shard):
                shard.data.copy_(_draw(shard, _std(shard.key, model), seed))


def _is_weight(shard) -> bool:
    names_norm = "norm" in shard.key.rsplit(".", 2)[-2] + shard.key.rsplit(".", 1)[-1]
    return shard.data.is_floating_point() and not names_norm and not shard.key.endswith("bias")


def _std(key: str, model: ModelConfig) -> float:
    if key.endswith(_WRITES_TO_RESIDUAL):
        return model.init_std / math.sqrt(2 * model.num_layers)
    return model.init_std


def _draw(shard, std: float, seed: int):
    """This rank's part of the whole tensor; leading axes (the layer) choose the generator."""
    lead = shard.prepend_axis_num
    generator = torch.Generator(device=shard.data.device)
    generator.manual_seed(tensor_seed(seed, f"{shard.key}/{tuple(shard.global_offset[:lead])}"))
    whole = torch.empty(shard.global_shape[lead:], dtype=torch.float32, device=shard.data.device)
    whole.normal_(0.0, std, generator=generator)
    part = zip(shard.global_offset[lead:], shard.data.shape[-len(whole.shape) :], strict=True)
    return whole[tuple(slice(offset, offset + length) for offset, length in part)].view(shard.data.shape)


def _shards(state: dict) -> "Iterator[ShardedTensor]":
    """Every ShardedTensor of a sharded state dict, factories built (they hand out views of the parameters)."""
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory

    for value in nested_values(state):
        if isinstance(value, ShardedTensorFactory):
            yield from _shards(value.build())
        elif isinstance(value, ShardedTensor):
            yield value
