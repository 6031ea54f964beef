"""Over gloo each rank gets what torch's own collectives give it, in place or not, at once or later."""

import pytest

from megatron_sky.config.sections.training import ParallelConfig
from megatron_sky.distributed.context import open_context


def exchanges(info, rows: int, slice_size: int) -> dict:
    """This rank's sums and gathered rows, as torch's list collectives and ours make them."""
    import torch
    import torch.distributed as dist

    from megatron_sky.distributed import gloo_collectives

    gloo_collectives._SLICE = slice_size
    with open_context(ParallelConfig(distributed_optimizer=False), info) as context:
        size = context.world_size
        whole = torch.randn(size * rows, 3, generator=torch.Generator().manual_seed(context.rank))
        own = whole[context.rank * rows : (context.rank + 1) * rows].clone()
        total, gathered = whole.clone(), [torch.empty_like(own) for _ in range(size)]
        dist.all_reduce(total)
        dist.all_gather(gathered, own)
        sums, parts = {}, {}
        for async_op in (False, True):
            sums[f"apart, later={async_op}"] = part = torch.empty_like(own)
            wait(dist.reduce_scatter_tensor(part, whole, async_op=async_op), async_op)
            parts[f"apart, later={async_op}"] = output = torch.empty_like(whole)
            wait(dist.all_gather_into_tensor(output, own, async_op=async_op), async_op)
            buffer = whole.clone()
            part = buffer.chunk(size)[context.rank]
            wait(dist.reduce_scatter_tensor(part, buffer, async_op=async_op), async_op)
            sums[f"in place, later={async_op}"] = part.clone()
            part.copy_(own)
            parts[f"in place, later={async_op}"] = buffer
            wait(dist.all_gather_into_tensor(buffer, part, async_op=async_op), async_op)
        expected = total.chunk(size)[context.rank]
        return {
            "sums": {name: float((value - expected).abs().sum()) for name, value in sums.items()},
            "parts": {name: torch.equal(value, torch.cat(gathered)) for name, value in parts.items()},
            "ours": dist.all_gather_into_tensor.__module__ == gloo_collectives.__name__,
        }


def wait(handle, async_op: bool) -> None:
    assert (handle is not None) == async_op
    if handle is not None:
        handle.wait()
        handle.wait()  # a second time changes nothing


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize(("rows", "slice_size"), [(5, 1 << 22), (5, 4), (0, 4)])
def test_they_are_torchs(ranks, world_size, rows, slice_size):
    for facts in ranks(world_size, exchanges, rows, slice_size):
        assert facts["ours"]
        assert all(facts["parts"].values()), facts["parts"]
        assert max(facts["sums"].values()) < 1e-5, facts["sums"]


def refusal(info) -> str:
    import torch
    import torch.distributed as dist

    with open_context(ParallelConfig(distributed_optimizer=False), info):
        whole = torch.ones(2, 3)
        try:
            dist.reduce_scatter_tensor(torch.empty(1, 3), whole, op=dist.ReduceOp.MAX)
        except AssertionError as error:
            return str(error)
    return "taken"


def test_another_operation_is_refused(ranks):
    assert all("not built" in text for text in ranks(2, refusal))


def reduced_alone(info) -> list[bool]:
    """In a group of this rank only, at once and later, within a job of more."""
    import torch
    import torch.distributed as dist

    with open_context(ParallelConfig(distributed_optimizer=False), info) as context:
        groups = [dist.new_group([rank]) for rank in range(context.world_size)]
        alone = groups[context.rank]
        answers = []
        for op in (dist.ReduceOp.SUM, dist.ReduceOp.MAX):
            for async_op in (False, True):
                tensor = torch.arange(3.0) + context.rank
                wait(dist.all_reduce(tensor, op=op, group=alone, async_op=async_op), async_op)
                answers.append(torch.equal(tensor, torch.arange(3.0) + context.rank))
        total = torch.ones(3) * context.rank
        dist.all_reduce(total, dist.ReduceOp.MAX)
        return [*answers, torch.equal(total, torch.ones(3) * (context.world_size - 1))]


def test_an_all_reduce_of_one_rank_is_what_it_is_given(ranks):
    assert ranks(2, reduced_alone) == [[True] * 5] * 2
