"""Ranks that agree: small collectives, groups by layout, and one rank's error as everybody's."""

import pytest

from megatron_sky.config.schema import ParallelConfig


def together(info) -> dict:
    from megatron_sky.distributed.context import open_context
    from megatron_sky.errors import CheckpointError

    with open_context(ParallelConfig(), info) as context:

        def fails() -> None:
            raise CheckpointError("the folder is gone")

        told = ""
        try:
            context.from_first_rank(fails)
        except CheckpointError as error:
            told = str(error)
        done: list[int] = []
        answer = context.from_first_rank(lambda: done.append(1) or {"a": 1})
        context.barrier()
        return {
            "agreed": context.agree([info.rank, 5 - info.rank, 0]),
            "gathered": context.gather_objects(f"rank {info.rank}"),
            "answer": answer,
            "worked": bool(done),
            "told": told,
            "size": context.world_size,
        }


def places(info, parallel: dict) -> dict:
    import torch
    import torch.distributed as dist

    from megatron_sky.distributed.context import open_context

    with open_context(ParallelConfig(**parallel), info) as context:
        total = context.total_from_last_stage(torch.tensor([info.rank + 1.0 if context.is_last_stage else -100.0]))
        return {
            "place": context.place,
            "first": [context.chunk_is_first(chunk) for chunk in range(context.layout.vpp_size)],
            "last": [context.chunk_is_last(chunk) for chunk in range(context.layout.vpp_size)],
            "tp": dist.get_process_group_ranks(context.tp_group),
            "pp": dist.get_process_group_ranks(context.pp_group),
            "dp": dist.get_process_group_ranks(context.dp_cp_group),
            "total": total.item(),
        }


def test_what_all_ranks_come_to(ranks):
    results = ranks(3, together)
    for rank, result in enumerate(results):
        assert result["agreed"] == [2, 5, 0] and result["gathered"] == ["rank 0", "rank 1", "rank 2"]
        assert result["answer"] == {"a": 1} and result["told"] == "the folder is gone" and result["size"] == 3
        assert result["worked"] == (rank == 0), "rank 0 alone does the work"


@pytest.mark.parametrize(
    ("parallel", "tp", "pp", "dp", "totals"),
    [
        ({}, [[0], [1]], [[0], [1]], [[0, 1]] * 2, [3.0, 3.0]),
        ({"tp_size": 2}, [[0, 1]] * 2, [[0], [1]], [[0], [1]], [1.0, 2.0]),
        ({"pp_size": 2}, [[0], [1]], [[0, 1]] * 2, [[0], [1]], [2.0, 2.0]),
    ],
)
def test_groups_follow_the_layout(parallel, tp, pp, dp, totals, ranks):
    results = ranks(2, places, parallel)
    for name, groups in (("tp", tp), ("pp", pp), ("dp", dp)):
        assert [result[name] for result in results] == groups
    assert [result["total"] for result in results] == totals, "summed over data ranks, from the last stage to all"


def test_of_two_chunks_the_first_holds_the_embedding_and_the_last_the_output(ranks):
    first, last = ranks(2, places, {"pp_size": 2, "vpp_size": 2})
    assert (first["first"], first["last"]) == ([True, False], [False, False])
    assert (last["first"], last["last"]) == ([False, False], [False, True])


def fake_groups(info) -> tuple:
    from megatron.core import parallel_state
    from torch.distributed import distributed_c10d, get_process_group_ranks

    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_fake_context

    create = parallel_state.create_group
    with open_fake_context(ParallelConfig(tp_size=2, pp_size=2), 5, 16) as context:
        groups = (context.tp_group, context.pp_group, context.dp_cp_group)
        members = [get_process_group_ranks(group) for group in groups]
        number = len(distributed_c10d._world.pg_map)
    return members, number, parallel_state.create_group is create


def test_a_job_that_does_not_exist_has_this_ranks_groups_alone(ranks):
    ((members, number, restored),) = ranks(1, fake_groups)
    assert members == [[4, 5], [5, 13], [1, 3, 5, 7]] and number < 30 and restored
