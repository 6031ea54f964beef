"""The search over layouts."""

import pytest
import yaml

from megatron_sky.config.load import load_config
from megatron_sky.config.validate import find_problems
from megatron_sky.planner.hardware import cluster_of, find_gpu
from megatron_sky.planner.layout_text import apply_layout, layout_words, overlay
from megatron_sky.planner.search import largest_part, search

A800 = cluster_of(find_gpu("a800"))


@pytest.fixture(scope="module")
def skywork(tmp_path_factory):
    text = (
        "model: {preset: skywork_13b}\ntrain: {global_batch_size: 4096, run_dir: runs/x, tokens: 3.2T}\n"
        "schedule: {lr: 6e-4}\ndata: {train: [{name: text, path: data/text}]}\n"
    )
    path = tmp_path_factory.mktemp("skywork") / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config([path])


@pytest.fixture(scope="module")
def found(skywork):
    return search(skywork, A800, 512)


def test_skyworks_layout_comes_first(found):
    """The report's choice among pipelines without interleaving, and its split in two with it."""
    assert found.fitting[0].words.startswith("DP256 x PP2 ")
    plain = [each for each in found.fitting if each.config.parallel.vpp_size == 1]
    assert plain[0].words == "DP256 x PP2 MB1 zero1"


def test_dp512_does_not_fit(found):
    assert not any(
        each.forecast.job.layout.dp_size == 512 and each.config.train.recompute == "none" for each in found.fitting
    )


def test_what_is_found_breaks_no_rule_and_is_in_order(found):
    speeds = [each.forecast.tokens_per_second_per_gpu for each in found.fitting]
    assert speeds == sorted(speeds, reverse=True)
    assert all(each.forecast.fits and not find_problems(each.config, 512) for each in found.fitting)
    front = found.frontier()
    memory = [each.forecast.memory.total for each in front]
    assert front[0] is found.fitting[0] and memory == sorted(memory, reverse=True)
    assert found.broken and found.too_large


@pytest.mark.parametrize("text", ["PP2 x DP256", "tp2 pp4 vpp13 mb2 sp full", "TP2,CP2 selective", "pp2 fp8"])
def test_a_layout_written_is_read_again(skywork, text):
    config = apply_layout(skywork, text, 512)
    assert apply_layout(skywork, layout_words(config, 512), 512) == config


def test_the_overlay_makes_the_layout(skywork, found, tmp_path):
    path = tmp_path / "layout.yaml"
    path.write_text(overlay(found.fitting[0].config), encoding="utf-8")
    assert set(yaml.safe_load(path.read_text(encoding="utf-8"))) == {"parallel", "precision", "train"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model: {preset: skywork_13b}\ntrain: {global_batch_size: 4096, run_dir: runs/x, tokens: 3.2T}\n"
        "schedule: {lr: 6e-4}\ndata: {train: [{name: text, path: data/text}]}\n",
        encoding="utf-8",
    )
    assert load_config([recipe, path]) == found.fitting[0].config


def test_8_bit_products_are_tried_where_the_gpu_has_them(make_config):
    formats = {
        each.config.precision.fp8 is not None for each in search(make_config(), cluster_of(find_gpu("h100")), 8).fitting
    }
    assert formats == {True, False}
    assert all(each.config.precision.fp8 is None for each in search(make_config(), A800, 8).fitting)


def test_the_largest_part_is_named(found):
    assert largest_part(found.fitting[0].forecast.memory) == "activations"
