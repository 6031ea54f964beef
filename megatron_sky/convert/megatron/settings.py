"""The `args` that Megatron-LM expects in a checkpoint, of a checkpoint of ours: what `--use-checkpoint-args` reads of
the model, and what its loader asks of layout, optimizer and progress. The counterpart of `args`, which reads them."""

import argparse

from megatron_sky.config import Config
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.megatron.ranks import Layout
from megatron_sky.errors import CheckpointError

_STYLES = {"wsd": "WSD"}
_NORMS = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}


def args_of(
    config: Config,
    layout: Layout,
    *,
    rows: int,
    consumed_samples: int,
    step: int,
    is_sharded: bool,
    with_optimizer: bool,
    checkpoint_format: str,
) -> argparse.Namespace:
    """`rows`: of the embedding, padding included. Raises CheckpointError for a model Megatron-LM has not."""
    import torch

    dtype = config.precision.dtype
    world_size = layout.tp_size * layout.pp_size
    values = model_args(config.model) | {
        "padded_vocab_size": rows,
        "make_vocab_size_divisible_by": config.model.vocab_multiple,
        "tensor_model_parallel_size": layout.tp_size,
        "pipeline_model_parallel_size": layout.pp_size,
        "virtual_pipeline_model_parallel_size": None,
        "context_parallel_size": 1,
        "expert_model_parallel_size": 1,
        "world_size": world_size,
        "data_parallel_size": 1,
        "transformer_impl": "transformer_engine" if layout.is_fused else "local",
        "bf16": dtype == "bf16",
        "fp16": dtype == "fp16",
        "params_dtype": {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype],
        "use_distributed_optimizer": is_sharded,
        "optimizer": "adam",
        "decoupled_weight_decay": True,
        "no_save_optim": None if with_optimizer else True,
        "no_save_rng": True,
        "ckpt_format": checkpoint_format,
        "ckpt_fully_parallel_save": True,
        "iteration": step,
        "consumed_train_samples": consumed_samples,
        "skipped_train_samples": 0,
        "consumed_valid_samples": 0,
    }
    return argparse.Namespace(**values, **training_args(config))


def model_args(model: ModelConfig) -> dict:
    """The model's shape and functions."""
    scaling = model.rope_scaling
    if scaling is not None and scaling.kind not in ("linear", "llama3"):
        raise CheckpointError(f"model.rope_scaling.kind = {scaling.kind!r}: Megatron-LM has no argument for it")
    is_linear = scaling is not None and scaling.kind == "linear"
    is_llama3 = scaling is not None and scaling.kind == "llama3"
    return {
        "num_layers": model.num_layers,
        "encoder_num_layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "ffn_hidden_size": model.ffn_hidden_size,
        "num_attention_heads": model.num_attention_heads,
        "group_query_attention": model.query_groups != model.num_attention_heads,
        "num_query_groups": model.query_groups,
        "kv_channels": model.head_size,
        "seq_length": model.seq_length,
        "encoder_seq_length": model.seq_length,
        "max_position_embeddings": model.seq_length,
        "position_embedding_type": model.position_embedding,
        "add_position_embedding": True,
        "use_rotary_position_embeddings": False,
        "rotary_base": int(model.rotary_base) if float(model.rotary_base).is_integer() else model.rotary_base,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "rotary_seq_len_interpolation_factor": scaling.factor if scaling is not None and is_linear else None,
        "use_rope_scaling": is_llama3,
        "rope_scaling_factor": scaling.factor if scaling is not None and is_llama3 else 8.0,
        "normalization": _NORMS[model.normalization],
        "norm_epsilon": model.norm_epsilon,
        "layernorm_epsilon": model.norm_epsilon,
        "apply_layernorm_1p": False,
        "layernorm_zero_centered_gamma": False,
        "apply_query_key_layer_scaling": False,
        "swiglu": model.activation == "swiglu",
        "squared_relu": False,
        "openai_gelu": False,
        "bias_gelu_fusion": model.activation == "gelu",
        "add_bias_linear": model.add_bias_linear,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "untie_embeddings_and_output_weights": not model.tie_embeddings,
        "hidden_dropout": model.hidden_dropout,
        "attention_dropout": model.attention_dropout,
        "init_method_std": model.init_std,
        "num_experts": None,
        "multi_latent_attention": False,
        "spec": None,
    }


def training_args(config: Config) -> dict:
    """Batch, budget, rates and seeds; for who reads the checkpoint, since Megatron-LM takes its script's."""
    train, schedule, optimizer = config.train, config.schedule, config.optimizer
    per_step = config.model.seq_length * train.global_batch_size
    return {
        "micro_batch_size": train.micro_batch_size,
        "global_batch_size": train.global_batch_size,
        "train_iters": -(-train.tokens // per_step),
        "lr": schedule.lr,
        "min_lr": schedule.min_lr,
        "lr_decay_style": _STYLES.get(schedule.style, schedule.style),
        "weight_decay": optimizer.weight_decay,
        "adam_beta1": optimizer.adam_beta1,
        "adam_beta2": optimizer.adam_beta2,
        "adam_eps": optimizer.adam_eps,
        "clip_grad": optimizer.clip_grad,
        "seed": config.data.seed,
    }


def scheduler_of(config: Config, consumed_samples: int) -> dict:
    """`opt_param_scheduler`: the recipe's schedule in samples, as Megatron-LM counts it.

    Megatron-LM compares each value with its script's and stops where one differs, unless the script overrides.
    """
    schedule, train, length = config.schedule, config.train, config.model.seq_length
    per_step = length * train.global_batch_size
    whole = -(-train.tokens // per_step) * train.global_batch_size
    decay = config.optimizer.weight_decay
    return {
        "max_lr": schedule.lr,
        "lr_warmup_steps": schedule.warmup_tokens // length,
        "num_steps": consumed_samples,
        "lr_decay_style": _STYLES.get(schedule.style, schedule.style),
        "lr_decay_steps": whole if schedule.decay_tokens is None else schedule.decay_tokens // length,
        "min_lr": schedule.min_lr,
        "start_wd": decay,
        "end_wd": decay,
        "wd_incr_style": "constant",
        "wd_incr_steps": whole,
    }
