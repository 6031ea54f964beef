"""Seconds of one kernel on one GPU: matrix products, attention, and what only moves memory."""

import math

from megatron_sky.planner.hardware import Coefficients, Gpu

# Output tiles that the libraries choose from (rows, columns), and how fast each is beside the largest: a tile of a x b
# reads a + b for each a * b of products.
_TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.94), (128, 64, 0.8), (64, 64, 0.62))


def matmul(m: float, n: float, k: float, kind: str, gpu: Gpu, c: Coefficients, batch: float = 1) -> float:
    """`batch` products [m, k] x [k, n] in format `kind`.

    The larger of two: the arithmetic in whole tiles, in whole waves of them over the multiprocessors, with the start
    and end of a tile's loop over k as `tile_overhead_k` further steps; and reading and writing the matrices once.
    """
    wave = max(rate * _fill(m, n, batch, rows, columns, gpu.num_sms) for rows, columns, rate in _TILES)
    reach = c.of("matmul_efficiency", gpu.name, gpu.architecture) * c.of("format_efficiency", kind)
    reach *= wave * k / (k + c["tile_overhead_k"])
    if any(size % 8 for size in (n, k)):
        reach /= c["unaligned_slowdown"]
    arithmetic = 2 * batch * m * n * k / (gpu.peak(kind) * reach)
    width = {"fp32": 4, "fp8": 1, "mxfp8": 1, "nvfp4": 0.5}.get(kind, 2)
    moved = batch * ((m * k + k * n) * width + m * n * max(width, 2))
    return max(arithmetic, memory(moved, gpu, c), c["launch_floor_s"])


def _fill(m: float, n: float, batch: float, rows: int, columns: int, num_sms: int) -> float:
    """The share of the multiprocessors' work that is of the result, not past its edges or in an unfilled wave."""
    tiles = math.ceil(m / rows) * math.ceil(n / columns) * batch
    waves = math.ceil(tiles / num_sms)
    return m * n * batch / (waves * num_sms * rows * columns)


def memory(moved: float, gpu: Gpu, c: Coefficients, kernels: float = 1) -> float:
    """Reading and writing `moved` bytes in that many kernels."""
    return max(moved / (gpu.memory_gb_per_s * 1e9 * c["memory_efficiency"]), kernels * c["launch_floor_s"])


def flash_attention(tokens: float, keys: float, heads: float, head_size: int, gpu: Gpu, c: Coefficients) -> tuple:
    """(forward, backward) seconds of causal attention of `tokens` queries to half of `keys` each, for `heads` heads.

    4 d FLOPs a query and key, half of them masked and left out; the backward pass computes the scores again: 2.5 times
    (Dao 2023, arXiv 2307.08691, section 4.1).
    """
    flops = 4 * tokens * keys * heads * head_size / 2
    lead = keys / (keys + c["attention_overhead_keys"]) * head_size / (head_size + c["attention_overhead_head"])
    peak = gpu.peak("bf16")
    forward = flops / (peak * c.of("attention_forward", gpu.architecture) * lead)
    backward = 2.5 * flops / (peak * c.of("attention_backward", gpu.architecture) * lead)
    return max(forward, c["launch_floor_s"]), max(backward, 3 * c["launch_floor_s"])


def unfused_attention(
    tokens: float, keys: float, heads: float, head_size: int, dropout: bool, gpu: Gpu, c: Coefficients
) -> tuple:
    """(forward, backward) seconds where the scores are written out: batched products and a fused masked softmax.

    Bytes a score in 16 bits: softmax reads and writes it, dropout too and writes a mask; the backward pass reads scores
    and gradient and writes a gradient.
    """
    batch = tokens / keys * heads
    scores = tokens * keys * heads
    products = (
        matmul(keys, keys, head_size, "bf16", gpu, c, batch),
        matmul(keys, head_size, keys, "bf16", gpu, c, batch),
    )
    forward = sum(products) + memory(scores * (9 if dropout else 4), gpu, c)
    backward = 2 * sum(products) + memory(scores * (13 if dropout else 6), gpu, c)
    return forward, backward
