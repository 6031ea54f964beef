"""Losses, gradient norms, learning rates and weights are those of Megatron-LM's own trainer, as `record.py` wrote
them."""

import json
from pathlib import Path

import pytest

from megatron_sky.optim.schedule import global_batch_size_at, lr_at
from tests.megatron_lm.cases import CASES, SEQ_LENGTH, of_version, write_tokens
from tests.megatron_lm.compare import VERSIONS, recipe_of, recorded, train_case
from tests.recipes import config_of
from tests.slow import slow_except


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder)
    return folder


def test_what_is_recorded_are_cases():
    assert len(recorded("0.16.1")) >= 25
    for version in VERSIONS:
        assert recorded(version).keys() <= of_version(version).keys()


@pytest.mark.parametrize(("version", "name"), [(version, name) for version in VERSIONS for name in recorded(version)])
def test_learning_rates_step_by_step(version, name, tokens):
    """By arithmetic alone: the rate of every step, and how many steps there are."""
    config = config_of(json.dumps(recipe_of(version, name, tokens)))
    consumed, total = 0, config.train.tokens
    for rate in recorded(version)[name]["learning_rates"]:
        assert consumed < total
        assert lr_at(config.schedule, consumed, total) == pytest.approx(rate, rel=1e-12, abs=1e-18)
        batch = global_batch_size_at(config.train.global_batch_size, config.train.batch_rampup, consumed)
        consumed += batch * SEQ_LENGTH
    assert consumed >= total


@pytest.mark.parametrize("name", slow_except(CASES, "llama", "gpt2", "tp2", "batch_rampup", "split"))
def test_the_numbers_are_megatron_lms(name, tokens, ranks, tmp_path):
    versions = [version for version in VERSIONS if name in recorded(version)]
    if not versions:
        pytest.skip("is not recorded yet")
    run = train_case(name, ranks=ranks, tokens=tokens, folder=tmp_path)
    tolerance = CASES[name].tolerance
    for version in versions:
        facts = recorded(version)[name]
        assert run.loss_difference(facts) <= tolerance, version
        assert run.norm_difference(facts) <= 5 * tolerance, version
        assert run.rate_difference(facts) <= 1e-12, version
        assert run.weight_difference(facts) <= 50 * tolerance, version
        assert run.losses[-1] < run.losses[0] - 0.3, "the reference itself must learn"
