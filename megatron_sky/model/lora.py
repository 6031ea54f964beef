"""Low-rank adapters on megatron-core's parallel linears, equal in every layout.

    W x + (alpha / rank) B A x        A: [rank, inputs], B: [outputs, rank]

A column-parallel linear has rows of B on each rank and all of A; a row-parallel one has columns of A and all of B. What
lies between the two, `[s, b, rank]`, is all that an adapter sends: it is gathered (sequence parallelism) or summed over
the tensor-parallel ranks where the linear's own input or output would be. A rank's gradient of the half that all ranks
hold is whole, but under sequence parallelism, where it is a part and megatron-core sums it (`sequence_parallel`).

PEFT has layers for megatron-core of its own. They don't serve here: under sequence parallelism the gradients of the
half that all ranks hold stay unsummed, so that the ranks' copies drift apart; the halves are drawn by each rank for
itself; and they have no sharded state, so that no checkpoint of another layout could be loaded. `convert to-peft`
writes what PEFT loads.

A is uniform in +-1/sqrt(inputs) as in PEFT, drawn by global name as all weights are (`model.init`); B is zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
import torch.nn.functional as F

from megatron_sky.config.schema import LoraConfig
from megatron_sky.distributed.seeding import tensor_seed

if TYPE_CHECKING:
    from megatron.core.transformer import MegatronModule
    from torch.distributed import ProcessGroup

NAME = "adapter"  # of the module within its linear
PLACES = {
    "linear_qkv": "self_attention.linear_qkv",
    "linear_proj": "self_attention.linear_proj",
    "linear_fc1": "mlp.linear_fc1",
    "linear_fc2": "mlp.linear_fc2",
}
COLUMN_PARALLEL = ("linear_qkv", "linear_fc1")


class Linear(Protocol):
    """What is asked of megatron-core's ColumnParallelLinear and RowParallelLinear."""

    weight: torch.Tensor
    tp_group: "ProcessGroup"
    sequence_parallel: bool


class Adapter(torch.nn.Module):
    """The two halves of an adapter, of which this rank holds what its linear's layout gives it."""

    group: "ProcessGroup"

    def __init__(self, linear: "Linear", *, lora: LoraConfig, is_column: bool):
        super().__init__()
        weight = linear.weight
        outputs, inputs = weight.shape
        self.is_column, self.group = is_column, linear.tp_group
        self.splits_sequence = bool(linear.sequence_parallel)
        self.scale, self.dropout = lora.scale, lora.dropout
        self.lora_a = torch.nn.Parameter(weight.new_zeros(lora.rank, inputs))
        self.lora_b = torch.nn.Parameter(weight.new_zeros(outputs, lora.rank))
        self._mark(self.splits_sequence)

    def _mark(self, sequence_parallel: bool) -> None:
        """megatron-core asks of a parameter whether ranks hold parts of it, or have parts of its gradient."""
        from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes

        whole, part, axis = (self.lora_a, self.lora_b, 0) if self.is_column else (self.lora_b, self.lora_a, 1)
        set_tensor_model_parallel_attributes(part, True, axis, 1)
        vars(whole)["sequence_parallel"] = sequence_parallel

    @property
    def parts(self) -> int:
        return self.group.size()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What is added to the linear's output, `[s, b, outputs]` of this rank."""
        from megatron.core.tensor_parallel import mappings

        between = F.linear(self._dropped(x), self.lora_a)
        if self.is_column and self.splits_sequence:
            between = mappings.gather_from_sequence_parallel_region(between, group=self.group)
        elif self.is_column:
            between = mappings.copy_to_tensor_model_parallel_region(between, group=self.group)
        elif self.splits_sequence:
            between = mappings.reduce_scatter_to_sequence_parallel_region(between, group=self.group)
        else:
            between = mappings.reduce_from_tensor_model_parallel_region(between, group=self.group)
        return F.linear(between, self.lora_b) * self.scale

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        """Where all ranks hold the same input they drop the same of it."""
        if not self.dropout or not self.training:
            return x
        if self.is_column and not self.splits_sequence:
            return F.dropout(x, self.dropout)
        from megatron.core.tensor_parallel.random import get_cuda_rng_tracker

        with get_cuda_rng_tracker().fork():
            return F.dropout(x, self.dropout)


@dataclass(frozen=True)
class Placed:
    """An adapter, its layer in the whole model counted from 0, and its linear's name within the layer."""

    adapter: Adapter
    layer: int
    place: str

    @property
    def key(self) -> str:
        """Its name in checkpoints, the same in every layout."""
        return f"adapters.{self.layer}.{self.place}"


def attach(chunks: "Sequence[MegatronModule]", lora: LoraConfig, seed: int) -> None:
    """Gives each target of `chunks` (bare, before DDP wraps them) an adapter, and freezes everything else."""
    for chunk in chunks:
        chunk.requires_grad_(False)
        for layer in chunk.decoder.layers:
            for target in lora.targets:
                linear = layer.get_submodule(PLACES[target])
                made = Adapter(
                    cast(Linear, linear), lora=lora, is_column=target in COLUMN_PARALLEL
                )  # a module by its kind's fields
                linear.add_module(NAME, made)
                linear.register_forward_hook(_add)
        for placed in adapters_of(chunk):
            _draw(placed, seed)
        if chunk.pre_process and chunk.config.recompute_granularity == "full":
            # A recomputed layer has gradients where its input has: of a frozen embedding's output it would have none.
            chunk.embedding.register_forward_hook(lambda module, given, output: output.requires_grad_())


def _add(linear: torch.nn.Module, given: tuple, result: tuple) -> tuple:
    """The linear's forward hook."""
    output, bias = result
    return output + linear.get_submodule(NAME)(given[0]), bias


def adapters_of(chunk: torch.nn.Module) -> Iterator[Placed]:
    """Every adapter of a model chunk, in the order of its layers; none where it has none."""
    bare: Any = chunk  # GPTModel, as megatron-core has no types
    while not hasattr(bare, "decoder"):
        bare = bare.module
    for layer in bare.decoder.layers:
        for place in PLACES.values():
            adapter = getattr(layer.get_submodule(place), NAME, None)
            if isinstance(adapter, Adapter):
                yield Placed(adapter, layer.layer_number - 1, place)


@torch.no_grad()
def _draw(placed: Placed, seed: int) -> None:
    """A of one adapter: this rank's part of a whole that is the same in every layout."""
    part, is_split = placed.adapter.lora_a, not placed.adapter.is_column
    if part.is_meta:
        return
    parts, rank = (placed.adapter.parts, placed.adapter.group.rank()) if is_split else (1, 0)
    inputs = part.shape[1] * parts
    generator = torch.Generator(device=part.device)
    generator.manual_seed(tensor_seed(seed, f"{placed.key}.lora_a"))
    whole = torch.empty(part.shape[0], inputs, dtype=torch.float32, device=part.device)
    whole.uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
    part.copy_(whole[:, rank * part.shape[1] : (rank + 1) * part.shape[1]])
