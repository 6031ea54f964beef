"""Results as Markdown and CSV: every figure at its place, and nothing that breaks a table."""

import csv
import io
import math

import pytest

from megatron_sky.evaluate.bootstrap import Interval
from megatron_sky.evaluate.leakage import Comparison, Verdict
from megatron_sky.evaluate.metrics import LossFigures
from megatron_sky.evaluate.results import (
    DomainRecord,
    LeakageResults,
    LossResults,
    ModelLeakage,
    ModelLosses,
    ModelRecord,
    Setting,
)
from megatron_sky.evaluate.tables import (
    leakage_csv,
    leakage_markdown,
    leakage_rows,
    loss_csv,
    loss_markdown,
    loss_rows,
    markdown_table,
    setting_words,
)

SETTING = Setting(2048, 1000, None, None, "auto")


def figures(loss: float) -> LossFigures:
    return LossFigures(2, 4000, 5000, 1000, 900, loss * 1000, loss, loss * 1.1, loss, math.exp(loss), loss / 3)


def losses(*names: str, failed: tuple[str, ...] = ()) -> LossResults:
    models = [
        ModelLosses(ModelRecord(name, step=5, warnings=("w",) if number else ()), {"web": figures(2.0)}, figures(2.0))
        for number, name in enumerate(names)
    ]
    return LossResults(SETTING, (DomainRecord("web", ("f",), 1234, 5, 6),), tuple(models), failed)


def leakage() -> LeakageResults:
    def comparison(basis: str) -> Comparison:
        exact = [Interval(value, value, value) for value in (0.64, 0.61, 0.78)]
        return Comparison(basis, 0.5, *exact, Interval(-0.14, -0.2, -0.1), Interval(0.03, 0.03, 0.03))

    verdict = Verdict("leaked", "the test split is easier")
    model = ModelLeakage(ModelRecord("m"), (comparison("plain"), comparison("length-matched")), verdict, verdict)
    return LeakageResults(0.05, 0.95, SETTING, (), (model,))


def test_a_figure_of_every_model_and_domain():
    head, rows = loss_rows(losses("a", "b"), "perplexity", 2)
    assert head == ["model", "web", "average"] and rows == [["a", "7.39", "7.39"], ["b", "7.39", "7.39"]]


def test_infinite_perplexity_is_a_word():
    model = ModelLosses(ModelRecord("a"), {"web": LossFigures(*[1] * 9, math.inf, 1)}, figures(1.0))
    results = LossResults(SETTING, (DomainRecord("web", (), 1, 0, 0),), (model,))
    assert loss_rows(results, "perplexity", 2)[1][0][1] == "inf"


def test_loss_in_words():
    text = loss_markdown(losses("a", "b", failed=("c: not finite",)))
    for part in ("## Perplexity", "## Bits per byte", "| web ", "1,234", "## Failed\n\n- c: not finite", "- b: w"):
        assert part in text
    assert "## Failed" not in loss_markdown(losses("a")) and "## Warnings" not in loss_markdown(losses("a"))


def test_loss_for_programs():
    rows = list(csv.DictReader(io.StringIO(loss_csv(losses("a,b", "c")))))
    assert [(row["model"], row["domain"]) for row in rows] == [
        ("a,b", "web"),
        ("a,b", "average"),
        ("c", "web"),
        ("c", "average"),
    ]
    assert float(rows[0]["loss"]) == 2.0 and rows[0]["consumed_tokens"] == ""


def test_leakage_rows_have_intervals_where_there_are_any():
    head, (row,) = leakage_rows(leakage())
    assert dict(zip(head, row, strict=True)) == {
        "model": "m",
        "L_test": "0.64",
        "L_train": "0.61",
        "L_ref": "0.78",
        "delta1": "-0.14 [-0.20, -0.10]",
        "delta2": "+0.03",
        "test split": "leaked",
        "train split": "leaked",
    }


def test_leakage_in_words_and_for_programs():
    text = leakage_markdown(leakage())
    assert "95% intervals" in text and "length-matched" in text and "**m**, test split: leaked. the test split" in text
    rows = list(csv.DictReader(io.StringIO(leakage_csv(leakage()))))
    assert [row["basis"] for row in rows] == ["plain", "length-matched"]
    assert (rows[0]["delta1_low"], rows[0]["test_verdict"]) == ("-0.2", "leaked")


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        (SETTING, ["Context 2,048 tokens", "text cut at 1,000 characters"]),
        (
            Setting(8, None, 4, 7, "auto", "t.model", "abcdef0123"),
            ["whole documents", "advance 4", "first 7", "abcdef01)"],
        ),
    ],
)
def test_the_setting_in_a_sentence(setting, parts):
    words = setting_words(setting)
    assert all(part in words for part in parts) and words.endswith(".")


def test_a_cell_can_not_break_the_table():
    text = markdown_table(["a", "b|c"], [["x|y", "1"], ["longer", "22"]])
    assert text.splitlines() == ["| a      | b\\|c |", "|--------|-----:|", "| x\\|y   |    1 |", "| longer |   22 |"]
