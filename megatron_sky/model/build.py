"""The recipe's model as megatron-core GPTModels: one per model chunk of this rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_sky.config.schema import (
    Fp8Config,
    KernelsConfig,
    LoraConfig,
    ModelConfig,
    ParallelConfig,
    PrecisionConfig,
    TrainConfig,
)
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.model import mcore_config
from megatron_sky.model.backends import build_layer_specs, choose_backend, cpu_kernels

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.transformer import MegatronModule, TransformerConfig

    from megatron_sky.model.backends.fp8_linear import Fp8Scaling


@dataclass(frozen=True)
class BuiltModel:
    """This rank's part of the model. `chunks` are DDP-wrapped where `ddp` was asked for, else bare."""

    chunks: "list[MegatronModule]"
    config: "TransformerConfig"  # shared by the chunks
    backend: str
    backend_reason: str
    fp8: "Fp8Scaling | None" = None  # the torch backend's, where the recipe asks for 8 bits

    def num_parameters(self) -> int:
        """Parameters held by this rank."""
        return sum(p.numel() for chunk in self.chunks for p in chunk.parameters())

    def release(self) -> None:
        """Lets go of a trained model, its optimizer and its process groups, whose threads never sleep for long."""
        for chunk in self.chunks:
            release_chunk(chunk)
        for hook in ("finalize_model_grads_func", "grad_scale_func", *_SYNC_HOOKS):
            setattr(self.config, hook, None)


def release_chunk(chunk: "DistributedDataParallel") -> None:
    """Has Python's collector see a megatron-core DDP that nobody holds any more.

    It can't by itself: DDP holds the weights' gradient nodes, and the nodes' hooks, which are torch's own in C++, hold
    DDP, whose config holds the optimizer.
    """
    if chunk.remove_forward_pre_hook_handles:
        chunk.disable_forward_pre_hook(param_sync=False)
    chunk.grad_accs.clear()


_SYNC_HOOKS = ("no_sync_func", "grad_sync_func", "param_sync_func")


def build_model(
    model: ModelConfig,
    *,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    train: TrainConfig,
    context: ParallelContext,
    kernels: KernelsConfig | None = None,
    ddp: bool = True,
    init: bool = True,
    lora: LoraConfig | None = None,
) -> BuiltModel:
    """Builds, fills (`init`) and wraps (`ddp`) this rank's chunks.

    `init=False` leaves the weights unset, for a model that a checkpoint will fill or whose shapes alone matter. Only a
    model that is wrapped, to be trained, multiplies in 8 bits. `lora`: with adapters, which are always drawn, and alone
    trained.
    """
    on_gpu = context.device.type != "cpu"
    if not on_gpu:
        cpu_kernels.install()
    backend, reason = choose_backend(model, on_gpu) if lora is None else ("torch", "adapters need its linears")
    if not ddp:
        precision = precision.model_copy(update={"fp8": None})
    config = mcore_config.transformer_config(
        model,
        parallel=parallel,
        precision=precision,
        train=train,
        kernels=kernels or KernelsConfig(),
        on_gpu=on_gpu,
        backend=backend,
    )
    fp8 = precision.fp8
    if parallel.tp_comm_overlap:
        from megatron_sky.model.backends.te import open_user_buffers

        open_user_buffers(model, parallel=parallel, precision=precision, train=train)
    chunks = [_build_chunk(model, fp8, config, backend, context, chunk) for chunk in range(parallel.vpp_size)]
    scaling = _fp8_scaling(chunks, fp8, backend, context)
    if init:
        from megatron_sky.model.init import init_weights

        init_weights(chunks, model, train.seed)
    if lora is not None:
        from megatron_sky.model.lora import attach

        attach(chunks, lora, train.seed)
    if precision.dtype != "fp32":
        from megatron.core.transformer.module import Float16Module

        chunks = [Float16Module(config, chunk) for chunk in chunks]
    if ddp:
        chunks = _wrap(chunks, config, parallel, precision)
    return BuiltModel(chunks=chunks, config=config, backend=backend, backend_reason=reason, fp8=scaling)


def _fp8_scaling(
    chunks: "Sequence[MegatronModule]", fp8: Fp8Config | None, backend: str, context: ParallelContext
) -> "Fp8Scaling | None":
    """The torch backend's scales; Transformer Engine keeps its own."""
    if fp8 is None or backend == "te":
        return None
    from megatron_sky.model.backends.fp8_linear import Fp8Scaling

    return Fp8Scaling(chunks, fp8, context.device)


def _build_chunk(model: ModelConfig, fp8: Fp8Config | None, config, backend: str, context: ParallelContext, chunk: int):
    from megatron.core.models.gpt import GPTModel
    from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    vp_stage = chunk if context.layout.vpp_size > 1 else None
    first = get_transformer_layer_offset(config, vp_stage=vp_stage)
    numbers = range(first, first + get_num_layers_to_build(config, vp_stage=vp_stage))
    layers, final_norm = build_layer_specs(model, fp8, backend, numbers)
    block = TransformerBlockSubmodules(layer_specs=layers, layer_norm=final_norm)
    built = GPTModel(
        config,
        block,
        vocab_size=model.padded_vocab_size,
        max_sequence_length=model.seq_length,
        pre_process=context.chunk_is_first(chunk),
        post_process=context.chunk_is_last(chunk),
        share_embeddings_and_output_weights=model.tie_embeddings,
        position_embedding_type=model.position_embedding,
        rotary_base=model.rotary_base,
        vp_stage=vp_stage,
        **_rope_scaling(model),
    )
    return built.to(context.device) if context.device.type != "cpu" else built


def _rope_scaling(model: ModelConfig) -> dict:
    scaling = model.rope_scaling
    if scaling is None:
        return {}
    if scaling.kind == "linear":
        return {"seq_len_interpolation_factor": scaling.factor}
    return {"rope_scaling": True, "rope_scaling_factor": scaling.factor}


def _wrap(
    chunks: "Sequence[MegatronModule]",
    config: "TransformerConfig",
    parallel: ParallelConfig,
    precision: PrecisionConfig,
) -> "list[DistributedDataParallel]":
    """DDP around each chunk, and the hooks through which the pipeline schedule drives it."""
    from megatron.core.distributed import DistributedDataParallel, finalize_model_grads

    settings = mcore_config.ddp_config(parallel, precision)
    wrapped = [
        DistributedDataParallel(config, settings, chunk, disable_bucketing=number > 0)
        for number, chunk in enumerate(chunks)
    ]
    config.finalize_model_grads_func = finalize_model_grads
    interleaved = len(wrapped) > 1
    if parallel.overlap_grad_reduce:
        config.no_sync_func = [chunk.no_sync for chunk in wrapped] if interleaved else wrapped[0].no_sync
        if interleaved:
            config.grad_sync_func = [chunk.start_grad_sync for chunk in wrapped]
    if parallel.overlap_param_gather and interleaved:
        config.param_sync_func = [chunk.start_param_sync for chunk in wrapped]
    return wrapped


def gather_weights(chunks: "Sequence[DistributedDataParallel]") -> None:
    """Makes every rank's weights those of the last update. Collective.

    With `overlap_param_gather` an update changes only a rank's own shard of the weights, and the next forward pass
    gathers the others'; until then they are one update old. Whoever reads weights between two steps calls this first.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)
