"""`train --dry-run --rehearse` as a user meets it."""

import json

import pytest

from megatron_sky.config import dump_config
from megatron_sky.planner.rehearsal import process
from tests.planner.rehearsal.jobs import tiny


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        dump_config(tiny("parallel.pp_size=2", "data.train=[{name: a, path: /nowhere/a}]")), encoding="utf-8"
    )
    return path


def test_options_without_effect_are_told_together(sky, recipe_file):
    code, _, err = sky("train", recipe_file, "--rehearse", "--rank", "0", "--stage", "0", "--world-size", "2")
    assert code == 2
    for problem in (
        "--world-size: has an effect with --dry-run only",
        "--rehearse: has an effect with --dry-run only",
        "--stage: can't go with --rank",
    ):
        assert problem in err
    code, _, err = sky("train", recipe_file, "--dry-run", "--json", "--stage", "0")
    assert code == 2
    assert "--json: has an effect with --rehearse only" in err
    assert "--stage: has an effect with --rehearse only" in err


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--rank", "4", "--rank = 4: there are 4 ranks (PP2 x DP2)"),
        ("--stage", "2", "--stage = 2: there are 2 pipeline"),
    ],
)
def test_a_rank_that_is_not_there(option, value, told, sky, recipe_file):
    code, out, err = sky("train", recipe_file, "--dry-run", "--rehearse", "--world-size", "4", option, value)
    assert (code, out) == (2, "")
    assert told in err


def test_the_te_backend_without_its_extra_is_refused(sky, recipe_file, monkeypatch):
    monkeypatch.setattr(process, "installed", lambda name: None)
    code, out, err = sky("train", recipe_file, "--dry-run", "--rehearse", "--world-size", "4", "model.backend=te")
    assert (code, out) == (2, "")
    assert "needs transformer-engine and onnxscript to be rehearsed" in err
    assert 'fix: pip install "megatron-sky[te-rehearsal]"' in err


def test_a_table_for_every_stage_comes_before_what_data_is_lacking(sky, recipe_file):
    code, out, err = sky("train", recipe_file, "--dry-run", "--rehearse", "--world-size", "4")
    assert code == 3
    assert "/nowhere/a.bin does not exist" in err
    assert "rehearsed   PP2 x DP2 on 4 rank(s) with the torch backend, 4 of a step's 4 micro batches" in out
    for row in (
        "    stage 0    stage 1\n",
        "memory at the peak, GiB",
        "  logits",
        "  flash_attention_backward",
        "  reduce_scatter_tensor DP (2)",
    ):
        assert row in out


def test_json_is_all_that_is_printed(sky, recipe_file):
    code, out, err = sky("train", recipe_file, "--dry-run", "--rehearse", "--world-size", "4", "--stage", "1", "--json")
    assert code == 3
    assert "/nowhere/a.bin does not exist" in err
    told = json.loads(out)
    (rank,) = told["ranks"]
    assert (told["backend"], rank["stage"], rank["rank"]) == ("torch", 1, 2)
    assert rank["peak_bytes"] == sum(rank["peak_by_part"].values())
    assert rank["traffic"][0]["bytes"] > 0
