"""Text from a checkpoint: what the context length does not let through is told."""

import logging

import pytest

from megatron_sky.config import dump_config
from megatron_sky.errors import ConfigError
from tests.conftest import SEQ_LENGTH
from tests.trainer.test_parity import run_training


def texts(info, run_dir: str, prompts: list[str], max_tokens: int):
    """The texts and what was logged, or the ConfigError's text."""
    from pathlib import Path

    from megatron_sky.inference import generate

    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    generate.log.addHandler(handler)
    try:
        return generate.generate_texts(Path(run_dir), prompts, generate.Sampling(max_tokens=max_tokens)), told
    except ConfigError as error:
        return str(error), told
    finally:
        generate.log.removeHandler(handler)


@pytest.fixture
def generated(ranks, recipe):
    config = recipe("train.max_steps=2")
    ranks(1, run_training, dump_config(config))
    return lambda prompts, max_tokens=4: ranks(1, texts, config.train.run_dir, prompts, max_tokens)[0]


def test_prompts_longer_than_the_context_are_refused_together(generated):
    said, _ = generated(["a" * 200, "short", "清晨" * 100])
    assert "prompt 1 = 'aaa" in said and "prompt 3 = '清晨" in said and "prompt 2" not in said
    assert f"context length ({SEQ_LENGTH} tokens)" in said and f"at most {SEQ_LENGTH - 1} tokens" in said


def test_a_continuation_that_the_context_ends_is_told(generated):
    short, told = generated(["The reader"])
    assert short[0].startswith("The reader") and not told
    _, told = generated(["The reader"], 2 * SEQ_LENGTH)
    assert "ends at the context length" in told[-1]
