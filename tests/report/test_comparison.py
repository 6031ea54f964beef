"""Several runs: their names, their tables, what is told of them."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.monitor.metrics import MetricsWriter, ValidationRecord
from megatron_sky.report import build_report
from megatron_sky.report.comparison import describe_comparison, named_apart
from megatron_sky.report.content import Change, Table
from megatron_sky.report.evaluations import Evaluations
from megatron_sky.report.markdown import render_markdown
from megatron_sky.report.run import load_run


def load(*folders):
    return named_apart([load_run(each) for each in folders], folders)


def tables(document):
    return {
        section.heading: block for section in document.sections for block in section.blocks if isinstance(block, Table)
    }


def test_names_differ(tmp_path, write_run):
    folders = [write_run(tmp_path / each) for each in ("a/run", "b/run", "b/other")]
    assert [each.name for each in load(*folders)] == ["a/run", "b/run", "b/other"]
    assert [each.name for each in load(folders[0], folders[2])] == ["run", "other"]
    assert [each.name for each in load(folders[0])] == ["run"]


def test_a_row_a_run_and_a_row_a_set_and_run(tmp_path, write_run):
    runs = load(
        write_run(tmp_path / "base", sets=("code", "web"), events=[("start", {"step": 0, "layout": "TP2"})]),
        write_run(tmp_path / "new", losses=(5.0, 1.0), sets=("code", "papers")),
    )
    found = tables(describe_comparison(runs, Evaluations()))
    base, new = found[""].rows
    assert base[:5] == ["base", "3,000", "3", "3.0000", "-"] and base[-1] == "TP2"
    assert new[:5] == ["new", "2,000", "2", "3.0000", Change(0.0)] and found[""].headings[4] == "against base"
    rows = found["First and last validation losses, nats per token"].rows
    assert rows == [
        ["code", "base", "9.0000", "6.0000", Change(-3.0), "-"],
        ["code", "new", "9.0000", "7.0000", Change(-2.0), Change(1.0)],
        ["web", "base", "9.0000", "6.0000", Change(-3.0), "-"],
        ["papers", "new", "9.0000", "7.0000", Change(-2.0), "-"],
    ]


def validate(run_dir, *losses):
    """The set "code" with these (own, normalised) losses, one after another."""
    with MetricsWriter(run_dir, tensorboard=False, wandb=None, config={}) as metrics:
        for step, (own, normalised) in enumerate(losses, 1):
            record = {"step": step, "consumed_tokens": 1000 * step, "set": "code", "tokens": 64, "seconds": 0.1}
            metrics.validation(ValidationRecord(**record, lm_loss=own, normalised_loss=normalised))
    return run_dir


def test_sets_are_compared_by_normalised_loss_where_all_runs_have_it(tmp_path, write_run):
    """The second run's tokenizer makes fewer tokens: worse for each of its own, better for the same text."""
    runs = load(
        validate(write_run(tmp_path / "a", sets=("web",)), (4.0, 3.0), (2.0, 2.0)),
        validate(write_run(tmp_path / "b", sets=("web",)), (5.0, 3.25), (2.5, 1.75)),
    )
    document = describe_comparison(runs, Evaluations())
    found = tables(document)
    assert found["First and last validation losses, normalised, nats per reference token"].rows == [
        ["code", "a", "3.0000", "2.0000", Change(-1.0), "-"],
        ["code", "b", "3.2500", "1.7500", Change(-1.5), Change(-0.25)],
    ]
    own = found["First and last validation losses, nats per token"]
    assert [row[:2] for row in own.rows] == [["web", "a"], ["web", "b"]]
    words = render_markdown(document, "pictures")
    assert "## First and last validation losses, normalised, nats per reference token" in words


def test_sets_are_compared_per_token_where_a_run_has_no_normalised_loss(tmp_path, write_run):
    runs = load(
        validate(write_run(tmp_path / "a", sets=()), (4.0, 3.0), (2.0, 2.0)),
        validate(write_run(tmp_path / "b", sets=()), (5.0, 3.25), (2.5, None)),
    )
    found = tables(describe_comparison(runs, Evaluations()))
    assert not any("normalised" in heading for heading in found)
    assert found["First and last validation losses, nats per token"].rows[1][-1] == Change(0.5)


def test_runs_with_missing_parts(tmp_path, write_run):
    runs = load(write_run(tmp_path / "a", losses=()), write_run(tmp_path / "b", sets=()))
    a, b = tables(describe_comparison(runs, Evaluations()))[""].rows
    assert a[1:5] == ["-"] * 4 and a[6:] == ["-"] * 4
    assert b[4] == "-" and b[6] == "-"


def test_notes_name_their_run(tmp_path, write_run):
    folders = [write_run(tmp_path / each) for each in ("a", "b")]
    with open(folders[1] / "metrics.jsonl", "a") as file:
        file.write("{")
    (folders[0] / "config.yaml").write_text("x: 1")
    document = describe_comparison(load(*folders), Evaluations())
    (notes,) = document.sections[-1].blocks
    assert [note[:24] for note in notes.notes] == ["b: metrics.jsonl: line 6", "b: has no config.yaml to"]


def test_the_default_place_is_in_the_first_run(tmp_path, write_run):
    folders = [write_run(tmp_path / each) for each in ("a", "b")]
    assert build_report(*folders) == folders[0] / "comparison.html"


def test_a_run_given_twice_is_refused(tmp_path, write_run):
    folder = write_run(tmp_path / "a")
    with pytest.raises(ConfigError, match="given twice"):
        build_report(folder, tmp_path / "b" / ".." / "a")
