"""The sizes that are measured: powers of two that belong to no model, for a CPU or, larger, for a GPU."""

from collections.abc import Sequence

from megatron_sky.planner.measured import TINY

Sizes = Sequence[tuple[int, ...]]

_PRODUCTS = (
    (64, 192, 64),
    (64, 64, 64),
    (64, 384, 64),
    (64, 64, 192),
    (256, 256, 256),
    (256, 2048, 1024),
    (512, 512, 512),
    (512, 4096, 512),
    (512, 512, 2048),
    (1024, 1024, 1024),
    (1024, 256, 512),
    (1024, 512, 256),
    (1024, 2048, 512),
    (1024, 512, 1024),
    (1024, 8192, 512),
    (2048, 1024, 256),
    (2048, 512, 2048),
    (2048, 4096, 1024),
)
_ATTENTION = (
    (1, 64, 64, 2, 32),
    (1, 256, 256, 4, 64),
    (2, 512, 512, 8, 64),
    (1, 1024, 1024, 8, 64),
    (2, 512, 512, 4, 128),
    (1, 2048, 2048, 4, 64),
    (4, 256, 256, 8, 64),
)
_LAYERS = (
    (64, 64, 192, 192),
    (256, 512, 1536, 1024),
    (512, 512, 1536, 2048),
    (1024, 256, 768, 1024),
    (1024, 512, 768, 1024),
    (1024, 512, 1536, 1024),
    (1024, 1024, 3072, 2048),
    (2048, 512, 1536, 2048),
)
_LOSS = ((64, 128), (512, 4096), (1024, 8192), (1024, 16384))
_EMBEDDING = ((64, 128, 64), (512, 8192, 256), (1024, 16384, 512))
_PARAMETERS = (1 << 20, 1 << 23)
_BYTES = (1 << 10, 1 << 16, 1 << 20, 1 << 22, 1 << 24, 1 << 26)
STEPS = ((1, 1), (1, 4), (3, 1), (3, 4))
"""Layers and micro batches of the tiny model."""
WORK_MICROSECONDS = (5000, 20000)
"""Between two collectives."""


def sizes_of(kind: str, on_gpu: bool) -> Sizes:
    """The sizes of a kind of operator; a GPU's are larger, the tiny model's stay."""
    if kind.startswith("product"):
        return _grown(_PRODUCTS, (4, 4, 4), on_gpu)
    if kind.startswith("attention"):
        return _grown(_ATTENTION, (2, 4, 4, 2, 1), on_gpu)
    if "layer" in kind:
        return _grown(_LAYERS, (4, 4, 4, 4), on_gpu)
    if kind == "loss":
        return _grown(_LOSS, (4, 2), on_gpu)
    if kind == "embedding":
        return _grown(_EMBEDDING, (4, 2, 4), on_gpu)
    assert kind in ("gradients", "update"), kind
    return [(number * (8 if on_gpu else 1),) for number in _PARAMETERS]


def bytes_of_collectives(on_gpu: bool) -> Sequence[int]:
    return (*_BYTES, 1 << 28) if on_gpu else _BYTES


def _grown(sizes: Sizes, factors: tuple[int, ...], on_gpu: bool) -> Sizes:
    if not on_gpu:
        return sizes
    large = [tuple(size * factor for size, factor in zip(row, factors, strict=True)) for row in sizes]
    tiny = [row for row in sizes if row[0] <= TINY["tokens"] and max(row) <= 2 * TINY["ffn"]]
    return [*tiny, *(row for row in large if row not in tiny)]
