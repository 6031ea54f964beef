"""Traces and tables of chosen steps, the garbage timetable, and the words for a GPU that is full."""

import gc
import gzip
import itertools
import json

import pytest

from megatron_sky.distributed.topology import Layout
from megatron_sky.errors import RunError
from megatron_sky.trainer import out_of_memory
from megatron_sky.trainer.garbage import GarbageCollection
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


def test_garbage_has_its_timetable():
    before = gc.isenabled()
    with GarbageCollection(3) as garbage:
        assert not gc.isenabled()
        counts = [gc.get_stats()[2]["collections"]]
        for step in range(1, 7):
            garbage.maybe_collect(step)
            counts.append(gc.get_stats()[2]["collections"])
    assert [after - earlier for earlier, after in itertools.pairwise(counts)] == [0, 0, 1, 0, 0, 1]
    assert gc.isenabled() == before
    with GarbageCollection(None):
        assert gc.isenabled() == before


@pytest.mark.parametrize("overrides", [[], ["parallel.tp_size=4", "train.recompute=full", "model.num_query_groups=4"]])
def test_a_full_gpu_gives_three_fixes(overrides, recipe, tmp_path):
    import torch

    config = recipe("train.micro_batch_size=2", "profile.memory_snapshot=true", *overrides)
    layout = Layout.of(config.parallel, 4)
    with pytest.raises(RunError) as caught, out_of_memory.explained(config, layout, rank=3, run_dir=tmp_path):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    text = str(caught.value)
    assert "rank 3" in text and "fix 3:" in text and "fix 4:" not in text
    assert "train.micro_batch_size=1" in text
    assert ("parallel.sequence_parallel=true" in text) == bool(overrides)
    assert ("train.recompute" in text) == (not overrides)


def test_every_fix_is_a_recipe(recipe):
    """What is advised loads, and is not what already stands there."""
    config = recipe()
    layout = Layout.of(config.parallel, 1)
    advised = [
        each.split(":")[0].split(" ")[0] for each in out_of_memory.fixes(config, layout) if "=" in each.split(":")[0]
    ]
    assert len(advised) >= 3
    for override in advised:
        assert recipe(override) != config
