"""Runs of ours saved as Megatron-LM saves its own, by megatron-core's classes, in each form of the optimizer."""

import argparse
from pathlib import Path

DIST = ("fully_reshardable", "dp_reshardable", "dp_zero_gather_scatter")
SAMPLES = 16  # consumed by the two steps of tests/convert/conftest.py's runs


def kind_settings(model) -> dict:
    """Megatron-LM's args that say what kind of model it is."""
    return {
        "group_query_attention": model.query_groups != model.num_attention_heads,
        "num_query_groups": model.query_groups,
        "position_embedding_type": model.position_embedding,
        "normalization": {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.normalization],
        "norm_epsilon": model.norm_epsilon,
        "swiglu": model.activation == "swiglu",
        "add_bias_linear": model.add_bias_linear,
        "untie_embeddings_and_output_weights": not model.tie_embeddings,
    }


def settings_of(model, parallel, precision, **more) -> dict:
    """Megatron-LM's args of a run of ours, as far as they are read."""
    return kind_settings(model) | {
        "num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "kv_channels": model.head_size,
        "max_position_embeddings": model.seq_length,
        "seq_length": model.seq_length,
        "rotary_base": model.rotary_base,
        "padded_vocab_size": model.padded_vocab_size,
        "make_vocab_size_divisible_by": model.vocab_multiple // parallel.tp_size,
        "tensor_model_parallel_size": parallel.tp_size,
        "pipeline_model_parallel_size": parallel.pp_size,
        "virtual_pipeline_model_parallel_size": parallel.vpp_size if parallel.vpp_size > 1 else None,
        "use_distributed_optimizer": parallel.distributed_optimizer,
        "transformer_impl": "local",
        "optimizer": "adam",
        "bf16": precision.dtype == "bf16",
        "consumed_train_samples": SAMPLES,
        "seed": 1234,
        **more,
    }


def save(info, native: str, folder: str, form: str, parallel: dict | None = None, args: dict | None = None) -> None:
    """Loads the native checkpoint and saves it as `form`: of DIST, `unsharded` (torch_dist), or `torch`."""
    from megatron_sky.checkpoint import state
    from megatron_sky.checkpoint.description import read_description
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context
    from megatron_sky.model.build import build_model
    from megatron_sky.optim.build import build_optimizer

    config = read_description(Path(native)).config
    layout = config.parallel if parallel is None else ParallelConfig(**parallel)
    with open_context(layout, info) as context:
        built = build_model(
            config.model, parallel=layout, precision=config.precision, train=config.train, context=context, init=False
        )
        optimizer = build_optimizer(
            config.optimizer, schedule=config.schedule, parallel=layout, precision=config.precision, chunks=built.chunks
        )
        state.load(Path(native), context=context, chunks=built.chunks, optimizer=optimizer)
        settings = settings_of(config.model, layout, config.precision, **args or {})
        common = {"args": argparse.Namespace(**settings), "checkpoint_version": 3.0, "iteration": 2}
        common["opt_param_scheduler"] = {"num_steps": SAMPLES, "max_lr": config.schedule.lr}
        write = _write_files if form == "torch" else _write_dist
        write(Path(folder), form, common, built.chunks, optimizer, context)


def _write_dist(folder: Path, form: str, common: dict, chunks, optimizer, context) -> None:
    from megatron.core import dist_checkpointing

    metadata = {"chained_optim_avoid_prefix": True, "singleton_local_shards": False}
    if form != "unsharded":
        metadata["distrib_optim_sharding_type"] = form
    with_group = metadata | {"dp_cp_group": context.dp_cp_group}
    models = {_key(n, chunks): chunk.module.sharded_state_dict(metadata=with_group) for n, chunk in enumerate(chunks)}
    weights = models if len(chunks) > 1 else models["model"]
    held = {"optimizer": optimizer.sharded_state_dict(weights, metadata=with_group)}
    folder.mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(common | models | held, str(folder), content_metadata=metadata)


def _write_files(folder: Path, form: str, common: dict, chunks, optimizer, context) -> None:
    import torch

    place, layout = context.place, context.layout
    stage = f"_{place.pp_rank:03d}" if layout.pp_size > 1 else ""
    path = folder / f"mp_rank_{place.tp_rank:02d}{stage}" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    if common["args"].use_distributed_optimizer:
        optimizer.save_parameter_state(str(path.parent / "distrib_optim.pt"))
    if context.dp_cp_group.rank() == 0:
        models = {_key(n, chunks): chunk.module.state_dict_for_save_checkpoint() for n, chunk in enumerate(chunks)}
        torch.save(common | models | {"optimizer": optimizer.state_dict()}, path)
    torch.distributed.barrier()


def _key(number: int, chunks) -> str:
    return "model" if len(chunks) == 1 else f"model{number}"
