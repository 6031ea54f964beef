"""megatron-core's parallel linears with 8-bit products: y = x W^T, dx = g W and dW = g^T x.

Communication is megatron-core's, with one difference: under sequence parallelism the input is cast first and gathered
in 8 bits, half the bytes, forward and again backward; it is kept for the backward pass in 8 bits as well. A weight is
cast once for all micro batches that meet it unchanged (`forget_weight` says when it may have changed).
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.jit import jit_fuser
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear

from megatron_sky.config.schema import Fp8Config
from megatron_sky.model import fp8
from megatron_sky.model.fp8 import GRAD, INPUT, WEIGHT

_cast = jit_fuser(fp8.cast)
_cast_and_measure = jit_fuser(fp8.cast_and_measure)


class _Fp8:
    """What column- and row-parallel linears have in common. `scaling` is given by `Fp8Scaling` after the build."""

    training: bool  # torch's own
    tp_group: dist.ProcessGroup  # megatron-core's own
    scaling: fp8.Tensorwise | fp8.Delayed
    _weight: tuple[torch.Tensor, torch.Tensor] | None = None

    def forget_weight(self) -> None:
        self._weight = None

    def quantize(
        self, operand: int, x: torch.Tensor, group: dist.ProcessGroup | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(`x` in 8 bits, its scale); the amax is noted while training."""
        scale = self.scaling.scale(operand, x, group)
        dtype = self.scaling.dtypes[operand]
        if not (self.training and isinstance(self.scaling, fp8.Delayed)):
            return _cast(x, scale, dtype), scale
        narrow, amax = _cast_and_measure(x, scale, dtype)
        self.scaling.record(operand, amax)
        return narrow, scale

    def quantized_weight(self, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._weight is None:
            self._weight = self.quantize(WEIGHT, weight)
        return self._weight

    def _forward_impl(
        self, input, weight, bias=None, allreduce_dgrad: bool = False, sequence_parallel: bool = False, **_
    ):
        """megatron-core's seam for the product. What it says of fusion does not matter: dW is added to its buffer."""
        return _Product.apply(input, weight, bias, self, allreduce_dgrad, sequence_parallel)


class Fp8ColumnParallelLinear(_Fp8, ColumnParallelLinear):
    """ColumnParallelLinear with 8-bit products."""


class Fp8RowParallelLinear(_Fp8, RowParallelLinear):
    """RowParallelLinear with 8-bit products."""


class _Product(torch.autograd.Function):
    """x `[s, b, in]`, W `[out, in]` -> `[s, b, out]`; `gathers`: x is this rank's part of the sequence."""

    @staticmethod
    def forward(ctx, x, weight, bias, linear: _Fp8, reduces: bool, gathers: bool):
        ctx.linear, ctx.weight, ctx.reduces, ctx.gathers = linear, weight, reduces, gathers
        ctx.shape, ctx.dtype, ctx.has_bias = x.shape, x.dtype, bias is not None
        group = linear.tp_group
        # All parts of a gathered tensor need one scale; `Delayed` has it, unless it has to measure first.
        narrow, x_scale = linear.quantize(
            INPUT, x.detach(), group if gathers and linear.scaling.measures_first else None
        )
        whole = _gathered(narrow, group)[0] if gathers else narrow
        narrow_weight, w_scale = linear.quantized_weight(weight.detach())
        ctx.save_for_backward(narrow, x_scale, narrow_weight, w_scale)
        out = fp8.product(whole.flatten(0, -2), x_scale, narrow_weight, w_scale, x.dtype, fast=True)
        out = out.view(*whole.shape[:-1], -1)
        return out if bias is None else out + bias

    @staticmethod
    def backward(ctx, grad):
        narrow, x_scale, weight, w_scale = ctx.saved_tensors
        group = ctx.linear.tp_group
        whole, gathering = _gathered(narrow, group, wait=False) if ctx.gathers else (narrow, None)
        g, g_scale = ctx.linear.quantize(GRAD, grad.flatten(0, -2))
        x_grad = fp8.product(g, g_scale, weight.t(), w_scale, ctx.dtype)
        x_grad, sending = _sent_back(x_grad.view(*whole.shape[:-1], -1), ctx, group)
        if gathering is not None:
            gathering.wait()
        weight_grad = _weight_gradient(ctx.weight, g, g_scale, whole.flatten(0, -2), x_scale)
        bias_grad = grad.flatten(0, -2).sum(0) if ctx.has_bias else None
        if sending is not None:
            sending.wait()
        return x_grad, weight_grad, bias_grad, None, None, None


def _gathered(part: torch.Tensor, group, wait: bool = True):
    """(the parts of all ranks of `group` along dimension 0, handle of the transfer): 8-bit numbers travel as bytes."""
    whole = part.new_empty((part.shape[0] * group.size(), *part.shape[1:]))
    handle = dist.all_gather_into_tensor(
        whole.view(torch.uint8), part.contiguous().view(torch.uint8), group=group, async_op=not wait
    )
    return whole, handle


def _sent_back(x_grad: torch.Tensor, ctx, group):
    """(the input's gradient, handle of its transfer): summed over the tensor-parallel ranks, each its part or all."""
    if ctx.gathers:
        part = x_grad.new_empty(ctx.shape)
        return part, dist.reduce_scatter_tensor(part, x_grad, group=group, async_op=True)
    if ctx.reduces:
        return x_grad, dist.all_reduce(x_grad, group=group, async_op=True)
    return x_grad, None


def _weight_gradient(weight, g, g_scale, x, x_scale):
    """dW, added to the gradient buffer where there is one (then what autograd gets is only a sign that it is done)."""
    if not hasattr(weight, "main_grad"):
        return fp8.product(g.t(), g_scale, x.t(), x_scale, weight.dtype)
    weight.main_grad.add_(fp8.product(g.t(), g_scale, x.t(), x_scale, weight.main_grad.dtype))
    weight.grad_added_to_main_grad = True
    return torch.empty_like(weight)


class Fp8Scaling:
    """The scales of all 8-bit linears of one rank's model chunks, and when they move."""

    LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj", "mlp.linear_fc1", "mlp.linear_fc2")

    def __init__(self, chunks: Sequence[GPTModel], settings: Fp8Config, device: torch.device):
        """`chunks`: bare, before DDP wraps them."""
        self._layers = [layer for chunk in chunks for layer in chunk.decoder.layers]
        self._linears = [module for layer in self._layers for module in layer.modules() if isinstance(module, _Fp8)]
        self.amax: fp8.AmaxHistory | None = None
        self.settings = settings
        self.num_layers = chunks[0].config.num_layers
        if settings.recipe == "delayed":
            self.amax = fp8.AmaxHistory(
                len(self._layers),
                len(self.LINEARS),
                length=settings.amax_history_len,
                algorithm=settings.amax_compute_algo,
                format=settings.format,
                device=device,
            )
        self._hand_out(fp8.formats(settings.format))

    def _hand_out(self, dtypes) -> None:
        for row, layer in enumerate(self._layers):
            for column, name in enumerate(self.LINEARS):
                linear = layer.get_submodule(name)
                if isinstance(linear, _Fp8):  # the first and last layers may stay as they are
                    linear.scaling = (
                        fp8.Tensorwise(dtypes) if self.amax is None else fp8.Delayed(dtypes, self.amax, (row, column))
                    )

    def begin_pass(self) -> None:
        """Before a step or a validation: weights may have changed, and nothing of a rejected step is kept."""
        for linear in self._linears:
            linear.forget_weight()
        if self.amax is not None:
            self.amax.begin_step()

    def end_step(self, group: dist.ProcessGroup) -> None:
        """After a step that was applied; `group`: all ranks that hold parts of the same layers."""
        if self.amax is not None:
            self.amax.end_step(group)

    @property
    def kind(self) -> dict | None:
        """What a saved history must have been made with to be taken over; None where there is none to save."""
        names = ("amax_history_len", "first_last_layers_bf16")
        return None if self.amax is None else {name: getattr(self.settings, name) for name in names}

    def history_by_layer(self) -> dict[int, torch.Tensor]:
        """The history `[linear, operand, step]` of each layer of this rank by its place in the whole model, from 0."""
        assert self.amax is not None, "scales that are measured anew each time have no history"
        return {layer.layer_number - 1: self.amax.history[row] for row, layer in enumerate(self._layers)}

    def restore(self, histories: dict[str, torch.Tensor] | None) -> None:
        """Takes over the histories of this rank's layers, or begins anew."""
        if self.amax is not None:
            numbers = [str(number) for number in self.history_by_layer()]
            self.amax.restore(None if histories is None else torch.stack([histories[number] for number in numbers]))
