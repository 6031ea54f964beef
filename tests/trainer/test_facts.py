"""What a run says of itself at its start."""

from pathlib import Path

import pytest

from megatron_sky.data.tokens.sources import OpenSource
from megatron_sky.trainer.facts import data_facts, way_in_words
from megatron_sky.trainer.preflight import preflight
from megatron_sky.trainer.resume import remaining_steps
from megatron_sky.trainer.sessions import sessions_of
from megatron_sky.trainer.state import TrainState

STEP = 8 * 32  # tokens


def words(config, state: TrainState) -> str:
    sessions = sessions_of(config)
    remaining = remaining_steps(config.train, seq_length=32, sessions=sessions, state=state)
    return way_in_words(
        state, remaining, sessions=sessions, max_steps=config.train.max_steps, run_dir=Path("runs/tiny")
    )


def test_from_where_to_where(recipe):
    assert words(recipe(), TrainState()) == "training from the start: 40 steps to 10,240 tokens, in runs/tiny"
    resumed = TrainState(3, 24, 3 * STEP)
    assert words(recipe("train.max_steps=5"), resumed) == (
        "training from step 3 (768 tokens): 2 steps to 1,280 tokens (train.max_steps = 5), in runs/tiny"
    )


def test_nothing_left(recipe):
    done = TrainState(40, 320, 40 * STEP)
    assert words(recipe(), done) == "nothing is left to train in runs/tiny: it is at step 40, 10,240 tokens"


def test_the_end_of_a_session(recipe):
    sessions = f"[{{name: one, tokens: {40 * STEP}}}]"
    assert "to 10,240 tokens, the end of one, in" in words(recipe(f"sessions={sessions}"), TrainState())


def test_the_data_as_the_report_tells_it(recipe):
    config = recipe('data.train.1.weight={"start": 0.1, "end": 0.5}')
    seen = preflight(config, 1).raise_errors()
    facts = data_facts(config.data.train, seen.data, seen)
    metas = [source.meta for source in seen.sources]
    assert [each["weight"] for each in facts["sources"]] == pytest.approx([0.7, 0.3])
    assert [each["tokens"] for each in facts["sources"]] == [meta.num_tokens for meta in metas]
    mean = sum(w * meta.unigram_entropy for w, meta in zip((0.7, 0.3), metas, strict=True))
    assert facts["unigram_entropy"] == pytest.approx(mean)
    assert [each["name"] for each in facts["validation"]] == ["en_web"] and facts["references"] == []
    (stretch,) = facts["mixture"]
    assert (stretch["first_token"], stretch["end_token"]) == (0, config.train.tokens)
    assert stretch["shares"]["zh_web"] == pytest.approx([0.125, 0.5 / 1.2], abs=1e-3)


def test_a_source_without_a_description_counts_for_nothing(recipe):
    config = recipe()
    seen = preflight(config, 1).raise_errors()
    seen.data.sources = [seen.sources[0], OpenSource(seen.sources[1].tokens, None)]
    facts = data_facts(config.data.train, seen.data, seen)
    assert facts["sources"][1]["tokens"] is None
    assert facts["unigram_entropy"] == pytest.approx(seen.sources[0].meta.unigram_entropy)
    seen.data.sources = [OpenSource(source.tokens, None) for source in seen.sources]
    assert data_facts(config.data.train, seen.data, seen)["unigram_entropy"] is None
