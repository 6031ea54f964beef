"""The torch backend: megatron-core's parallel linears with torch's norms and scaled_dot_product_attention.

It adds what megatron-core has only through Transformer Engine or apex: norms whose gradients are summed over the
tensor-parallel ranks under sequence parallelism, and attention under context parallelism. The latter gathers keys and
values over the context group and keeps its queries: less memory-frugal than ring attention, exact, and simple.
Documents are kept apart by their bounds where a GPU's flash attention takes the batch, elsewhere by a mask.

Shapes are megatron-core's: `[s, b, h, d]`, sequence first.
"""

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from megatron.core.transformer import ModuleSpec
from megatron.core.transformer.module import MegatronModule

from megatron_sky.distributed import compat, cpu_products, device
from megatron_sky.model.backends.fp8_linear import Fp8ColumnParallelLinear, Fp8RowParallelLinear


def layer_spec(normalization: str, fp8: bool = False) -> ModuleSpec:
    """The spec of one layer; `fp8`: its linears multiply in 8 bits."""
    spec = get_gpt_layer_local_spec(normalization="RMSNorm")
    parts = spec.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = {"rmsnorm": RMSNorm, "layernorm": LayerNorm}[normalization]
    attention, mlp = parts.self_attention.submodules, compat.mlp_submodules(spec)
    attention.core_attention = Attention
    if fp8:
        attention.linear_qkv = mlp.linear_fc1 = Fp8ColumnParallelLinear
        attention.linear_proj = mlp.linear_fc2 = Fp8RowParallelLinear
    return spec


def final_norm(normalization: str) -> type:
    """The class of the norm behind the last layer."""
    return {"rmsnorm": FinalRMSNorm, "layernorm": FinalLayerNorm}[normalization]


def _mark(parameter, config) -> None:
    """megatron-core asks a parameter whether each tensor-parallel rank has a part of its gradient."""
    parameter.sequence_parallel = config.sequence_parallel


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm; under sequence parallelism megatron-core sums its gradient over the tensor-parallel ranks."""

    def __init__(self, config, hidden_size: int, eps: float = 1e-5, **_):
        super().__init__(hidden_size, eps=eps)
        _mark(self.weight, config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _CpuRMSNorm.apply(x, self.weight, self.eps) if x.device.type == "cpu" else super().forward(x)


class _CpuRMSNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in fp32 at least.

    On the CPU torch has no kernel of its own for it and goes six times through memory each way; this is faster by two
    fifths and keeps x and one number a row for the backward pass.
    """

    @staticmethod
    def forward(ctx, x, weight, eps: float):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        mean_square = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1])
        scale = mean_square.add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        grad, normed = grad.to(scale.dtype), x.to(scale.dtype) * scale
        weight_grad = (grad * normed).sum(tuple(range(x.dim() - 1)))
        x_grad = grad * weight
        along = torch.linalg.vecdot(x_grad, normed).div_(x.shape[-1]).unsqueeze(-1)
        x_grad = x_grad.addcmul_(normed, along, value=-1).mul_(scale)
        return x_grad.to(x.dtype), weight_grad.to(weight.dtype), None


class LayerNorm(torch.nn.LayerNorm):
    """torch's LayerNorm, marked as RMSNorm is."""

    def __init__(self, config, hidden_size: int, eps: float = 1e-5, **_):
        super().__init__(hidden_size, eps=eps)
        _mark(self.weight, config)
        _mark(self.bias, config)


class _NamedAsTe:
    """A checkpoint of Transformer Engine's final norm has an entry `_extra_state`; with an empty one it loads this."""

    def get_extra_state(self) -> None:
        return None

    def set_extra_state(self, state) -> None:
        """There is nothing to take over."""


class FinalRMSNorm(_NamedAsTe, RMSNorm):
    """RMSNorm behind the last layer."""


class FinalLayerNorm(_NamedAsTe, LayerNorm):
    """LayerNorm behind the last layer."""


