"""Traces and tables of chosen steps, the garbage timetable, and the words for a GPU that is full."""

import gzip
import json

import pytest

from tests.trainer.test_parity import run_training


@pytest.mark.slow
def test_chosen_steps_of_chosen_ranks_are_traced(ranks, recipe, tmp_path):
    from megatron_sky.config import dump_config

    config = recipe("train.max_steps=4", "profile={first_step: 2, num_steps: 2, ranks: [1]}", "train.gc_interval=2")
    ranks(2, run_training, dump_config(config))
    folder = tmp_path / "run" / "profile"
    assert sorted(path.name for path in folder.iterdir()) == [
        "rank_00001_steps_2-3.json.gz",
        "rank_00001_steps_2-3.txt",
    ]
    events = json.loads(gzip.decompress((folder / "rank_00001_steps_2-3.json.gz").read_bytes()))["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"step 2", "step 3", "forward and backward", "optimizer", "aten::mm"} <= names
    assert not {"step 1", "step 4"} & names
    text = (folder / "rank_00001_steps_2-3.txt").read_text()
    assert "matrix products" in text and "communication" in text and "step 2" not in text


def test_steps_beyond_the_runs_end_leave_no_trace(ranks, recipe, tmp_path):
    from megatron_sky.config import dump_config

    ranks(1, run_training, dump_config(recipe("train.max_steps=2", "profile={first_step: 2, num_steps: 5}")))
    assert not (tmp_path / "run" / "profile").exists()
