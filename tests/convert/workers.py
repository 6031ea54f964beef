"""What the ranks of a test do: train, compute logits, write Megatron-LM's own layout."""

import argparse
from pathlib import Path

TOKENS = list(range(3, 35))  # one sequence of the tests' context length


def train(info, path: str, overrides: tuple[str, ...] = ()) -> None:
    """Trains the recipe in `path`, as `megatron-sky train` does."""
    from megatron_sky.config import load_config
    from megatron_sky.trainer.run import train as run

    run(load_config([Path(path)], list(overrides)), info)


def logits(info, folder: str):
    """`[s, V]` of TOKENS by megatron-core's GPTModel, filled by the program's own loader, padding cut off."""
    import torch

    from megatron_sky.checkpoint import state
    from megatron_sky.checkpoint.description import read_description
    from megatron_sky.config.schema import ParallelConfig, PrecisionConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model

    config = read_description(Path(folder)).config
    with open_context(ParallelConfig(), info) as context:
        built = build_model(
            config.model.model_copy(update={"hidden_dropout": 0.0, "attention_dropout": 0.0}),
            parallel=ParallelConfig(),
            precision=PrecisionConfig(dtype="fp32"),
            train=config.train,
            context=context,
            ddp=False,
            init=False,
        )
        state.load(Path(folder), context=context, chunks=built.chunks)
        tokens = torch.tensor([TOKENS])
        positions = torch.arange(len(TOKENS))[None]
        with torch.no_grad():
            out = built.chunks[0].eval()(tokens, positions, None)
        return out[0, :, : config.model.vocab_size].float().numpy()


def save_as_megatron(info, folder: str, settings: dict, model: dict, spelling: str) -> None:
    """A torch_dist folder as Megatron-LM saves it, by megatron-core's public API: its args, its names, an optimizer.

    `spelling`: `fused` (norms under the linear that follows), `te` (with Transformer Engine's extra states), `separate`
    (norms of their own), `numbered` (each layer a tensor of its own, as for layers that are not all alike).
    """
    import torch

    from megatron_sky.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, TrainConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model

    parallel = ParallelConfig(tp_size=settings["tensor_model_parallel_size"])
    with open_context(parallel, info) as context:
        from megatron.core import dist_checkpointing

        built = build_model(
            ModelConfig(**model),
            parallel=parallel,
            precision=PrecisionConfig(dtype="fp32"),
            train=TrainConfig(run_dir="none", tokens=1, global_batch_size=1),
            context=context,
            ddp=False,
        )
        for name, parameter in built.chunks[0].named_parameters():
            if "norm" in name:
                generator = torch.Generator().manual_seed(len(name) + int("".join(filter(str.isdigit, name)) or 0))
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        state = {
            "args": argparse.Namespace(**settings, callback=Unknown(), params_dtype=torch.float32),
            "checkpoint_version": 3.0,
            "iteration": 7,
            "model": _spelled(built.chunks[0].sharded_state_dict(), spelling, context.place.tp_rank),
            "optimizer": _optimizer(context),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        dist_checkpointing.save(state, folder)


class Unknown:
    """A class of the training program, which a converter can't import and must not need."""


def _spelled(state: dict, spelling: str, tp_rank: int) -> dict:
    from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor

    if spelling == "te":
        state["decoder.final_layernorm._extra_state"] = ShardedObject(
            "decoder.final_layernorm._extra_state", None, (1,), (0,), replica_id=(0, tp_rank, 0)
        )
    for value in _sharded(state):
        if spelling == "separate":
            value.key = value.key.replace("self_attention.linear_qkv.layer_norm_", "input_layernorm.")
            value.key = value.key.replace("mlp.linear_fc1.layer_norm_", "pre_mlp_layernorm.")
        if spelling == "numbered" and isinstance(value, ShardedTensor) and value.prepend_axis_num == 1:
            value.key = value.key.replace("decoder.layers.", f"decoder.layers.{value.global_offset[0]}.")
            value.prepend_axis_num = 0
            value.global_shape, value.global_offset = value.global_shape[1:], value.global_offset[1:]
            if value.axis_fragmentations is not None:
                value.axis_fragmentations = value.axis_fragmentations[1:]
    return state


def _sharded(state: dict):
    from megatron.core.dist_checkpointing.dict_utils import nested_values
    from megatron.core.dist_checkpointing.mapping import ShardedTensorFactory

    for name, value in list(state.items()):
        if isinstance(value, ShardedTensorFactory):
            state[name] = value.build()  # gate and up, before they get their final names
    yield from nested_values(state)


def _optimizer(context) -> dict:
    import torch
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    moments = torch.zeros(1000)
    return {
        "exp_avg": ShardedTensor.from_rank_offsets(
            "optimizer.state.exp_avg.output_layer.weight", moments, (0, context.rank, context.world_size)
        )
    }
