"""The pipeline played through, against the closed form of the step."""

from itertools import pairwise

import pytest

from megatron_sky.planner.speed import step_seconds
from megatron_sky.planner.timeline import order_of_passes, play

LAYOUTS = (
    ["parallel.pp_size=1"],
    ["parallel.pp_size=2"],
    ["parallel.pp_size=4"],
    ["parallel.pp_size=4", "parallel.vpp_size=2"],
    ["parallel.pp_size=2", "parallel.vpp_size=4"],
    ["parallel.pp_size=8", "train.micro_batch_size=4"],
)


@pytest.mark.parametrize("overrides", LAYOUTS, ids=" ".join)
def test_the_closed_form_is_what_is_played(make_job, overrides):
    job = make_job(*overrides, "model.hidden_size=4096", "model.ffn_hidden_size=11008", gpus=32)
    assert play(job).seconds == pytest.approx(step_seconds(job).total, rel=0.05)


@pytest.mark.parametrize("overrides", LAYOUTS, ids=" ".join)
def test_every_pass_once_and_no_more_in_flight_than_counted(make_job, overrides):
    job = make_job(*overrides, gpus=32)
    for stage in range(job.layout.pp_size):
        passes = order_of_passes(job, stage)
        assert len(set(passes)) == len(passes) == 2 * job.num_microbatches * job.layout.vpp_size
        held = most = 0
        for kind, _, _ in passes:
            held += 1 if kind == "forward" else -1
            most = max(most, held)
        assert most == job.chunks_in_flight(stage) and held == 0


def test_stages_do_one_thing_at_a_time(make_job):
    timeline = play(make_job("parallel.pp_size=4"))
    for stage in range(4):
        spans = sorted((each.start, each.seconds) for each in timeline.spans if each.stage == stage)
        for (start, seconds), (after, _) in pairwise(spans):
            assert start + seconds <= after + 1e-9


def test_interleaving_shortens_the_wait(make_job):
    plain, interleaved = (
        play(make_job("parallel.pp_size=4")),
        play(make_job("parallel.pp_size=4", "parallel.vpp_size=2")),
    )
    assert interleaved.idle_share() < plain.idle_share()
