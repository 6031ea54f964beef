"""The data a run sees: a mixture changed on resume goes on without repeating; megatron-core's order can be taken."""

from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.monitor.metrics import read_metrics
from tests.trainer.test_parity import run_training

SEQUENCES = 8 * 3  # of three steps


@pytest.fixture
def train(ranks, recipe):
    def run(*overrides: str, world_size: int = 1):
        config = recipe("train.max_steps=3", *overrides)
        ranks(world_size, run_training, dump_config(config))
        return read_metrics(config.train.run_dir)

    return run


def used(metrics) -> dict[str, int]:
    """Tokens that each source has given, at the end."""
    told = [event.fields for event in metrics.events if event.event == "sources"]
    return {each["name"]: each["tokens"] for each in told[-1]["sources"]}


def test_a_mixture_changed_on_resume_goes_on(train, corpus, recipe):
    first = used(train())
    assert sum(first.values()) == SEQUENCES * 32
    sources = [
        f"{{name: en_web, path: {corpus}/tokens/train/en_web, weight: 0.1}}",
        f"{{name: papers, path: {corpus}/tokens/train/zh_web, weight: 0.9}}",
    ]
    metrics = train("train.max_steps=6", f"data.train=[{', '.join(sources)}]")
    second = used(metrics)
    assert second["papers"] > 0 and second["en_web"] >= first["en_web"]
    assert sum(second.values()) + first["zh_web"] == 2 * SEQUENCES * 32
    assert len(metrics.train) == 6
    assert "the mixture or its length has changed" in (Path(recipe().train.run_dir) / "logs/rank_00000.log").read_text()


@pytest.mark.slow
def test_megatron_cores_order(train, recipe):
    one = train("data.sampling=megatron", f"train.run_dir={recipe().train.run_dir}_one")
    two = train("data.sampling=megatron", world_size=2)
    planned = train(f"train.run_dir={recipe().train.run_dir}_plan")
    losses = [[record.lm_loss for record in run.train] for run in (one, two, planned)]
    assert max(abs(a - b) for a, b in zip(losses[0], losses[1], strict=True)) <= 1e-5
    assert losses[0] != losses[2]
    resumed = train("data.sampling=megatron", "train.max_steps=5", world_size=2)
    assert len(resumed.train) == 5
