"""Where a step's time goes, by class of kernel: names sorted into a few classes, and the table of them. No torch."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

# The first pattern that a name holds decides. Names are CUDA's, Transformer Engine's and torch's own operators.
_CLASSES = (
    (
        "communication",
        r"nccl|c10d|gloo|all_?reduce|all_?gather|reduce_?scatter|userbuffers|send|recv|barrier|broadcast",
    ),
    ("attention", r"flash|fmha|attention|softmax_warp|sdpa"),
    ("optimizer", r"adam|multi_?tensor|_foreach|l2norm|vector_norm"),
    ("8-bit casts", r"fp8|float8|e4m3|e5m2|amax|quantiz"),
    ("matrix products", r"gemm|cutlass|cublas|matmul|::mm$|::bmm|addmm|linear|wgmma|xmma|nvjet|::mkldnn"),
    ("norms", r"norm|rsqrt"),
    ("rotary, activation, loss", r"rope|rotary|silu|swiglu|gelu|sigmoid|softmax|cross_entropy|nll|dropout"),
    ("embedding", r"embedding|index|gather|scatter"),
    ("copies and casts", r"copy|memcpy|memset|cast|_to_copy|contiguous|transpose|cat|fill|zero|clone"),
    ("elementwise", r"elementwise|vectorized|triton|pointwise|reduce|add|mul|sub|div|where|clamp|sum|exp|pow"),
)
_PATTERNS = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _CLASSES]
OTHER = "other"


@dataclass(frozen=True)
class KernelTime:
    """All calls of one kernel or operator together; its own time only, not that of what it calls."""

    name: str
    calls: int
    microseconds: float


def kernel_class(name: str) -> str:
    """The class that a kernel's or operator's name belongs to."""
    return next((label for label, pattern in _PATTERNS if pattern.search(name)), OTHER)


def table(kernels: Iterable[KernelTime], *, steps: int, top: int = 20) -> str:
    """Time a step by class, largest first, with each class's share; below it the `top` kernels."""
    kernels = sorted(kernels, key=lambda kernel: -kernel.microseconds)
    whole = sum(kernel.microseconds for kernel in kernels) or 1.0
    classes: dict[str, list[KernelTime]] = defaultdict(list)
    for kernel in kernels:
        classes[kernel_class(kernel.name)].append(kernel)
    lines = [f"{'class':<28}{'ms a step':>12}{'share':>9}{'calls':>9}"]
    for name, members in sorted(classes.items(), key=lambda item: -sum(kernel.microseconds for kernel in item[1])):
        lines.append(_row(name, members, whole, steps))
    lines += ["", f"{'kernel':<28}{'ms a step':>12}{'share':>9}{'calls':>9}  name"]
    lines += [f"{_row(kernel_class(one.name), [one], whole, steps)}  {one.name[:120]}" for one in kernels[:top]]
    return "\n".join(lines) + "\n"


def _row(name: str, members: list[KernelTime], whole: float, steps: int) -> str:
    time, calls = sum(kernel.microseconds for kernel in members), sum(kernel.calls for kernel in members)
    return f"{name:<28}{time / steps / 1000:>12.3f}{time / whole:>9.1%}{calls // steps:>9,}"
