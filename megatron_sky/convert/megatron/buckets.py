"""Where each parameter lies in the flat buffers of megatron-core's distributed optimizer. Pure arithmetic.

A model chunk's parameters lie in its buffer in the reverse of their order. The buffer is cut into buckets; a parameter
begins at a multiple of 64 elements, and a bucket at one of 128 and of the data-parallel size, so that a place within a
bucket depends on neither. A tied embedding on two stages has a bucket of its own.
"""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

_ALIGNED = 64  # elements
_SMALLEST_BUCKET = 40_000_000  # elements, where gradients are reduced while others are computed
_BUCKET_PER_RANK = 1_000_000

Sizes = Mapping[str, int]


@dataclass
class Bucket:
    """The parameters of a bucket: name -> first element in it. `size`: its elements without padding at its end."""

    starts: dict[str, int] = field(default_factory=dict)
    size: int = 0


def place(sizes: Sizes, *, bucket_size: int | None, alone: Container[str] = ()) -> list[Bucket]:
    """The buckets of a model chunk.

    Args:
        sizes: name -> elements, in the order of its parameters.
        bucket_size: a bucket ends once it has as many elements; None: there is one.
        alone: parameters that have a bucket of their own.
    """
    buckets = [Bucket()]
    for name, size in reversed(list(sizes.items())):
        start = _aligned(buckets[-1].size)
        if name in alone and buckets[-1].starts:
            buckets[-1].size = start
            buckets.append(Bucket())
            start = 0
        buckets[-1].starts[name] = start
        buckets[-1].size = start + size
        if name in alone or (bucket_size is not None and buckets[-1].size >= bucket_size):
            buckets.append(Bucket())
    return buckets if buckets[-1].starts else buckets[:-1]


def place_in(sizes: Sizes, bucket_sizes: Sequence[int]) -> list[Bucket] | None:
    """The buckets of a model chunk, of known sizes; None where its parameters don't fill them."""
    rest = list(sizes.items())[::-1]
    buckets = []
    for size in bucket_sizes:
        bucket = Bucket(size=size)
        end = 0
        while rest and _aligned(end) + rest[0][1] <= size:
            name, count = rest.pop(0)
            bucket.starts[name] = _aligned(end)
            end = _aligned(end) + count
        if size not in (end, _aligned(end)):
            return None
        buckets.append(bucket)
    return None if rest else buckets


def bucket_size_of(settings: Mapping, *, stage: int, chunk: int, num_parameters: int) -> int | None:
    """The size at which Megatron-LM's saved args end a bucket; None where a buffer is one bucket."""
    first = stage == 0 and chunk == 0 and not settings.get("overlap_param_gather_with_optimizer_step")
    if not settings.get("overlap_grad_reduce") or not first:
        return None
    if count := settings.get("ddp_num_buckets"):
        return num_parameters // int(count)
    ranks = int(settings.get("data_parallel_size") or 1) * int(settings.get("context_parallel_size") or 1)
    return settings.get("ddp_bucket_size") or max(_SMALLEST_BUCKET, _BUCKET_PER_RANK * ranks)


def _aligned(element: int) -> int:
    return math.ceil(element / _ALIGNED) * _ALIGNED
