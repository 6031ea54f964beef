"""What one run's page says, from records whole and damaged."""

import json
import math

import pytest

from megatron_sky.report import build_report
from megatron_sky.report.one_run import when
from tests.report.test_build import page_of


def test_a_command_stands_as_it_is_typed(tmp_path, write_run):
    run_dir = write_run(tmp_path)
    attempt = {"command": ["megatron-sky", "train", "my recipe.yaml"], "hosts": ["one", "two"]}
    (run_dir / "run.json").write_text(json.dumps({"attempts": [attempt]}))
    text = build_report(run_dir, page_format="md").read_text(encoding="utf-8")
    assert "| megatron-sky train 'my recipe.yaml' |" in text and "| one, two |" in text


def test_records_with_odd_times_and_speeds_leave_a_page(tmp_path, write_run):
    text = (write_run(tmp_path) / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    odd = [line | {"time": 1e300, "step_seconds": "inf", "mfu": "nan", "lr": "nan"} for line in lines]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in odd))
    assert "1e+300" in page_of(tmp_path).text


def test_many_events_are_folded(tmp_path, write_run):
    events = [("checkpoint", {"step": step}) for step in range(30)]
    page = page_of(write_run(tmp_path, events=events))
    assert "details" in page.tags and "30 events" in page.text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01 00:00:00"),
        (86_400.5, "1970-01-02 00:00:00"),
        (-1, "-1"),
        (1e300, "1e+300"),
        (math.nan, "nan"),
        (None, "-"),
        ("yesterday", "yesterday"),
        ([1, 2], "1, 2"),
    ],
)
def test_a_moment_or_whatever_stands_there(seconds, text):
    assert when(seconds) == text


def test_few_events_stay_open_and_none_have_no_table(tmp_path, write_run):
    few = page_of(write_run(tmp_path / "a", events=[("checkpoint", {"step": 1})]))
    assert "details" not in few.tags and "checkpoint" in few.text
    assert "What happened" not in page_of(write_run(tmp_path / "b")).text
