"""The CPU's answers where megatron-core names CUDA, for the whole of a process without a GPU.

A rehearsal has torch's meta device answer instead (`meta_device.py`), whose tensors have shapes and no memory.

megatron-core names the device in four ways: `device="cuda"` arguments, `torch.cuda.current_device()` and its
relatives, `Tensor.cuda()`, and comparisons of `Tensor.type()` with `"torch.cuda.FloatTensor"`. `install` answers each
of them with the CPU. A TorchFunctionMode would be tidier, but it is off inside `autograd.backward`, where recomputation
runs, so torch's factories are wrapped instead.
"""

import contextlib
import functools
import sys
from collections.abc import Callable
from typing import Any

from megatron_sky.distributed import compat

_FACTORIES = [
    "arange",
    "as_tensor",
    "empty",
    "empty_like",
    "empty_strided",
    "full",
    "full_like",
    "linspace",
    "ones",
    "ones_like",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
    "zeros_like",
]


GPU_PACKAGES = ("apex", "transformer_engine")
"""Packages that import without a GPU but can't run; hidden, since megatron-core takes what it can import."""


def install(product_dtype: Callable) -> None:
    """Must come before `megatron.core` is imported. `product_dtype`: see `device.product_dtype`."""
    import torch

    from megatron_sky.distributed import gloo_collectives

    torch_gather, torch_scatter = torch.distributed.all_gather_into_tensor, torch.distributed.reduce_scatter_tensor
    gather, scatter = gloo_collectives.all_gather, gloo_collectives.reduce_scatter
    compat.replace_members(
        torch.distributed,
        all_reduce=gloo_collectives.all_reduce,
        all_gather_into_tensor=gather,
        reduce_scatter_tensor=scatter,
        _all_gather_base=gather,  # megatron-core takes one or the other
        _reduce_scatter_base=scatter,
    )
    modules: dict[str, Any] = sys.modules
    modules["fused_weight_gradient_mlp_cuda"] = _weight_gradients(product_dtype)
    compat.replace_members(torch, matmul=_in_product_dtype(torch.matmul, product_dtype))
    compat.replace_members(torch.Tensor, matmul=_in_product_dtype(torch.Tensor.matmul, product_dtype))
    redirect(torch.device("cpu"), compiled=lambda function: function)
    _exchange_buffers(torch_gather, torch_scatter)


def redirect(
    target,
    compiled: Callable[[Callable], Callable],
    hidden: tuple[str, ...] = GPU_PACKAGES,
    before_megatron: Callable[[], None] | None = None,
) -> None:
    """Has the torch.device `target` answer where CUDA is named; imports megatron-core.

    `compiled`: what becomes of a function that megatron-core marks for torch.compile. `hidden`: packages that can't be
    imported. `before_megatron`: what else must be answered before megatron-core is imported.
    """
    assert "megatron.core" not in sys.modules, "device.setup() must come before megatron.core is imported"
    modules: dict[str, Any] = sys.modules
    modules |= dict.fromkeys(hidden)  # to Python a None is a package that isn't there
    _answer_with(target)
    _import_uncompiled(compiled, before_megatron)
    _patch_megatron_rng()


class WeightGradients:
    """What megatron-core asks of apex's extension: a weight's gradient added to its buffer `[out, in]` by the product.

    Without it the product goes to memory of its own and is added in a second pass.
    """

    @staticmethod
    def wgrad_gemm_accum_fp32(input, grad_output, main_grad) -> None:
        """main_grad += grad_output^T input, for `[tokens, in]` and `[tokens, out]` of any dtype, taken in fp32."""
        main_grad.addmm_(grad_output.t().to(main_grad.dtype), input.to(main_grad.dtype))

    @staticmethod
    def wgrad_gemm_accum_fp16(input, grad_output, main_grad) -> None:
        """The same with the product in the factors' own format, to which it is rounded once."""
        main_grad.add_(grad_output.t().matmul(input))


def _weight_gradients(product_dtype: Callable) -> type[WeightGradients]:
    """Those of this processor. Where it multiplies 16 bits, torch gives such a product rounded to them, once for each
    micro batch, before it is added in fp32. It takes half of the time of one in fp32."""

    class OfThisProcessor(WeightGradients):
        @staticmethod
        def wgrad_gemm_accum_fp32(input, grad_output, main_grad) -> None:
            if product_dtype(input.dtype) == main_grad.dtype:
                WeightGradients.wgrad_gemm_accum_fp32(input, grad_output, main_grad)
            else:
                WeightGradients.wgrad_gemm_accum_fp16(input, grad_output, main_grad)

    return OfThisProcessor


def _is_cuda(device: object) -> bool:
    import torch

    if isinstance(device, str):
        return device.startswith("cuda")
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, int) and not isinstance(device, bool)


