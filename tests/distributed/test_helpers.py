"""Requests to stop, and processes that end with the one that started them."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from megatron_sky.distributed.helpers import STOP_SIGNALS, how_it_ended, killed_by, stop_signals_to


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-15, "was killed by SIGTERM"),
        (-9, "was killed by SIGKILL (out of memory? look at the kernel's log)"),
    ],
)
def test_an_end_in_words(code, words):
    assert how_it_ended(code) == words and killed_by(signal.SIGSEGV) == "killed by SIGSEGV"


def test_requests_reach_the_handler_while_the_block_runs():
    seen: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    with stop_signals_to(lambda number, frame: seen.append(number)):
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
    assert seen == [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT]
    assert {number: signal.getsignal(number) for number in STOP_SIGNALS} == before


def test_nohup_stays():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals_to(lambda number, frame: pytest.fail("nobody asked")):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


PARENT = """
import os, subprocess, sys, time
helper = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=subprocess.PIPE, text=True)
assert helper.stdout.readline() == "ready\\n"
print(helper.pid, flush=True)
time.sleep(60)
"""
HELPER = """
import sys, time
from megatron_sky.distributed.helpers import end_with
end_with(int(sys.argv[1]){more})
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's own request")
@pytest.mark.parametrize("heeds", [False, True])
def test_a_helper_ends_with_its_parent_and_not_by_requests(heeds):
    code = HELPER.format(more=", heeds_sigterm=True" if heeds else "")
    with subprocess.Popen([sys.executable, "-c", PARENT, code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        helper = psutil.Process(int(parent.stdout.readline()))
        for number in STOP_SIGNALS:
            if number != signal.SIGTERM or not heeds:
                helper.send_signal(number)
        time.sleep(0.2)
        assert helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE
        if heeds:
            helper.terminate()
            while helper.is_running() and helper.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)
        parent.kill()
    if not heeds:
        psutil.wait_procs([helper], timeout=30)
        assert not helper.is_running() or helper.status() == psutil.STATUS_ZOMBIE
