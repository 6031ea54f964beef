"""All-gather and reduce-scatter over gloo, as exchanges of what each rank needs and nothing more.

torch makes gloo's reduce-scatter of a whole all-reduce and two copies, and its all-gather of lists that are copied in
and out; on two ranks they take 3 and 4 times as long as these. Megatron-core asks for both in every step of the
distributed optimizer and of sequence parallelism.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist

_torch_all_reduce = dist.all_reduce
_SLICE = 1 << 22
"""Elements received at a time; a rank's part of the gradients is one tensor of up to gigabytes."""


class Pending:
    """Answers `wait` as torch's handles do."""

    def __init__(self, wait: Callable[[], None]):
        self._wait: Callable[[], None] | None = wait

    def wait(self) -> None:
        if self._wait is not None:
            wait, self._wait = self._wait, None
            wait()


def all_reduce(tensor: torch.Tensor, op=dist.ReduceOp.SUM, group=None, async_op: bool = False):
    """torch's own; in a group of one rank, where gloo copies and waits, `tensor` is the result already."""
    if dist.get_world_size(group) == 1:
        return _answer(lambda: None, async_op)
    return _torch_all_reduce(tensor, op, group, async_op)


def all_gather(output: torch.Tensor, input: torch.Tensor, group=None, async_op: bool = False) -> Pending | None:
    """Every rank's `input` `[n, ...]` into `output` `[ranks * n, ...]`, of which `input` may be this rank's part.

    `output` is contiguous. Each part is broadcast by the rank that has it, straight into its place.
    """
    parts = output.view(-1).chunk(dist.get_world_size(group))
    own = parts[dist.get_rank(group)]
    if own.data_ptr() != input.data_ptr():
        own.copy_(input.reshape(-1))
    works = [dist.broadcast(part, group=group, group_src=rank, async_op=True) for rank, part in enumerate(parts)]
    return _answer(lambda: _wait_for(works), async_op)


def reduce_scatter(
    output: torch.Tensor, input: torch.Tensor, op=dist.ReduceOp.SUM, group=None, async_op: bool = False
) -> Pending | None:
    """The sum over ranks of `input` `[ranks * n, ...]`, of which each rank gets its part `[n, ...]` in `output`.

    `output` may be this rank's part of `input`. Both are contiguous; `op` is a sum. Rank r adds the parts of ranks r,
    r-1, r-2 and so on, always in this order.
    """
    assert op == dist.ReduceOp.SUM, f"{op} is not built"
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    parts = input.view(-1).chunk(size)
    own = output.view(-1)
    if own.data_ptr() != parts[rank].data_ptr():
        own.copy_(parts[rank])
    works = [
        dist.isend(piece, group=group, group_dst=(rank + distance) % size)
        for distance in range(1, size)
        for piece in parts[(rank + distance) % size].split(_SLICE)
    ]

    def add_others() -> None:
        received = torch.empty(min(_SLICE, own.numel()), dtype=own.dtype)
        for distance in range(1, size):
            for piece in own.split(_SLICE):
                part = received[: piece.numel()]
                work = dist.irecv(part, group=group, group_src=(rank - distance) % size)
                assert work is not None, "this rank is not in the group"
                work.wait()
                piece.add_(part)
        _wait_for(works)

    return _answer(add_others, async_op)


def _wait_for(works) -> None:
    for work in works:
        work.wait()


def _answer(wait: Callable[[], None], async_op: bool) -> Pending | None:
    if async_op:
        return Pending(wait)
    wait()
    return None
