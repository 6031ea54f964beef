"""The step's seconds and what they depend on."""

import pytest

from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.job import Job
from megatron_sky.planner.parameters import stage_parameters
from megatron_sky.planner.rehearsal import Request, rehearse_all, stage_ranks
from megatron_sky.planner.speed import linears, step_seconds, tokens_per_second_per_gpu


def speed(job):
    return tokens_per_second_per_gpu(job, step_seconds(job))


def test_the_parts_are_the_whole(make_job):
    for overrides in (["parallel.pp_size=2"], ["parallel.tp_size=2"], ["parallel.pp_size=2", "train.recompute=full"]):
        step = step_seconds(make_job(*overrides))
        assert sum(step.parts().values()) == pytest.approx(step.total)
        assert all(seconds >= 0 for seconds in step.parts().values())


def test_tokens_per_second_are_the_steps(make_job):
    job = make_job("parallel.pp_size=2")
    assert speed(job) * step_seconds(job).total * 16 == pytest.approx(512 * 4096)


def test_recomputation_costs_a_forward_pass(make_job):
    plain, again = step_seconds(make_job()), step_seconds(make_job("train.recompute=full"))
    assert again.recompute.total == pytest.approx(plain.forward.total, rel=0.15)


def test_the_bubble_shrinks_with_micro_batches_and_chunks(make_job):
    def share(*overrides):
        step = step_seconds(make_job("parallel.pp_size=4", *overrides))
        return step.bubble / step.total

    assert share("train.global_batch_size=512") < share("train.global_batch_size=64")
    assert share("parallel.vpp_size=2") < share()
    step = step_seconds(make_job("parallel.pp_size=4", "train.global_batch_size=64"))
    assert step.bubble / (step.forward.total + step.backward.total) == pytest.approx(3 / 16)


def test_overlap_hides_the_reduction(make_job):
    shown = step_seconds(make_job("train.global_batch_size=32"))
    hidden = step_seconds(make_job("train.global_batch_size=32", "parallel.overlap_grad_reduce=true"))
    assert hidden.data_parallel < shown.data_parallel


def test_only_what_is_split_communicates(make_job):
    alone = step_seconds(make_job(gpus=1)).parts()
    assert {"tensor_parallel", "context_parallel", "bubble", "p2p", "data_parallel"} == {
        name for name, seconds in alone.items() if seconds == 0 and name not in ("recompute", "weights", "imbalance")
    }
    assert step_seconds(make_job("parallel.tp_size=2")).parts()["tensor_parallel"] > 0
    assert step_seconds(make_job("parallel.cp_size=2")).parts()["context_parallel"] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("tp_size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_the_work_that_is_timed_is_the_programs(make_config, tp_size, sequence_parallel):
    """Products to the FLOP, and the bytes of every collective, against a rehearsal of both stages."""
    split = f"parallel.sequence_parallel={str(sequence_parallel).lower()}"
    config = make_config("parallel.pp_size=2", f"parallel.tp_size={tp_size}", split)
    job = Job.of(config, cluster_of(find_gpu("a800")), 16)
    micro, width = job.num_microbatches, job.model.hidden_size
    stream = micro * job.tokens * width * 2
    for rehearsed in rehearse_all([Request(config, 16, rank) for rank in stage_ranks(config, 16)]):
        stage = rehearsed.stage
        head = job.model.padded_vocab_size // tp_size * width if stage == 1 else 0
        weights = sum(n * k for n, k in linears(job)) * job.stage_layers(stage) + head
        assert rehearsed.flops["mm"] == 6 * micro * job.tokens * weights
        moved = {}
        for each in rehearsed.traffic:
            moved[each.group, each.collective] = moved.get((each.group, each.collective), 0) + each.bytes
        assert moved["DP", "reduce_scatter_tensor"] == 4 * stage_parameters(job, stage)
        assert moved["DP", "all_gather_into_tensor"] == 2 * stage_parameters(job, stage)
        assert moved["PP", "send"] == stream / (tp_size if sequence_parallel else 1)
        if tp_size > 1:  # four a layer, and one of the embedding or the output layer
            name = "reduce_scatter_tensor" if sequence_parallel else "all_reduce"
            assert moved["TP", name] == pytest.approx((4 * job.stage_layers(stage) + 1) * stream, rel=1e-3)