class Attention(MegatronModule):
    """Causal softmax(QK^T / sqrt(d)) V by torch's kernels, grouped queries included.

    query `[s, b, heads, d]`, key and value `[s, b, groups, d]` -> `[s, b, heads * d]`; under context parallelism `s`
    is this rank's two chunks of the sequence (number r and 2 * cp - 1 - r of 2 * cp, so that all ranks do equal work),
    each of which sees the keys up to its own end. `attention_mask` is None, or int32 `[n + 1]`, where each document
    begins in the batch laid out as one row, and its end: attention stays within a document.
    """

    def __init__(
        self,
        config,
        layer_number: int,
        attn_mask_type,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection=None,
        **_,
    ):
        super().__init__(config)
        assert attention_type == "self", f"attention_type = {attention_type!r}: only self-attention is supported"
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.scale = softmax_scale
        self.cp_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self, query, key, value, attention_mask, attn_mask_type=None, attention_bias=None, packed_seq_params=None
    ):
        assert attention_bias is None and packed_seq_params is None, "the torch backend takes plain causal batches"
        if self.cp_group is not None:
            key, value = (_whole_sequence(tensor, self.cp_group) for tensor in (key, value))
        dtype = device.product_dtype(query.dtype)
        q, k, v = (tensor.to(dtype) for tensor in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        with get_cuda_rng_tracker().fork() if dropout > 0 else _no_fork:
            if attention_mask is not None and self.cp_group is None and _takes_lengths(q, k, v, dropout):
                out = _within_documents(q, k, v, attention_mask, dropout_p=dropout, scale=self.scale)
            else:
                chunks = self._chunks(q)
                parts = [self._attend(*chunk, k, v, attention_mask, dropout) for chunk in chunks]
                out = torch.cat(parts) if len(parts) > 1 else parts[0]
        return out.to(query.dtype)

    def _chunks(self, query) -> list[tuple[int, torch.Tensor]]:
        """The parts of this rank's queries that are neighbours in the sequence, and where in it each begins."""
        if self.cp_group is None:
            return [(0, query)]
        rank, size, half = self.cp_group.rank(), self.cp_group.size(), query.shape[0] // 2
        return [(rank * half, query[:half]), ((2 * size - 1 - rank) * half, query[half:])]

    def _attend(self, first: int, query, key, value, documents, dropout: float) -> torch.Tensor:
        """Attention of queries `[c, b, heads, d]`, which begin at `first` of the sequence, to the keys up to their end.

        Without documents that is a causal mask aligned to the lower right corner, which flash attention knows by name.
        """
        last = first + query.shape[0]
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key[:last], value[:last]))  # b h s d
        if q.device.type == "cpu" and torch.is_grad_enabled():
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # a tenth faster with gradients, slower without
        mask: torch.Tensor | None = None
        if documents is not None:
            mask = _document_mask(documents, first, last, key.shape[0], key.shape[1])
        elif first > 0:
            from torch.nn.attention.bias import causal_lower_right  # brings torch._dynamo, half a second of a start

            mask = causal_lower_right(query.shape[0], last)
        groups = q.shape[1] // k.shape[1]
        fused = documents is None and device.flash_attention_takes(q, k, v, dropout)
        if groups > 1 and q.device.type != "cpu" and not fused:
            # Of a GPU's kernels flash attention alone knows grouped queries: all scores would be held.
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        options: dict[str, Any] = {
            "attn_mask": mask,
            "is_causal": mask is None,
            "dropout_p": dropout,
            "scale": self.scale,
            "enable_gqa": q.shape[1] != k.shape[1],
        }
        if q.device.type == "cpu":
            out = cpu_products.attention(F.scaled_dot_product_attention, q, k, v, **options)
        else:
            out = F.scaled_dot_product_attention(q, k, v, **options)
        return out.permute(2, 0, 1, 3).flatten(2)


def _takes_lengths(query, key, value, dropout: float) -> bool:
    """Whether the kernel of `_within_documents` is there for these operands, `[s, b, heads, d]`."""
    q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
    return query.shape[-1] % 8 == 0 and device.flash_attention_takes(q, k, v, dropout)


def _within_documents(query, key, value, documents, *, dropout_p: float, scale: float | None) -> torch.Tensor:
    """Causal attention within each document, with no mask: flash attention over sequences of many lengths.

    The kernel that `torch.nn.attention.varlen` calls, whose own signature is not the same in all versions of torch.
    The longest document is given as the sequence's length: what it is on the GPU would have to be waited for.
    """
    s, b = query.shape[:2]
    q, k, v = (tensor.transpose(0, 1).reshape(b * s, *tensor.shape[2:]) for tensor in (query, key, value))
    flash = torch.ops.aten._flash_attention_forward
    out = flash(q, k, v, documents, documents, s, s, dropout_p, True, False, scale=scale)[0]
    return out.view(b, s, -1).transpose(0, 1).contiguous()


def _document_mask(documents, first: int, last: int, length: int, rows: int) -> torch.Tensor:
    """`[rows, 1, last - first, last]`: which of the keys up to `last` each query from `first` on may see."""
    places = torch.arange(rows * length, dtype=documents.dtype, device=documents.device)
    numbers = torch.searchsorted(documents, places, right=True).view(rows, length)
    steps = places[:last]
    mask = (steps[first:, None] >= steps) & (numbers[:, first:last, None] == numbers[:, None, :last])
    return mask[:, None]


class _NoFork:
    """Without dropout no random number is drawn, and switching generator states would only cost time."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return False


_no_fork = _NoFork()


class _AllGather(torch.autograd.Function):
    """All-gather along dimension 0 over `group`; backward is the reduce-scatter."""

    @staticmethod
    def forward(ctx, part, group):
        ctx.group = group
        whole = part.new_empty((part.shape[0] * group.size(), *part.shape[1:]))
        torch.distributed.all_gather_into_tensor(whole, part.contiguous(), group=group)
        return whole

    @staticmethod
    def backward(ctx, grad):
        part = grad.new_empty((grad.shape[0] // ctx.group.size(), *grad.shape[1:]))
        torch.distributed.reduce_scatter_tensor(part, grad.contiguous(), group=ctx.group)
        return part, None


def _whole_sequence(part, group):
    """`[s / cp, ...]` of every rank -> `[s, ...]` in the sequence's own order."""
    size = group.size()
    chunks = _AllGather.apply(part, group).chunk(2 * size)
    # rank r's half-slices are chunks r and 2 * size - 1 - r, so chunk c lies at 2r or 2r + 1
    where = [2 * c if c < size else 2 * (2 * size - 1 - c) + 1 for c in range(2 * size)]
    return torch.cat([chunks[place] for place in where])
