"""A GPU's answers for a process that computes nothing: torch's meta device, whose tensors have shapes and no memory.

The program's branches for a GPU run, and megatron-core's; every operator runs and gives shapes. Three things differ on
meta from a GPU and are set right here, each by name: what a GPU does in one kernel and torch's meta device in several
operators (`F.rms_norm`, attention, functions marked for torch.compile, apex's weight gradients), collectives, and the
names by which megatron-core knows a CUDA tensor. All of it lasts for the process's life: see `device.rehearse`.
"""

import abc
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.attention import bias
from torch.utils._python_dispatch import _disable_current_modes

from megatron_sky.distributed import compat, cpu_emulation

_LARGEST_HEAD = 256  # of torch's flash kernel
_MASK_ALIGNMENT = 16  # the efficient kernel's, in numbers of a mask's row
_COLLECTIVES = (
    "all_reduce",
    "broadcast",
    "reduce",
    "reduce_scatter_tensor",
    "all_gather_into_tensor",
    "_reduce_scatter_base",
    "_all_gather_base",
)
_FILLS_ITS_FIRST = ("reduce_scatter_tensor", "all_gather_into_tensor", "_reduce_scatter_base", "_all_gather_base")


class Watch(abc.ABC):
    """Who is told of what a GPU would do and torch does not see."""

    @abc.abstractmethod
    def waits(self, operator: str, why: str) -> None:
        """The CPU would wait for the GPU in `operator`, which `why`."""

    @abc.abstractmethod
    def phase(self, name: str) -> contextlib.AbstractContextManager:
        """What runs within is a part of the step that has a name (`device.named_range`)."""

    @abc.abstractmethod
    def fused(self, name: str) -> contextlib.AbstractContextManager:
        """Within it one kernel runs: what is made there and does not outlive it takes no memory."""

    @abc.abstractmethod
    def kernel(self, name: str) -> contextlib.AbstractContextManager:
        """Within it one kernel that torch does not know runs: what it takes is taken in its name."""

    @abc.abstractmethod
    def computed(self, operator: str, shape: tuple[int, ...], dtype: str, passes: int) -> None:
        """Such a kernel multiplied: `passes` products of `shape`, as in `result.Operation`, counted as `operator`."""

    @abc.abstractmethod
    def communicates_through(self, buffer: torch.Tensor) -> None:
        """Collectives go through `buffer` from here on."""

    @abc.abstractmethod
    def communicated(self, collective: str, tensor: torch.Tensor, group, received: Sequence[torch.Tensor]) -> None:
        """A collective over `group` (None: all ranks) whose largest tensor is `tensor`; it fills `received`."""


def install(watch: Watch, install_te: Callable[[], None] | None = None) -> None:
    """Must come before `megatron.core` is imported.

    `install_te`: makes Transformer Engine one that can be imported; None: it can't be.
    """

    def compiled(function):
        @functools.wraps(function)
        def kernel(*args, **kwargs):
            with watch.fused(function.__name__):
                return function(*args, **kwargs)

        return kernel

    _replace_collectives(watch)
    modules: dict[str, Any] = sys.modules
    modules["fused_weight_gradient_mlp_cuda"] = _weight_gradients(watch)
    compat.replace_members(torch.Tensor, is_cuda=property(lambda self: self.is_meta))
    compat.replace_members(F, rms_norm=_rms_norm(watch), scaled_dot_product_attention=_attention)
    compat.replace_members(torch.backends.cuda, can_use_flash_attention=_takes_flash)
    compat.replace_members(bias.CausalBias, __new__=_new_bias)
    compat.replace_members(bias, can_use_flash_attention=_takes_flash, can_use_efficient_attention=_takes_efficient)
    redirect = functools.partial(cpu_emulation.redirect, torch.device("meta"), compiled=compiled)
    if install_te is None:
        redirect()
    else:
        redirect(hidden=("apex",), before_megatron=install_te)
    _report_numbers_of_the_cpu(watch)


