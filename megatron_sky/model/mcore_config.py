"""The one place that spells megatron-core's field names: the recipe's sections in, megatron-core's configs out."""

from typing import TYPE_CHECKING

from megatron_sky.config.schema import (
    Fp8Config,
    KernelsConfig,
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    import torch
    from megatron.core.distributed import DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig
    from megatron.core.transformer import TransformerConfig


def torch_dtype(precision: PrecisionConfig) -> "torch.dtype":
    """The torch dtype of weights and activations."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision.dtype]


def transformer_config(
    model: ModelConfig,
    *,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    train: TrainConfig,
    kernels: KernelsConfig,
    on_gpu: bool,
    backend: str,
) -> "TransformerConfig":
    """Weights are left unset: `model.init` draws them by global name.

    Its initialisation still runs, with functions that do nothing, since it alone marks the tensor-parallel parameters.

    Longer than 60 lines: a name of megatron-core's on each, and what of the recipe it is.
    """
    import torch.nn.functional as F
    from megatron.core.transformer import TransformerConfig

    dtype = torch_dtype(precision)
    interleaved = parallel.vpp_size > 1
    # megatron-core's fused GELU, the tanh form, needs a compiler and a bias, and asks for F.gelu by name.
    fused = model.activation == "swiglu" or (on_gpu and model.activation == "gelu" and model.add_bias_linear)
    functions = {"swiglu": F.silu, "gelu": F.gelu if fused else gelu_by_tanh, "gelu_exact": F.gelu}
    overlaps = interleaved and parallel.overlap_p2p
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.query_groups,
        kv_channels=model.head_size,
        normalization={"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[model.normalization],
        layernorm_epsilon=model.norm_epsilon,
        gated_linear_unit=model.activation == "swiglu",
        activation_func=functions[model.activation],
        add_bias_linear=model.add_bias_linear,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        init_method=_leave_unset,
        output_layer_init_method=_leave_unset,
        embedding_init_method=_leave_unset,
        use_cpu_initialization=not on_gpu,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=precision.dtype == "bf16",
        fp16=precision.dtype == "fp16",
        tensor_model_parallel_size=parallel.tp_size,
        pipeline_model_parallel_size=parallel.pp_size,
        virtual_pipeline_model_parallel_size=parallel.vpp_size if interleaved else None,
        context_parallel_size=parallel.cp_size,
        sequence_parallel=parallel.sequence_parallel,
        overlap_p2p_comm=overlaps,
        batch_p2p_comm=not overlaps,
        tp_comm_overlap=parallel.tp_comm_overlap,
        calculate_per_token_loss=True,
        bias_activation_fusion=fused,
        # The device seam gives the CPU this product; on a GPU apex must.
        gradient_accumulation_fusion=not on_gpu or kernels.gradient_accumulation_fusion,
        bias_dropout_fusion=on_gpu,
        # Transformer Engine's own kernel for it is not stable (megatron-core's own launcher refuses it).
        cross_entropy_loss_fusion=on_gpu and kernels.cross_entropy_fusion,
        cross_entropy_fusion_impl="native",
        apply_rope_fusion=kernels.rope_fusion,
        deterministic_mode=kernels.deterministic,
        cuda_graph_impl="local" if kernels.cuda_graphs else "none",  # a graph for each layer
        **_recompute(train),
        **(_fp8(precision.fp8) if backend == "te" and precision.fp8 else {}),
    )


def gelu_by_tanh(x: "torch.Tensor") -> "torch.Tensor":
    """GELU in the form that megatron-core's fused kernel computes (Hendrycks & Gimpel 2016, section 2)."""
    import torch.nn.functional as F

    return F.gelu(x, approximate="tanh")


def ddp_config(parallel: ParallelConfig, precision: PrecisionConfig) -> "DistributedDataParallelConfig":
    """megatron-core's DistributedDataParallelConfig."""
    from megatron.core.distributed import DistributedDataParallelConfig

    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=precision.grad_reduce_in_fp32,
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_grad_reduce,
        overlap_param_gather=parallel.overlap_param_gather,
        bucket_size=parallel.grad_bucket_size,
        fp8_param_gather=_gathered_recipe(precision) is not None,
        reuse_grad_buf_for_mxfp8_param_ag=_gathered_recipe(precision) == "mxfp8",
    )


def optimizer_config(
    optimizer: OptimizerConfig, *, lr: float, min_lr: float, parallel: ParallelConfig, precision: PrecisionConfig
) -> "MegatronOptimizerConfig":
    """`lr` and `min_lr` are only first values, the schedule sets each step's."""
    from megatron.core.optimizer import OptimizerConfig as MegatronOptimizerConfig

    return MegatronOptimizerConfig(
        optimizer="adam",
        lr=lr,
        min_lr=min_lr,
        weight_decay=optimizer.weight_decay,
        adam_beta1=optimizer.adam_beta1,
        adam_beta2=optimizer.adam_beta2,
        adam_eps=optimizer.adam_eps,
        clip_grad=optimizer.clip_grad,
        params_dtype=torch_dtype(precision),
        bf16=precision.dtype == "bf16",
        fp16=precision.dtype == "fp16",
        initial_loss_scale=precision.initial_loss_scale,
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_param_gather=parallel.overlap_param_gather,
        fp8_recipe=_gathered_recipe(precision),
        reuse_grad_buf_for_mxfp8_param_ag=_gathered_recipe(precision) == "mxfp8",
    )


def _gathered_recipe(precision: PrecisionConfig) -> str | None:
    """The 8-bit recipe where weights are gathered in 8 bits."""
    return precision.fp8.recipe if precision.fp8 is not None and precision.fp8.param_gather else None


def _fp8(fp8: Fp8Config) -> dict:
    """For Transformer Engine; the torch backend reads the recipe itself."""
    return {
        "fp8": fp8.format,
        "fp8_recipe": fp8.recipe,
        "fp8_amax_history_len": fp8.amax_history_len,
        "fp8_amax_compute_algo": fp8.amax_compute_algo,
        "fp8_param": fp8.param_gather,
        "first_last_layers_bf16": fp8.first_last_layers_bf16,
    }


def _leave_unset(weight) -> None:
    """An initialisation that leaves the values to `model.init`."""


def _recompute(train: TrainConfig) -> dict:
    if train.recompute == "full":
        return {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": train.recompute_num_layers,
        }
    if train.recompute == "selective":
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}
