"""Being asked to leave: by signals, and by the clock."""

import os
import signal

from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.trainer.signals import HURRY, LEAVE, STAY, LeaveRequests


def test_one_signal_asks_and_the_second_hurries():
    before = signal.getsignal(signal.SIGUSR1)
    with LeaveRequests(ResilienceConfig()) as leave:
        assert leave.level == STAY
        os.kill(os.getpid(), signal.SIGUSR1)
        assert leave.level == LEAVE and "SIGUSR1" in leave.reason
        os.kill(os.getpid(), signal.SIGTERM)
        assert leave.level == HURRY
    assert signal.getsignal(signal.SIGUSR1) is before


def test_the_recipes_time_limit(monkeypatch):
    import time

    config = ResilienceConfig(time_limit_seconds=100, exit_before_seconds=30)
    assert LeaveRequests(config, start=time.time() - 60).level == STAY
    late = LeaveRequests(config, start=time.time() - 71)
    assert late.level == LEAVE and "time" in late.reason


def test_slurms_end_time(monkeypatch):
    import time

    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time() + 100)))
    assert LeaveRequests(ResilienceConfig(exit_before_seconds=50)).level == STAY
    assert LeaveRequests(ResilienceConfig(exit_before_seconds=200)).level == LEAVE


def test_no_limit_known(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert LeaveRequests(ResilienceConfig(exit_before_seconds=10**9)).level == STAY
