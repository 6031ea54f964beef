"""Scaling over numbers of GPUs."""

import pytest

from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.scaling import LIMITS, scale

A800 = cluster_of(find_gpu("a800"))
NUMBERS = (8, 128)


def test_strong_scaling_loses_and_names_its_limit(make_config):
    points = scale(make_config(), A800, NUMBERS, weak=False)
    assert [point.num_gpus for point in points] == list(NUMBERS)
    assert points[0].efficiency == 1 and points[0].limit == "none"
    assert points[1].efficiency < 1 and points[1].limit in LIMITS
    assert all(point.global_batch_size == 512 for point in points)


def test_weak_scaling_keeps_more(make_config):
    strong, weak = (scale(make_config(), A800, NUMBERS, weak=each) for each in (False, True))
    assert [point.global_batch_size for point in weak] == [512, 8192]
    assert weak[-1].efficiency > strong[-1].efficiency


def test_the_batch_ends_strong_scaling(make_config):
    points = scale(make_config("train.global_batch_size=8"), A800, (8, 4096), weak=False)
    assert points[1].best is None and "divides the global batch" in points[1].limit


def test_a_slow_network_is_named(make_config):
    slow = cluster_of(find_gpu("a800"), node_gb_per_s=1)
    assert scale(make_config(), slow, (8, 64), weak=False)[1].limit == "network"


def test_every_part_of_a_step_belongs_to_a_limit(make_job):
    from megatron_sky.planner.speed import step_seconds

    named = {part for parts in LIMITS.values() for part in parts}
    assert set(step_seconds(make_job()).parts()) - named == {"weights"}  # of programs that shard them


@pytest.mark.parametrize("numbers", [(16, 8, 16)])
def test_numbers_come_in_order_and_once(make_config, numbers):
    assert [point.num_gpus for point in scale(make_config(), A800, numbers, weak=False)] == [8, 16]
