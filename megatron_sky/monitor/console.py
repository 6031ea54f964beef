"""What a person sees: the log line of a step, the validation line, the progress bar, the before/after table.

Lines are plain text made from records, the same on a terminal and in a Slurm log. Only the bar is for terminals: it is
drawn below the log lines on their own console, and redrawn when a step arrives (at most four times a second) rather
than by a thread, which would take time from the CPUs that train.
"""

import math
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from megatron_sky.config.units import format_count
from megatron_sky.control import visible
from megatron_sky.log import screen
from megatron_sky.monitor.metrics import TrainRecord

if TYPE_CHECKING:
    from rich.table import Table

_REDRAW_SECONDS = 0.25


def format_seconds(seconds: float | None) -> str:
    """`0:01:12`, `3d 04:05:06`, or `?` for an unknown time."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return f"{days}d {hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"


def train_line(record: TrainRecord, *, total_steps: int | None = None, seconds_left: float | None = None) -> str:
    """One aligned line of a step; MFU only where it is known, the time left only when it is given."""
    width = max(5, len(str(total_steps or record.step)))
    total = "" if total_steps is None else f"/{total_steps}"
    parts = [
        f"step {record.step:>{width}}{total}",
        f"tokens {format_count(record.consumed_tokens):>7}",
        f"loss {record.lm_loss:7.4f}",
        f"lr {record.lr:.2e}",
        f"grad {record.grad_norm:6.3f}",
        f"{_rate(record.tokens_per_second):>7} tok/s",
        f"{_rate(record.tokens_per_second_per_gpu):>6} tok/s/GPU",
        f"{_tflops(record.tflops_per_gpu):>5} TFLOP/s",
    ]
    if record.preference is not None:
        parts.append(f"margin {record.preference.margin:7.4f}, right {record.preference.accuracy:6.1%}")
    if record.mfu is not None:
        parts.append(f"MFU {record.mfu:5.1%}")
    if seconds_left is not None:
        parts.append(f"left {format_seconds(seconds_left)}")
    return " | ".join(parts)


def validation_line(losses: Mapping[str, float], *, step: int) -> str:
    """One line of an evaluation: each set's loss in nats, in the order given."""
    return " | ".join([f"validation at step {step}", *(f"{name} {loss:.4f}" for name, loss in losses.items())])


def before_after_table(before: Mapping[str, float], after: Mapping[str, float]) -> "Table":
    """Each validation set's loss before and after training, in nats, as a rich table; a dash where one is missing."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title="Validation loss, nats per token")
    table.add_column("set")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys([*before, *after]):
        first, last = before.get(name), after.get(name)
        change = None if first is None or last is None else last - first
        table.add_row(Text(visible(name)), _loss(first), _loss(last), _loss(change, sign="+"))
    return table


class ProgressDisplay:
    """A progress bar over consumed tokens with the last step's figures; nothing at all when not on a terminal.

    A context manager: the bar is drawn inside the block and stays as a last line after it.
    """

    def __init__(self, *, total_tokens: int, total_steps: int | None = None, consumed_tokens: int = 0):
        """`consumed_tokens`: where a resumed run begins."""
        self._total_steps = total_steps
        self._drawn = 0.0
        self._bar = _make_bar() if screen().is_terminal else None
        if self._bar is not None:
            self._task = self._bar.add_task("", total=total_tokens, completed=consumed_tokens, figures="", left="?")

    def __enter__(self) -> "ProgressDisplay":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, record: TrainRecord, *, seconds_left: float | None = None) -> None:
        """Show a step."""
        if self._bar is None:
            return
        now = time.monotonic()
        total = "" if self._total_steps is None else f"/{self._total_steps}"
        figures = (
            f"step {record.step}{total}  loss {record.lm_loss:.3f}  lr {record.lr:.1e}  "
            f"grad {record.grad_norm:.2f}  {_rate(record.tokens_per_second)} tok/s"
        )
        self._bar.update(
            self._task, completed=record.consumed_tokens, figures=figures, left=format_seconds(seconds_left)
        )
        if now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            self._bar.refresh()


def _make_bar():
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    figures = TextColumn("{task.fields[figures]}", markup=False)
    left = TextColumn("left {task.fields[left]}", markup=False)
    return Progress(
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        figures,
        left,
        console=screen(),
        auto_refresh=False,
        redirect_stdout=sys.stdout.isatty(),  # prints scroll above the bar, but what goes to a file stays there
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def _tflops(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _loss(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.4f}"
