"""Held-out losses beside training: on one scale with other models, and never quietly on what was trained on."""

from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.errors import ConfigError, DataError
from megatron_sky.monitor.metrics import read_metrics
from megatron_sky.trainer.preflight import preflight
from megatron_sky.trainer.validation import read_references
from tests.trainer.test_parity import run_training

REFERENCES = "model,domain,loss\nOther-7B,en_web,2.5\nOther-7B,papers,1.5\n"


@pytest.fixture
def references(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "references.csv"
        path.write_text(text)
        return path

    return write


def test_losses_are_normalised_and_references_kept(ranks, recipe, references, corpus):
    config = recipe(
        "train.max_steps=2",
        f"validation.reference_tokenizer={corpus}/tokenizer.model",
        f"validation.references={references(REFERENCES)}",
    )
    ranks(2, run_training, dump_config(config))
    metrics = read_metrics(config.train.run_dir)
    (record,) = metrics.validation
    assert record.normalised_loss == pytest.approx(record.lm_loss, rel=0.02)
    told = next(event.fields for event in metrics.events if event.event == "data")
    assert told["references"] == [{"model": "Other-7B", "set": "en_web", "lm_loss": 2.5}]
    (stretch,) = told["mixture"]
    assert stretch["end_token"] == config.train.tokens
    assert stretch["shares"]["en_web"] == pytest.approx([0.7, 0.7])
    assert "of the time so far" in (Path(config.train.run_dir) / "logs/rank_00000.log").read_text()


def test_a_set_that_is_also_trained_on_is_told(ranks, recipe, corpus):
    config = recipe(
        "train.max_steps=1",
        f"validation.sets=[{{name: seen, path: {corpus}/tokens/train/en_web}}]",
        "data.num_workers=0",
    )
    ranks(1, run_training, dump_config(config))
    log = (Path(config.train.run_dir) / "logs/rank_00000.log").read_text()
    assert "validation.sets[seen]" in log and "also in the training source en_web" in log


def test_normalised_losses_are_taken_where_there_are(recipe, references):
    text = "model,domain,loss,normalised_loss\nOther,en_web,2.0,1.5\nThird,en_web,2.5,\n"
    told = read_references(recipe(f"validation.references={references(text)}").validation)
    assert [each["lm_loss"] for each in told] == [1.5, 2.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,domain\nOther,en_web\n", "lacks a column or a number"),
        ("model,domain,loss\nOther,en_web,much\n", "lacks a column or a number"),
        ("model,domain,loss\nOther,law,1.0\n", r"names none of the validation sets \(en_web\)"),
    ],
)
def test_bad_references_are_named(recipe, references, text, message):
    with pytest.raises(ConfigError, match=message):
        read_references(recipe(f"validation.references={references(text)}").validation)


def test_missing_files_are_named_before_the_start(recipe):
    with pytest.raises(ConfigError, match=r"validation\.references.*can't be read"):
        preflight(recipe("validation.references=/nowhere.csv"), 1).raise_errors()
    with pytest.raises(DataError, match=r"/nowhere\.model"):
        preflight(recipe("validation.reference_tokenizer=/nowhere.model"), 1).raise_errors()
