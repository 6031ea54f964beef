"""Before the first step: what ranks must have in common, and room for what the run will write."""

from collections import namedtuple

import pytest

from megatron_sky.checkpoint.saver import checkpoint_bytes
from megatron_sky.data.tokens.sources import open_source
from megatron_sky.errors import RunError
from megatron_sky.trainer import startup
from megatron_sky.trainer.startup import check_disk, find_machine_problems, rank_facts

Usage = namedtuple("Usage", "total used free")


def facts_of(config) -> dict:
    sources = [open_source(source.path, vocab_size=config.model.vocab_size) for source in config.data.train]
    return rank_facts(config, sources)


def test_facts_are_plain_and_differ_where_the_job_would(recipe):
    facts = facts_of(recipe())
    assert facts == facts_of(recipe()) and facts["version of torch"]
    data = facts["data of en_web (tokens, documents, description)"]
    assert data[0] > data[1] > 0 and len(data[2]) == 12
    other = facts_of(recipe("train.seed=77"))
    assert {name for name in facts if facts[name] != other[name]} == {"the recipe"}


@pytest.mark.parametrize(
    ("checkpoints", "keep", "outcome"),
    [(0.9, 1, "refused"), (1.0, None, ""), (1.5, 1, "warned"), (2.0, 1, ""), (3.5, 3, "warned"), (4.0, 3, "")],
)
def test_room_for_checkpoints(checkpoints, keep, outcome, recipe, tmp_path, monkeypatch):
    config = recipe(f"checkpoint.keep_last={'null' if keep is None else keep}")
    free = int(checkpoint_bytes(config) * checkpoints)
    monkeypatch.setattr(startup.shutil, "disk_usage", lambda path: Usage(free, 0, free))
    warnings: list[str] = []
    if outcome == "refused":
        with pytest.raises(RunError, match=r"train\.run_dir = .* bytes are free, one checkpoint needs"):
            check_disk(config, tmp_path, warnings.append)
    else:
        check_disk(config, tmp_path, warnings.append)
        assert bool(warnings) == (outcome == "warned")
        assert not warnings or f"keep_last = {keep} needs {keep + 1}" in warnings[0]


def test_a_cpu_suits_the_tiny_recipe_and_has_no_fp8_of_te(recipe):
    from megatron_sky.distributed import device

    if device.has_gpu():
        pytest.skip("of a machine without a GPU")
    assert find_machine_problems(recipe()) == []
    problems = find_machine_problems(recipe("kernels.rope_fusion=true"))
    assert any("kernels.rope_fusion" in problem.where for problem in problems)
