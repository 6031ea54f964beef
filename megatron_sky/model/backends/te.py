"""The Transformer Engine backend: megatron-core's own layer spec with fused norm+linear and fused attention.

GPU only. Its checkpoint names are the torch backend's, so either loads the other's weights.
"""

from typing import TYPE_CHECKING

from megatron_sky.config.schema import ModelConfig, ParallelConfig, PrecisionConfig, TrainConfig
from megatron_sky.distributed import compat

if TYPE_CHECKING:
    import torch
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.transformer import ModuleSpec


def layer_spec() -> "ModuleSpec":
    """The spec of one layer, of megatron-core's Transformer Engine modules."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec

    return get_gpt_layer_with_transformer_engine_spec()


def final_norm() -> type:
    """The class of the norm behind the last layer."""
    from megatron.core.extensions.transformer_engine import TENorm

    return TENorm


def open_user_buffers(
    model: ModelConfig, *, parallel: ParallelConfig, precision: PrecisionConfig, train: TrainConfig
) -> None:
    """Makes the buffers through which parallel.tp_comm_overlap moves a layer's input while it is multiplied.

    One size for the whole run: `[s * b / cp, h]`. Collective over the tensor-parallel ranks.
    """
    from transformer_engine.pytorch.module import base

    fp8 = precision.fp8
    quantization: dict[str, object] = {"use_fp8": fp8 is not None}
    if hasattr(base, "UserBufferQuantizationMode"):  # since Transformer Engine 2.7
        modes = base.UserBufferQuantizationMode
        wanted = [modes.NONE if fp8 is None else modes.FP8]
        if fp8 is not None and fp8.first_last_layers_bf16:
            wanted.append(modes.NONE)
        quantization = {"quantization_modes": wanted}
    base.initialize_ub(
        shape=[model.seq_length * train.micro_batch_size // parallel.cp_size, model.hidden_size],
        tp_size=parallel.tp_size,
        bootstrap_backend="nccl",
        **quantization,
    )


def packed_documents(cu_seqlens: "torch.Tensor", device: "torch.device") -> "PackedSeqParams":
    """megatron-core's PackedSeqParams for one sequence of several documents: attention stays within each.

    `cu_seqlens`: int32 `[n + 1]` on the CPU, so that the longest document is known without waiting for a GPU.
    """
    from megatron.core.packed_seq_params import PackedSeqParams

    longest = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
    on_device = cu_seqlens.to(device, non_blocking=True)
    return compat.call(
        PackedSeqParams,
        qkv_format="thd",
        cu_seqlens_q=on_device,
        cu_seqlens_kv=on_device,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
