"""Lines are plain and aligned; the bar appears on a terminal only."""

import io

import pytest
from rich.console import Console

from megatron_sky.monitor import console
from megatron_sky.monitor.console import (
    ProgressDisplay,
    before_after_table,
    format_seconds,
    train_line,
    validation_line,
)
from megatron_sky.monitor.metrics import TrainRecord


def record(step=120, **changes):
    values = {
        "consumed_samples": 960,
        "consumed_tokens": 1_966_080,
        "lm_loss": 3.41214,
        "lr": 5.4e-4,
        "grad_norm": 0.8123,
        "global_batch_size": 8,
        "step_seconds": 0.5,
        "tokens_per_second": 5214.4,
        "tokens_per_second_per_gpu": 2607.2,
        "tflops_per_gpu": 0.0412,
    }
    return TrainRecord(step=step, **(values | changes))


def test_train_line():
    line = train_line(record(mfu=0.4118), total_steps=300, seconds_left=72.0)
    assert line == (
        "step   120/300 | tokens   1.97M | loss  3.4121 | lr 5.40e-04 | grad  0.812 |   5,214 tok/s |"
        "  2,607 tok/s/GPU |  0.04 TFLOP/s | MFU 41.2% | left 0:01:12"
    )


def test_train_line_leaves_out_what_is_not_known():
    line = train_line(record())
    assert "MFU" not in line and "left" not in line and "step   120 |" in line


def test_train_lines_align_and_show_nan():
    lines = [train_line(record(step), total_steps=100_000) for step in (1, 99_999)]
    lines.append(train_line(record(7, lm_loss=float("nan"), grad_norm=float("inf")), total_steps=100_000))
    assert len({len(line) for line in lines}) == 1
    assert "loss     nan" in lines[2] and "grad    inf" in lines[2]


def test_validation_line():
    assert validation_line({"code": 3.0, "papers": 2.5}, step=10) == (
        "validation at step 10 | code 3.0000 | papers 2.5000"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00:00"), (72, "0:01:12"), (3599.6, "1:00:00"), (86400 * 3 + 5, "3d 00:00:05"), (None, "?"), (1e400, "?")],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text


def test_before_after_table():
    screen = Console(file=io.StringIO(), width=80)
    screen.print(before_after_table({"code": 5.5, "gone": 1.0}, {"code": 2.25, "new": 2.0}))
    rows = [line.split() for line in screen.file.getvalue().splitlines()]
    assert ["│", "code", "│", "5.5000", "│", "2.2500", "│", "-3.2500", "│"] in rows
    assert ["│", "new", "│", "-", "│", "2.0000", "│", "-", "│"] in rows


def display(monkeypatch, terminal):
    screen = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    monkeypatch.setattr(console, "screen", lambda: screen)
    with ProgressDisplay(total_tokens=4_000_000, total_steps=300, consumed_tokens=0) as bar:
        bar.update(record(), seconds_left=72.0)
    return screen.file.getvalue()


def test_no_bar_off_a_terminal(monkeypatch):
    assert display(monkeypatch, terminal=False) == ""


def test_bar_on_a_terminal(monkeypatch):
    text = display(monkeypatch, terminal=True)
    for part in ("49%", "step 120/300", "loss 3.412", "lr 5.4e-04", "grad 0.81", "5,214 tok/s", "left 0:01:12"):
        assert part in text
