"""Goodput of jobs whose nodes fail."""

from dataclasses import replace

import pytest

from megatron_sky.planner.goodput import (
    Reliability,
    best_interval,
    goodput,
    simulate,
    spares_worth_having,
    too_often,
    young_daly,
)

# 16,384 GPUs with the interruptions of the Llama 3 report (arXiv 2407.21783, section 3.3.4).
LARGE = Reliability(
    num_nodes=2048,
    node_mtbf_hours=6335,
    restart_seconds=600,
    checkpoint_stall_seconds=10,
    repair_hours=24,
    num_spares=1000,
)
SMALL = replace(LARGE, num_nodes=64)


def test_failures_of_a_job_come_as_often_as_its_nodes_fail():
    assert LARGE.job_mtbf_seconds == pytest.approx(3.09 * 3600, rel=0.01)


@pytest.mark.parametrize("r", [LARGE, SMALL], ids=["2048 nodes", "64 nodes"])
@pytest.mark.parametrize("interval", [300, 1800])
def test_the_closed_form_is_what_is_played(r, interval):
    assert simulate(interval, r, num_failures=20_000) == pytest.approx(goodput(interval, r), rel=0.01)


@pytest.mark.parametrize("r", [LARGE, SMALL], ids=["2048 nodes", "64 nodes"])
def test_the_best_interval_is_youngs_and_dalys(r):
    interval = best_interval(r)
    assert interval == pytest.approx(young_daly(r), rel=0.05)
    assert goodput(interval, r) > max(goodput(interval / 2, r), goodput(interval * 2, r))


def test_less_is_lost_by_fewer_nodes_and_shorter_restarts():
    def best(r):
        return goodput(best_interval(r), r)

    assert best(LARGE) < best(SMALL) < 1
    assert best(replace(LARGE, restart_seconds=60)) > best(LARGE)
    assert best(replace(LARGE, checkpoint_stall_seconds=1)) > best(LARGE)


def test_spares_pay_until_they_stand_idle():
    found = spares_worth_having(best_interval(LARGE), LARGE, num_failures=2000)
    shares = [share for _, share, _ in found]
    assert found[0][0] == 0 and shares[0] < 0.2 < 0.8 < max(shares)  # away for a day, one fails every three hours
    best = max(found, key=lambda each: each[2])
    assert 4 <= best[0] <= 16


def test_the_same_seed_gives_the_same_job():
    assert simulate(600, LARGE, num_failures=100, seed=1) == simulate(600, LARGE, num_failures=100, seed=1)
    assert simulate(600, LARGE, num_failures=100, seed=1) != simulate(600, LARGE, num_failures=100, seed=2)


def test_failures_faster_than_restarts_are_told():
    assert not too_often(LARGE)
    assert "2,048 nodes fails every 2 s" in too_often(replace(LARGE, node_mtbf_hours=1))
    assert too_often(replace(LARGE, checkpoint_stall_seconds=1e9))
