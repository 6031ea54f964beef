"""A dry run: what it tells, and what ends it."""

import sys

import pytest

from megatron_sky.errors import DataError, MissingDependency
from megatron_sky.trainer.dry_run import print_plan
from megatron_sky.trainer.preflight import preflight


def test_a_package_that_the_run_would_miss_ends_the_dry_run(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = recipe("monitor.wandb.project=p")
    with pytest.raises(MissingDependency, match=r"monitor\.wandb needs the package `wandb`"):
        print_plan(config, 1)
    assert not preflight(config, 2, leads=False).errors, "rank 0 alone writes there"


def test_a_package_that_the_nodes_need_is_a_note(recipe, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    print_plan(recipe("model.backend=te"), 1)
    assert "model.backend=te needs transformer-engine, which is not installed here" in capsys.readouterr().out


def test_a_dry_run_tells_what_it_can_before_the_files_that_are_missing(recipe, capsys):
    with pytest.raises(DataError, match=r"/nowhere/a\.bin does not exist"):
        print_plan(recipe("data.train.0.path=/nowhere/a"), 2)
    said = capsys.readouterr().out
    assert "not known without the data files" in said and "checkpoint.interval is not set" in said
    assert "every check passed" not in said


def test_adapters_are_counted_as_the_built_model_has_them(recipe):
    from megatron_sky.distributed.topology import Layout
    from megatron_sky.model.flops import lora_layer_parameters
    from megatron_sky.trainer.dry_run import Held, stage_parameters, state_bytes

    config = recipe("finetune={base: b, lora: {rank: 4}}", "parallel.tp_size=2", "parallel.pp_size=2")
    stages = stage_parameters(config, Layout.of(config.parallel, 4))
    adapters = lora_layer_parameters(config.model, config.lora, tp_size=2) * config.model.num_layers / 2
    assert [held.trained for held in stages] == [adapters] * 2
    assert state_bytes(config, Held(100, 10), 1) == 100 * 4 + 10 * 12
