"""What helps where nothing fits."""

import re

import pytest

from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.layout_text import apply_layout
from megatron_sky.planner.remedies import fixes, machines_that_fit, nothing_fits
from megatron_sky.planner.search import search

A800 = cluster_of(find_gpu("a800"))


def test_fixes_fit(make_config):
    config = apply_layout(make_config("train.micro_batch_size=64"), "tp1", 8)
    offered = fixes(config, A800, 8)
    assert 1 <= len(offered) <= 3 and all(each.forecast.fits for each in offered)
    speeds = [each.forecast.tokens_per_second_per_gpu for each in offered]
    assert speeds == sorted(speeds, reverse=True)


def test_machines_that_would_do_are_tried(make_config):
    offered = machines_that_fit(make_config("model.num_layers=800"), A800, 2)
    assert len(offered) == 3 and offered[0].startswith("use ") and all("tokens/s a GPU" in each for each in offered)
    assert "a800" in offered[0] and not any("a800" in each for each in offered[1:])


@pytest.mark.parametrize(
    ("overrides", "gpus", "said"),
    [
        (["model.num_layers=800"], 2, r"no layout of 2 a800 fits: the smallest, .* GiB of 80, most of it \w+"),
        (
            ["train.global_batch_size=7"],
            512,
            r"train.global_batch_size = 7: no layout of 512 GPUs divides the global batch.*\n.*use 8",
        ),
        (
            ["model.num_layers=7", "model.num_attention_heads=7", "model.kv_channels=64"],
            11,
            "no layout of 11 GPUs divides",
        ),
    ],
)
def test_where_nothing_works_it_is_said(make_config, overrides, gpus, said):
    config = make_config(*overrides)
    found = search(config, A800, gpus)
    assert not found.fitting and re.search(said, str(nothing_fits(config, A800, gpus, found)))
