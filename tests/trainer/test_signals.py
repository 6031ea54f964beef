"""Being asked to stop: by signals, and by the clock."""

import os
import signal
import time

import pytest

from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.trainer.signals import RUN, STOP, STOP_NOW, StopRequests


def test_one_signal_asks_and_the_second_hurries():
    before = signal.getsignal(signal.SIGUSR1)
    with StopRequests(ResilienceConfig()) as leave:
        assert leave.level == RUN
        os.kill(os.getpid(), signal.SIGUSR1)
        assert leave.level == STOP and "SIGUSR1" in leave.reason
        os.kill(os.getpid(), signal.SIGTERM)
        assert leave.level == STOP_NOW
    assert signal.getsignal(signal.SIGUSR1) is before


def test_the_recipes_time_limit(monkeypatch):
    config = ResilienceConfig(time_limit_seconds=100, exit_before_seconds=30)
    assert StopRequests(config, start=time.time() - 60).level == RUN
    late = StopRequests(config, start=time.time() - 71)
    assert late.level == STOP and "time" in late.reason


@pytest.mark.parametrize("before, since, level", [(50, 0, RUN), (50, 60, STOP), (200, 40, RUN), (200, 60, STOP)])
def test_slurms_end_time(monkeypatch, caplog, before, since, level):
    """A job that is no longer than the time to leave it does at least half its work."""
    start = time.time() - since
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(start + 101)))
    assert StopRequests(ResilienceConfig(exit_before_seconds=before), start=start).level == level
    assert ("lower resilience.exit_before_seconds" in caplog.text) == (before == 200)


def test_an_end_time_that_is_past_is_not_heeded(monkeypatch, caplog):
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() - 100)))
    assert StopRequests(ResilienceConfig()).level == RUN
    assert "SLURM_JOB_END_TIME is past" in caplog.text


def test_no_limit_known(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert StopRequests(ResilienceConfig(exit_before_seconds=10**9)).level == RUN
