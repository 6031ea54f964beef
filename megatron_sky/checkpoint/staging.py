"""Memory for saves beside training on a CPU: what a save writes, copied in an instant, and kept from save to save.

A fork shares the memory of training until either side writes to it; then the kernel copies page by page. Where the
writer reads training's own tensors, the step after a save pays for every page of the weights, the moments and the
gradients. So they are copied into memory that training does not touch, where there is room for it, and all that the
writer does not read is left out of the fork. On a GPU megatron-core copies the tensors to the host already.
"""

import contextlib
import ctypes
import mmap
import os
import resource
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_sky.distributed.context import ParallelContext
from megatron_sky.distributed.cpu_memory import huge_pages
from megatron_sky.log import get_logger

if TYPE_CHECKING:
    import torch
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer import MegatronOptimizer

log = get_logger(__name__)

Bucket = tuple[Any, str, tuple[list, list]]
"""A file's path, its name, and what goes into it: objects and tensors, each behind megatron-core's item."""

_ALIGNED = 64  # bytes, as torch places tensors
_SPARE = 0.05  # of the machine's memory, which stays free
_WORTH_IT = 1 << 20  # bytes; smaller tensors are shared with a fork
_MADV_DONTFORK, _MADV_DOFORK = 10, 11


class Staging:
    """Memory that holds one save at a time. Nothing is taken until the first save, and none where it would be short."""

    def __init__(self, context: ParallelContext):
        self._context = context
        self._has_room: bool | None = None
        self._memory: mmap.mmap | None = None

    def staged(self, request: "AsyncRequest") -> "AsyncRequest":
        """megatron-core's request to write, of copies where there is room for them. Collective.

        Whether there is room is decided once, for all ranks of a machine alike, and told.
        """
        buckets: Sequence[Bucket] = request.async_fn_args[1] if request.async_fn is not None else ()
        if self._has_room is None:
            tensors = tensors_of(buckets)
            on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
            demand = (socket.gethostname(), on_cpu, _places(tensors)[1], _step_bytes())
            everyone = self._context.gather_objects(demand)
            self._has_room = self._decide([other[1:] for other in everyone if other[0] == demand[0]])
        return request._replace(preload_fn=partial(self._copy, buckets)) if self._has_room and buckets else request

    def _decide(self, demands: Sequence[tuple[bool, int, int]]) -> bool:
        """`demands` of this machine's ranks: on a CPU or not, bytes to copy, bytes that a step takes on top."""
        if not all(on_cpu for on_cpu, _, _ in demands):
            return False
        wanted, steps = (sum(numbers) for numbers in list(zip(*demands, strict=True))[1:])
        free, total = available_memory()
        is_enough = wanted + steps + int(_SPARE * total) <= free
        if is_enough:
            log.info("saves beside training: %.0f MiB of memory are kept for copies of the state", wanted / 2**20)
        else:
            log.warning(
                "saves beside training: %.1f GiB of memory are free, copies of the state and the steps need %.1f: the "
                "writer shares training's memory, and the step after a save takes longer\n  fix: more memory, or "
                "checkpoint.async_save: false",
                free / 2**30,
                (wanted + steps) / 2**30,
            )
        return is_enough

    def _copy(self, buckets: Sequence[Bucket]) -> list[Bucket]:
        """The same with tensors in this memory; what two tensors share is copied once. The last copies are gone."""
        import torch

        tensors = tensors_of(buckets)
        places, size = _places(tensors)
        if self._memory is None or len(self._memory) < size:
            self._memory = huge_pages(size)
        copies = {}
        with torch.no_grad():
            for tensor in tensors:
                key = _key(tensor)
                if key not in copies and tensor.numel():
                    copies[key] = torch.frombuffer(
                        self._memory, dtype=tensor.dtype, count=tensor.numel(), offset=places[key]
                    ).copy_(tensor.detach().reshape(-1))

        def held(tensor: torch.Tensor) -> torch.Tensor:
            return copies[_key(tensor)].view(tensor.shape) if tensor.numel() else tensor

        return [
            (path, name, (objects, [(item, held(tensor)) for item, tensor in in_file]))
            for path, name, (objects, in_file) in buckets
        ]


