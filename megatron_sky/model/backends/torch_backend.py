"""The torch backend: megatron-core's parallel linears with torch's norms and scaled_dot_product_attention.

It adds what megatron-core has only through Transformer Engine or apex: norms whose gradients are summed over the
tensor-parallel ranks under sequence parallelism, and attention under context parallelism. The latter gathers keys and
values over the context group and keeps its queries: less memory-frugal than ring attention, exact, and simple.

Shapes are megatron-core's: `[s, b, h, d]`, sequence first.
"""

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
    """Causal softmax(QK^T / sqrt(d)) V by torch's scaled_dot_product_attention, grouped queries included.

    query `[s, b, heads, d]`, key and value `[s, b, groups, d]` -> `[s, b, heads * d]`; under context parallelism `s`
    is this rank's two chunks of the sequence (number r and 2 * cp - 1 - r of 2 * cp, so that all ranks do equal work).
    `attention_mask` is None, or the document of each token of the whole sequence, `[b, s]`: attention stays within one.
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
        mask = self._mask(query.shape[0], attention_mask, query.device)
        if self.cp_group is not None:
            key, value = (_whole_sequence(tensor, self.cp_group) for tensor in (key, value))
        dtype = device.product_dtype(query.dtype)
        q, k, v = (tensor.permute(1, 2, 0, 3).to(dtype) for tensor in (query, key, value))  # b h s d
        if q.device.type == "cpu" and torch.is_grad_enabled():
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()  # a tenth faster with gradients, slower without
        groups = q.shape[1] // k.shape[1]
        if mask is not None and groups > 1 and q.device.type != "cpu":
            # A GPU's kernels know a mask or grouped queries, not both: all scores would be held.
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        dropout = self.dropout if self.training else 0.0
        with get_cuda_rng_tracker().fork() if dropout > 0 else _no_fork:
            options = {"attn_mask": mask, "is_causal": mask is None, "dropout_p": dropout, "scale": self.scale}
            options["enable_gqa"] = q.shape[1] != k.shape[1]
            if q.device.type == "cpu":
                out = cpu_products.attention(F.scaled_dot_product_attention, q, k, v, **options)
            else:
                out = F.scaled_dot_product_attention(q, k, v, **options)
        s, b = query.shape[:2]
        return out.permute(2, 0, 1, 3).reshape(s, b, -1).to(query.dtype)

    def _mask(self, length: int, documents, device):
        """Which keys each query may see, bool and broadcastable to `[b, heads, length, s]`; None: plainly causal."""
        if self.cp_group is None and documents is None:
            return None
        rank, size = (0, 1) if self.cp_group is None else (self.cp_group.rank(), self.cp_group.size())
        queries = torch.arange(length, device=device)
        if size > 1:
            queries = _positions_of_chunks(length, rank, size, device)
        mask = queries[:, None] >= torch.arange(length * size, device=device)[None, :]
        if documents is not None:
            mask = mask & (documents[:, queries, None] == documents[:, None, :])
            mask = mask[:, None]
        return mask


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


def _positions_of_chunks(length: int, rank: int, size: int, device):
    """`[length]`: where in the sequence the queries of this rank's two chunks stand."""
    half = length // 2
    chunk = torch.arange(half, device=device)
    return torch.cat([chunk + rank * half, chunk + (2 * size - 1 - rank) * half])