def _answer_with(target) -> None:
    import torch
    from torch.utils import _device

    _device._device_constructors()  # caches torch's own factories, which `with torch.device("meta")` looks up
    for factory in _FACTORIES:
        setattr(torch, factory, _on_target(getattr(torch, factory), target))
    tensor_type, tensor_to = torch.Tensor.type, torch.Tensor.to
    own_prefix = "torch." if target.type == "cpu" else f"torch.{target.type}."

    @functools.wraps(tensor_type)
    def type_(self, *args, **kwargs):
        if args or kwargs:
            return tensor_type(self, *args, **kwargs)
        return tensor_type(self).replace(own_prefix, "torch.cuda.", 1)

    @functools.wraps(tensor_to)
    def to(self, *args, **kwargs):
        if args and type(args[0]) is not torch.dtype and _is_cuda(args[0]):
            args = (target, *args[1:])
        if "device" in kwargs and _is_cuda(kwargs["device"]):
            kwargs["device"] = target
        return tensor_to(self, *args, **kwargs)

    def cuda(self, device=None, non_blocking=False, **kwargs):
        return tensor_to(self, target, non_blocking=non_blocking)

    compat.replace_members(torch.Tensor, type=type_, to=to, cuda=cuda)
    compat.replace_members(torch.nn.Module, cuda=lambda self, *args, **kwargs: self.to(target))
    _answer_cuda_module(torch, target)


def _on_target(factory, target):
    @functools.wraps(factory)
    def wrapped(*args, **kwargs):
        if kwargs:
            if kwargs.get("device") is not None and _is_cuda(kwargs["device"]):
                kwargs["device"] = target
            if kwargs.get("pin_memory"):
                kwargs["pin_memory"] = False
        return factory(*args, **kwargs)

    return wrapped


def _in_product_dtype(matmul, product_dtype):
    @functools.wraps(matmul)
    def wrapped(input, other, **kwargs):
        dtype = product_dtype(input.dtype)
        if dtype == input.dtype or input.dtype != other.dtype or kwargs:
            return matmul(input, other, **kwargs)
        return matmul(input.to(dtype), other.to(dtype)).to(input.dtype)

    return wrapped


class _Stream:
    """What answers is one stream in which everything happens in order, so waiting for it is already done."""

    def __init__(self, *args, **kwargs):
        pass

    def wait_stream(self, stream):
        pass

    def wait_event(self, event):
        pass

    def synchronize(self):
        pass

    def record_event(self, event=None):
        return event or _Event()

    def query(self):
        return True


class _Event:
    """An event of the one in-order stream: it has always happened."""

    def __init__(self, *args, **kwargs):
        pass

    def record(self, stream=None):
        pass

    def wait(self, stream=None):
        pass

    def synchronize(self):
        pass

    def query(self):
        return True


def _answer_cuda_module(torch, target) -> None:
    stream = _Stream()
    answers = {
        "current_device": lambda: target,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "manual_seed": lambda value: torch.manual_seed(value),
        "Stream": _Stream,
        "Event": _Event,
    }
    compat.replace_members(torch.cuda, **answers)


def _import_uncompiled(compiled: Callable[[Callable], Callable], before_megatron: Callable[[], None] | None) -> None:
    """megatron-core marks its fusions for torch.compile at import; on a CPU that costs seconds and gains nothing.

    It keeps the name it finds, so the name is only changed while it is imported.
    """
    import torch

    def mark(function=None, **_):
        return compiled if function is None else compiled(function)

    compile_ = torch.compile
    compat.replace_members(torch, compile=mark)
    try:
        if before_megatron is not None:
            before_megatron()
        import megatron.core.jit  # noqa: F401
    finally:
        compat.replace_members(torch, compile=compile_)


def _patch_megatron_rng() -> None:
    """megatron-core keeps named states of the CUDA generator; here they are states of the CPU's."""
    import torch
    from megatron.core.tensor_parallel import random as megatron_random

    class CpuRngTracker(megatron_random.CudaRNGStatesTracker):
        """Named states of the CPU generator; `fork` runs a block on one of them and restores the default."""

        @contextlib.contextmanager
        def fork(self, name=megatron_random._MODEL_PARALLEL_RNG_TRACKER_NAME):
            assert name in self.states_, f"no generator state is named {name!r}"
            outer = torch.get_rng_state()
            torch.set_rng_state(self.states_[name])
            try:
                yield
            finally:
                self.states_[name] = torch.get_rng_state()
                torch.set_rng_state(outer)

    compat.replace_members(
        megatron_random,
        _get_cuda_rng_state=lambda *args, **kwargs: torch.get_rng_state(),
        _set_cuda_rng_state=lambda state, *args, **kwargs: torch.set_rng_state(state),
        _CUDA_RNG_STATE_TRACKER=CpuRngTracker(),
        _CUDA_RNG_STATE_TRACKER_INITIALIZED=True,
    )


def _exchange_buffers(torch_gather: Callable, torch_scatter: Callable) -> None:
    """The distributed optimizer's collectives, which are in place; the arguments are torch's own.

    A group of one rank has nothing to exchange: NCCL sees that, gloo copies whole gradient and weight buffers. What
    runs beside the backward pass stays torch's, whose `_coalescing_manager` holds the handles.
    """
    from megatron.core.distributed import param_and_grad_buffer as buffers

    from megatron_sky.distributed import gloo_collectives

    def sparing(in_step: Callable, beside: Callable) -> Callable:
        @functools.wraps(in_step)
        def wrapped(output, input, *args, group=None, async_op=False, **kwargs):
            if group is not None and group.size() == 1 and output.data_ptr() == input.data_ptr():
                return None  # it is done
            collective = beside if async_op else in_step
            return collective(output, input, *args, group=group, async_op=async_op, **kwargs)

        return wrapped

    compat.replace_members(
        buffers,
        dist_all_gather_func=sparing(gloo_collectives.all_gather, torch_gather),
        dist_reduce_scatter_func=sparing(gloo_collectives.reduce_scatter, torch_scatter),
    )
