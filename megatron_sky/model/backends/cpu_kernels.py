"""Rotary positions and SwiGLU on a CPU with fewer passes through memory than megatron-core's.

On a GPU a compiler fuses these; on a CPU each operator reads and writes the whole tensor. The results are the same but
for the rounding of a last place.
"""

import functools
import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F

from megatron_sky.distributed import compat


def install() -> None:
    """Puts them in the place of megatron-core's, in a process whose models lie on a CPU."""
    from megatron.core.fusions import fused_bias_swiglu
    from megatron.core.models.common.embeddings import rope_utils

    compat.replace_members(fused_bias_swiglu, swiglu=swiglu, swiglu_back=swiglu_gradient)
    original = inspect.unwrap(rope_utils._apply_rotary_pos_emb_bshd)
    compat.replace_members(rope_utils, _apply_rotary_pos_emb_bshd=_in_place_of(original))


def swiglu(x: torch.Tensor) -> torch.Tensor:
    """silu(a) * b for `x` = (a, b) along the last dimension: `[..., 2 f]` -> `[..., f]`; without a gradient."""
    gate, linear = x.chunk(2, dim=-1)
    return F.silu(gate).mul_(linear)


def swiglu_gradient(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`[..., 2 f]`: the gradient of `swiglu(x)`, for `grad` `[..., f]` of its result."""
    gate, linear = x.chunk(2, dim=-1)
    whole = torch.empty_like(x, memory_format=torch.contiguous_format)
    gate_grad, linear_grad = whole.chunk(2, dim=-1)
    torch.ops.aten.silu_backward.grad_input(grad * linear, gate, grad_input=gate_grad)
    torch.mul(F.silu(gate), grad, out=linear_grad)
    return whole


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotary positions: `x` `[s, b, heads, d]` by `angles` `[s, 1 or b, 1, d]`.

    Number i and number i + d / 2 of a head are a pair, as in LLaMA (Su et al. 2021, arXiv 2104.09864, section 3.4.2).
    """
    return _Rotation.apply(x, *_cosine_and_sine(angles, x.dtype))


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, cosine, sine):
        ctx.save_for_backward(cosine, sine)
        first, second = sine.chunk(2, dim=-1)
        return _turned(x, cosine, first, second, -1)

    @staticmethod
    def backward(ctx, grad):
        cosine, sine = ctx.saved_tensors
        first, second = sine.chunk(2, dim=-1)
        return _turned(grad, cosine, second, first, 1), None, None


def _turned(x, cosine, first, second, sign: int):
    """(a cos + sign * b first, b cos - sign * a second) for `x` = (a, b)."""
    out = x * cosine
    (a, b), (out_a, out_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    out_a.addcmul_(b, first, value=sign)
    out_b.addcmul_(a, second, value=-sign)
    return out


def _cosine_and_sine(angles: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Kept on `angles`, which megatron-core hands to the queries and keys of every layer and keeps between steps."""
    known = getattr(angles, "_cosine_and_sine", None)
    if known is None or known[0].dtype != dtype:
        known = angles.cos().to(dtype), angles.sin().to(dtype)
        angles._cosine_and_sine = known  # type: ignore[attr-defined]
    return known


def _in_place_of(original: Callable) -> Callable:
    """`original` for what `rotate` can't do: parts of a head, pairs of neighbours, scaled results."""

    @functools.wraps(original)
    def apply(t, freqs, *args, mscale: float = 1.0, **options):
        if freqs.shape[-1] == t.shape[-1] and mscale == 1.0 and not args and not any(options.values()):
            return rotate(t, freqs)
        return original(t, freqs, *args, mscale=mscale, **options)

    return apply