def _report_numbers_of_the_cpu(watch: Watch) -> None:
    """A GPU's tensor made of Python's numbers, or indexed by them: torch copies them and waits for what is queued."""

    def from_numbers(factory):
        @functools.wraps(factory)
        def wrapped(data, *args, **kwargs):
            result = factory(data, *args, **kwargs)
            if result.is_meta and not isinstance(data, torch.Tensor):
                watch.waits(factory.__name__, "makes a tensor on the GPU of numbers that the CPU has")
            return result

        return wrapped

    def by_index(method):
        @functools.wraps(method)
        def wrapped(self, index, *values):
            if self.is_meta and any(map(_is_list_of_numbers, index if isinstance(index, tuple) else (index,))):
                watch.waits(method.__name__, "indexes a tensor on the GPU by numbers that the CPU has")
            return method(self, index, *values)

        return wrapped

    compat.replace_members(torch, tensor=from_numbers(torch.tensor), as_tensor=from_numbers(torch.as_tensor))
    methods = {name: by_index(getattr(torch.Tensor, name)) for name in ("__getitem__", "__setitem__")}
    compat.replace_members(torch.Tensor, **methods)


def _is_list_of_numbers(index) -> bool:
    return isinstance(index, list) or (isinstance(index, torch.Tensor) and not index.is_meta and index.dim() > 0)


def _weight_gradients(watch: Watch) -> type:
    class WeightGradients:
        """apex's kernels, which hold nothing beside their operands."""

        @staticmethod
        def wgrad_gemm_accum_fp32(input, grad_output, main_grad) -> None:
            with watch.fused("wgrad_gemm_accum_fp32"):
                cpu_emulation.WeightGradients.wgrad_gemm_accum_fp32(input, grad_output, main_grad)

        @staticmethod
        def wgrad_gemm_accum_fp16(input, grad_output, main_grad) -> None:
            with watch.fused("wgrad_gemm_accum_fp16"):
                cpu_emulation.WeightGradients.wgrad_gemm_accum_fp16(input, grad_output, main_grad)

    return WeightGradients


def _rms_norm(watch: Watch):
    class FusedRMSNorm(torch.autograd.Function):
        """What torch's CUDA kernel keeps: its input, the weight and one fp32 number a row."""

        @staticmethod
        def forward(ctx, x, weight):
            with watch.fused("rms_norm"):
                out, scale = torch.empty_like(x), x.new_empty(x.shape[:-1], dtype=torch.float32)
            ctx.save_for_backward(x, weight, scale)
            return out

        @staticmethod
        def backward(ctx, grad):
            x, weight, _ = ctx.saved_tensors
            with watch.fused("rms_norm_backward"):
                return torch.empty_like(x), torch.empty_like(weight)

    def rms_norm(input, normalized_shape, weight=None, eps=None):
        assert tuple(normalized_shape) == input.shape[-1:] and weight is not None, "norms are over the last dimension"
        return FusedRMSNorm.apply(input, weight)

    return rms_norm


def _takes_flash(params) -> bool:
    """torch's `can_use_flash_attention` on a GPU with tensor cores for bf16."""
    query = params.query
    fits = query.dtype in (torch.bfloat16, torch.float16) and query.shape[-1] <= _LARGEST_HEAD
    return fits and params.attn_mask is None


