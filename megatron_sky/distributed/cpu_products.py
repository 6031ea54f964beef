"""Which library computes the CPU's fp32 matrix products.

torch sends them to the BLAS it was built with, by default MKL, which uses no AVX-512 on AMD's processors: about 105
GFLOP/s a core of a Zen 5 where oneDNN's fp32 kernel reaches 220. `torch.set_float32_matmul_precision("medium")` sends
them to oneDNN, and also allows it bf16 where a CPU has tiles for that (AMX); so the switch stays on only where a
product comes out as exact as fp32's. The rule looks at the processor alone, not at a clock: all ranks of a machine, and
a run and its resume, compute by the same kernel.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_OWN_KERNELS = "GenuineIntel"
"""Whose processors MKL serves with all that they have."""

_EXACT = 1e-5
"""Error of a product relative to its largest element: fp32's is below 1e-6, that of bf16 factors about 3e-3."""


def choose_library() -> bool:
    """Has oneDNN compute fp32 products where it is the faster; whether so.

    What the user has set by torch.set_float32_matmul_precision stays.
    """
    import torch

    if torch.get_float32_matmul_precision() != "highest" or not _is_served_badly():
        return False
    torch.set_float32_matmul_precision("medium")
    if _error_of_a_product() < _EXACT:
        return True
    torch.set_float32_matmul_precision("highest")
    return False


def attention(function: "Callable[..., torch.Tensor]", *tensors: "torch.Tensor", **options) -> "torch.Tensor":
    """`function(*tensors, **options)`, which is torch's fused attention on a CPU, with torch's default library.

    It makes many small products, for each of which oneDNN looks its kernel up: a block of 128 tokens of 16 numbers a
    head takes 7 times as long that way, one of 1,024 of 64 is 5 % faster. Backward too.
    """
    import torch

    chosen = torch.get_float32_matmul_precision()
    if chosen != "medium":
        return function(*tensors, **options)
    torch.set_float32_matmul_precision("highest")
    try:
        result = function(*tensors, **options)
    finally:
        torch.set_float32_matmul_precision(chosen)
    if result.grad_fn is not None:
        result.grad_fn.register_prehook(lambda _: torch.set_float32_matmul_precision("highest"))
        result.grad_fn.register_hook(lambda *_: torch.set_float32_matmul_precision(chosen))
    return result


def _is_served_badly() -> bool:
    """Whether this processor has AVX-512 that MKL leaves unused."""
    import torch

    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    return "BLAS_INFO=mkl" in torch.__config__.show() and vendor() not in ("", _OWN_KERNELS)


def vendor() -> str:
    """The processor's vendor as it names itself; empty where that can't be read."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(named, "")


def _error_of_a_product() -> float:
    import torch

    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    return float(((a @ b).double() - exact).abs().max() / exact.abs().max())