def tensors_of(buckets: Sequence[Bucket]) -> "list[torch.Tensor]":
    """All tensors of the files of a save."""
    return [tensor for _, _, (_, in_file) in buckets for _, tensor in in_file]


def _key(tensor: "torch.Tensor") -> tuple:
    """Equal for tensors that are the same numbers in the same memory, in their own order."""
    return tensor.data_ptr(), tensor.dtype, tensor.numel(), tensor.is_contiguous() or (tensor.shape, tensor.stride())


def _places(tensors: "Sequence[torch.Tensor]") -> tuple[dict[tuple, int], int]:
    """Where each begins in the memory, by its key, and the bytes of all."""
    places, end = {}, 0
    for tensor in tensors:
        if _key(tensor) not in places:
            places[_key(tensor)] = end
            end += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    return places, end


def training_memory(
    chunks: "Sequence[DistributedDataParallel]", optimizer: "MegatronOptimizer | None"
) -> "Iterator[torch.Tensor]":
    """What training writes at every step: weights, gradients, master weights and moments."""
    import torch

    for param in (param for chunk in chunks for param in chunk.parameters()):
        yield from (t for t in (param, param.grad, getattr(param, "main_grad", None)) if t is not None)
    for one in getattr(optimizer, "chained_optimizers", [optimizer]):
        if (inner := getattr(one, "optimizer", None)) is not None:
            yield from (param for group in inner.param_groups for param in group["params"])
            yield from (t for state in inner.state.values() for t in state.values() if isinstance(t, torch.Tensor))


@contextlib.contextmanager
def left_out_of_forks(tensors: "Iterable[torch.Tensor]", *, but: "Iterable[torch.Tensor]") -> Iterator[None]:
    """A process forked meanwhile has not the memory of `tensors`, which is no loss if it never asks for it: this one
    then writes there without copying. What shares memory with `but` stays."""
    if sys.platform != "linux":
        yield
        return
    kept = [(tensor.data_ptr(), tensor.data_ptr() + tensor.untyped_storage().nbytes()) for tensor in but]
    storages = [tensor.untyped_storage() for tensor in tensors if tensor.device.type == "cpu"]
    regions = {(one.data_ptr(), one.data_ptr() + one.nbytes()) for one in storages if one.nbytes() >= _WORTH_IT}
    free = [(start, end) for start, end in regions if all(end <= other[0] or other[1] <= start for other in kept)]
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    page = mmap.PAGESIZE
    whole = [(-(-start // page) * page, end // page * page) for start, end in free]
    out = [(start, end) for start, end in whole if madvise(start, end - start, _MADV_DONTFORK) == 0]
    try:
        yield
    finally:
        for start, end in out:
            madvise(start, end - start, _MADV_DOFORK)


def available_memory() -> tuple[int, int]:
    """(bytes that can still be taken, bytes in all) of this machine, or of the container or job it is limited to."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # no Linux
        free = page * os.sysconf("SC_AVPHYS_PAGES")
    for limit, used in _group_limits(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")):
        free, total = min(free, limit - used), min(total, limit)
    return free, total


def _group_limits(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used but for what is cached of files) of each control group that limits this process's memory."""
    try:
        own = root / membership.read_text(encoding="utf-8").strip().rpartition("::")[2].lstrip("/")
    except OSError:
        return
    for folder in [own, *own.parents]:
        try:
            limit = (folder / "memory.max").read_text(encoding="ascii").strip()
            used = int((folder / "memory.current").read_text(encoding="ascii"))
            stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        except OSError:
            continue  # no group, or the root, which has no limit
        if limit != "max":
            yield int(limit), used - int(stat.get("inactive_file", 0))
        if folder == root:
            return


def _step_bytes() -> int:
    """What this process held at most beyond what it holds now, between two steps."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        now = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # no Linux
        now = 0
    return max(0, peak - now)
