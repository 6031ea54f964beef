"""Being asked to stop: by a signal, or by the clock before the job's end.

SIGTERM, SIGUSR1, SIGUSR2, SIGINT and SIGHUP (unless it is ignored, as by nohup) ask for an orderly end: finish the step
or validation, save, exit with 75. A second signal hurries: of a validation only the set in hand is finished. A third
ends the process at once. Any rank may be asked; the ranks agree once a step.
"""

import os
import signal
import time
from types import FrameType

from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.distributed.helpers import end_by, stop_signals_to
from megatron_sky.distributed.launch import pending_stop_signals
from megatron_sky.log import get_logger

log = get_logger(__name__)

RUN, STOP, STOP_NOW = 0, 1, 2


class StopRequests:
    """This rank's own request to stop: `level` is RUN, STOP or STOP_NOW. A context manager that owns the handlers."""

    def __init__(self, config: ResilienceConfig, start: float | None = None):
        self.reason = ""
        self._count = 0
        self._deadline = _deadline(config, time.time() if start is None else start)
        self._handled = stop_signals_to(self._asked)

    def __enter__(self) -> "StopRequests":
        self._handled.__enter__()
        for number in pending_stop_signals()[:STOP_NOW]:
            self._asked(number, None)
        return self

    def __exit__(self, *exc_info) -> None:
        self._handled.__exit__(None, None, None)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count > STOP_NOW:  # whoever asks a third time does not want to wait
            end_by(number)
        self.reason = f"signal {signal.Signals(number).name}"

    @property
    def level(self) -> int:
        if self._count == 0 and self._deadline is not None and time.time() >= self._deadline:
            self._count, self.reason = 1, "the job's time is nearly over"
        return min(self._count, STOP_NOW)


def _deadline(config: ResilienceConfig, start: float) -> float | None:
    """When to stop, in seconds of the epoch; None where nobody told when the job ends."""
    if config.time_limit_seconds is not None:
        return start + config.time_limit_seconds - config.exit_before_seconds
    slurm_end = os.environ.get("SLURM_JOB_END_TIME", "")
    return _slurm_deadline(config, start, float(slurm_end)) if slurm_end.isdigit() else None


def _slurm_deadline(config: ResilienceConfig, start: float, end: float) -> float | None:
    """`exit_before_seconds` before the job's end, or half-way to it where that would be over at the start."""
    left = end - start
    if left <= 0:  # the limit was raised after the job began, of which the variable does not know
        log.warning("SLURM_JOB_END_TIME is past: the job's end is not known, only Slurm's signals are heeded")
        return None
    if left > config.exit_before_seconds:
        return end - config.exit_before_seconds
    log.warning(
        "the job ends in %.0f s, which is not more than resilience.exit_before_seconds (%g): leaving %.0f s before its "
        "end; give jobs more time, or lower resilience.exit_before_seconds",
        left,
        config.exit_before_seconds,
        left / 2,
    )
    return start + left / 2
