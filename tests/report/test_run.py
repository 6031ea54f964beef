"""What the report works out from a run folder, and what it does without parts of it."""

import json
import math

import pytest

from megatron_sky.errors import RunError
from megatron_sky.monitor.metrics import MetricsWriter
from megatron_sky.report.run import as_text, load_run


def test_figures(tmp_path, write_run):
    data = {
        "sources": [{"name": "code", "tokens": 10, "weight": {"start": 0.1, "end": 0.4}, "unigram_entropy": 5.5}],
        "validation": [{"name": "code", "tokens": 64, "unigram_entropy": 5.0}],
        "unigram_entropy": 5.25,
    }
    events = [
        ("start", {"step": 0, "layout": "TP2"}),
        ("data", data),
        ("resume", {"step": 0, "layout": "TP2"}),
        ("resume", {"step": 0, "layout": {"pp": 2}}),
    ]
    run = load_run(write_run(tmp_path, events=events))
    assert run.final_loss == pytest.approx(3.0)
    assert run.median("tokens_per_second") == 1000.0 and run.median("mfu") is None
    assert run.layouts == ["TP2", "pp: 2"]
    assert run.unigram_entropy == 5.25
    assert run.sources[0].weight == "start: 0.1, end: 0.4" and run.sources[0].unigram_entropy == 5.5
    (domain,) = run.domains
    assert (domain.name, domain.first.lm_loss, domain.last.lm_loss, domain.unigram_entropy) == ("code", 9.0, 6.0, 5.0)


def test_resume_marks_stand_at_the_tokens_of_their_step(tmp_path, write_run):
    write_run(tmp_path)
    with MetricsWriter(tmp_path, tensorboard=False, wandb=None, config={}) as metrics:
        metrics.event("resume", step=2)
    assert load_run(tmp_path).resume_tokens == [2000]


def test_what_validation_cost(tmp_path, write_run):
    assert load_run(write_run(tmp_path / "a")).validation_share == pytest.approx((0.2, 0.2 / 6.2))
    assert load_run(write_run(tmp_path / "b", sets=())).validation_share is None
    assert load_run(write_run(tmp_path / "c", losses=())).validation_share is None


def test_steps_belong_to_the_session_that_they_end_in(tmp_path, write_run):
    sessions = [
        ("session", {"step": 0, "session": "one", "first_token": 0, "end_token": 2000}),
        ("session", {"step": 2, "session": "two", "first_token": 2000, "end_token": 9000}),
    ]
    run = load_run(write_run(tmp_path, events=sessions))
    parts = [(session.name, [record.step for record in train]) for session, train in run.train_by_session]
    assert parts == [("one", [1, 2]), ("two", [3])] and run.session_bounds == [2000]


def test_what_events_tell_of_another_shape_is_noted(tmp_path, write_run):
    run = load_run(write_run(tmp_path, events=[("data", {"mixture": 3, "references": [{}]}), ("session", {})]))
    assert run.mixture == [] and run.references == [] and run.sessions == []
    assert [note.split(":")[0] for note in run.notes] == ["metrics.jsonl"] * 3


def test_losses_that_are_not_finite_do_not_enter_the_mean(tmp_path, write_run):
    assert load_run(write_run(tmp_path / "a", losses=(math.nan, 2.0, math.inf))).final_loss == 2.0
    assert load_run(write_run(tmp_path / "b", losses=(math.nan,))).final_loss is None


def test_without_a_data_event(tmp_path, write_run):
    run = load_run(write_run(tmp_path))
    assert run.unigram_entropy is None and run.sources == [] and run.domains[0].unigram_entropy is None


def test_nothing_recorded_yet(tmp_path, write_run):
    with pytest.raises(RunError, match="no such file"):
        load_run(tmp_path)
    write_run(tmp_path, losses=(), sets=(), events=[("start", {"step": 0})])
    with pytest.raises(RunError, match="holds no training or validation record"):
        load_run(tmp_path)


def test_damaged_side_files_become_notes(tmp_path, write_run):
    write_run(tmp_path)
    (tmp_path / "samples.json").write_text("[{")
    (tmp_path / "run.json").write_text("[1]")
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\xff")
    run = load_run(tmp_path)
    assert run.samples == [] and run.facts == {} and run.config is None
    assert [note.split(":")[0] for note in run.notes] == ["samples.json", "config.yaml", "run.json"]
    (tmp_path / "samples.json").write_text(json.dumps([{"prompt": "x"}]))
    assert "0.language: is required and not given; 0.text: is required" in load_run(tmp_path).notes[0]


def test_as_text():
    assert as_text({"a": [1, 2.5], "b": None, "c": "x"}) == "a: 1, 2.5, b: -, c: x"