def _takes_efficient(params) -> bool:
    """torch's `can_use_efficient_attention`."""
    query = params.query
    step = 8 if query.dtype in (torch.bfloat16, torch.float16) else 4
    return query.shape[1] == params.key.shape[1] and query.shape[-1] % step == 0


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """The kernel that torch 2.10 to 2.14 take for these operands on a GPU with tensor cores for bf16.

    Source: torch's `sdp_utils.cpp`. Flash attention knows grouped queries and no mask, the efficient kernel a mask and
    no grouped queries; what neither can do is computed by products and a softmax, which hold all scores. The kernel of
    cuDNN, which a Hopper GPU may take in flash attention's place, keeps the same tensors. A causal mask aligned to the
    lower right corner is a name, by which torch itself finds the kernel.
    """
    if isinstance(attn_mask, bias.CausalBias):
        return attn_mask._dispatch(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    ops, size = torch.ops.aten, query.shape[-1]
    params = torch.backends.cuda.SDPAParams(query, key, value, attn_mask, dropout_p, is_causal, enable_gqa)
    if _takes_flash(params):
        padded = [F.pad(each, (0, -size % 8)) if size % 8 else each for each in (query, key, value)]
        scale = size**-0.5 if scale is None else scale
        out = ops._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0]
        return out[..., :size] if size % 8 else out
    mask = None if attn_mask is None else _additive(attn_mask, query.dtype)
    if _takes_efficient(params):
        needs_grad = any(each.requires_grad for each in (query, key, value))
        aligned = None if mask is None else _aligned(mask, query, key)
        return ops._scaled_dot_product_efficient_attention(
            query, key, value, aligned, needs_grad, dropout_p, is_causal, scale=scale
        )[0]
    return ops._scaled_dot_product_attention_math(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )[0]


def _new_bias(kind, *args, **kwargs):
    """A mask that is only a name; torch can't make a tensor of a kind of its own while a mode watches."""
    with _disable_current_modes():
        return torch.Tensor.__new__(kind)


def _additive(mask, dtype):
    """A mask of bools as numbers to add, as torch makes it before each call."""
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask.logical_not(), float("-inf"))


def _aligned(mask, query, key):
    """The mask as the efficient kernel takes it: `[b, heads, s, s]` by strides of 0, rows a multiple of 16 apart."""
    missing = -mask.shape[-1] % _MASK_ALIGNMENT
    wide = mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
    return F.pad(wide, (0, missing))[..., : mask.shape[-1]] if missing else wide


class _Work:
    """A collective that is over."""

    def wait(self, *args, **kwargs) -> bool:
        return True

    def is_completed(self) -> bool:
        return True

    def synchronize(self) -> None:
        """There is nothing to wait for."""


class _Transfer:
    """torch's P2POp, without its questions to the group."""

    def __init__(self, op, tensor, peer=None, group=None, *args, **kwargs):
        self.op, self.tensor, self.group = op, tensor, group


def _replace_collectives(watch: Watch) -> None:
    """Nothing moves: a group's other ranks do not exist. Names that torch keeps twice are replaced twice."""

    def collective(name: str):
        def call(*args, group=None, async_op=False, **kwargs):
            tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, torch.Tensor)]
            largest = max(tensors, key=lambda tensor: tensor.nbytes)
            watch.communicated(name, largest, group, tensors[:1] if name in _FILLS_ITS_FIRST else ())
            return _Work() if async_op else None

        return call

    def send(tensor, dst=None, group=None, *args, **kwargs):
        watch.communicated("send", tensor, group, ())
        return _Work()

    def receive(tensor, src=None, group=None, *args, **kwargs):
        watch.communicated("receive", tensor, group, (tensor,))
        return _Work()

    def batch(transfers):
        return [transfer.op(transfer.tensor, group=transfer.group) for transfer in transfers]

    @contextlib.contextmanager
    def coalesced(group=None, device=None, async_ops=False):
        yield _Work()

    def new_group(*args, backend=None, **kwargs):  # of whichever kind: nobody answers in it
        return groups(*args, **kwargs)

    groups = dist.new_group

    def gather_objects(gathered, value, group=None):
        gathered[:] = [value] * len(gathered)

    answers = {name: collective(name) for name in _COLLECTIVES}
    answers |= {"isend": send, "irecv": receive, "P2POp": _Transfer, "batch_isend_irecv": batch}
    answers |= {"new_group": new_group, "_coalescing_manager": coalesced}
    answers |= {"all_gather_object": gather_objects, "barrier": lambda *args, **kwargs: None}
    for owner in (dist, dist.distributed_c10d):
        compat.replace_members(owner, **{name: answer for name, answer in answers.items() if hasattr(owner, name)})
