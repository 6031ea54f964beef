"""Requests to stop, and processes that help this one: each of these ends with it, however that ends.

A helper that outlives its rank would keep memory, sockets and the run folder's lock.
"""

import contextlib
import ctypes
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import NoReturn

from megatron_sky.errors import RunError

# Each asks for an orderly end; SIGHUP comes when a terminal is closed.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def stop_signals_to(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Has `handler` called for each request to stop while the block runs. An ignored SIGHUP (nohup) stays ignored."""
    numbers = [n for n in STOP_SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class EndedBySignal(SystemExit):
    """SIGTERM or a closed terminal asked a verb to end: what it was writing is taken away on the way out."""

    def __init__(self, number: int):
        self.number = number
        super().__init__(128 + number)


def end_orderly() -> None:
    """From now on SIGTERM and SIGHUP, where they would kill this process, raise EndedBySignal; a second one kills."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        end_at_once()
        raise EndedBySignal(number)

    for number in _ENDING:
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, leave)


def end_at_once() -> None:
    """Takes back `end_orderly`: for a rank, which may wait for others and hear of nothing."""
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def end_by(number: int) -> None:
    """Ends this process by the signal, as if nobody handled it: for who has asked too often to want to wait."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that only this user can open, under TMPDIR. Raises RunError naming that place where it can't be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="megatron_sky_", ignore_cleanup_errors=True)
    except OSError as error:
        place = os.environ.get("TMPDIR", "/tmp")
        fix = "free space there, or set TMPDIR to a folder that has some and that you may write to"
        reason = error.strerror or error
        raise RunError(f"TMPDIR ({place}): no folder for temporary files can be made: {reason}\n  fix: {fix}") from None
    with folder as name:
        yield Path(name)


@contextlib.contextmanager
def shared_memory_named() -> Iterator[None]:
    """Around what makes queues between processes, whose locks lie in /dev/shm: a failure there names that place.

    Raises RunError, where an OSError would be taken for one of the disk that is written to.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        fix = "free space there (df -h -i /dev/shm); a container gets more with --shm-size"
        raise RunError(
            f"/dev/shm: the processes' shared memory can't be made: {error.strerror}\n  fix: {fix}"
        ) from error


def end_with(parent: int, *, heeds_sigterm: bool = False) -> None:
    """For a process that `parent` (its pid) has just started: the kernel ends it when that ends (Linux only).

    Requests to leave are for the parent alone, which may still need its helpers; Slurm and terminals send them to all.
    `heeds_sigterm`: but for SIGTERM, by which a pool of processes ends those of its workers that are left.
    """
    if heeds_sigterm:
        end_at_once()  # a fork has what its parent would do
    for number in STOP_SIGNALS:
        if number != signal.SIGTERM or not heeds_sigterm:
            signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def how_it_ended(exit_code: int) -> str:
    """A helper's end, in words, by multiprocessing's exit code: below 0 for a signal's number."""
    return f"ended with exit code {exit_code}" if exit_code >= 0 else f"was {killed_by(-exit_code)}"


def killed_by(number: int) -> str:
    """A process's end by the signal of this number, in words."""
    hint = " (out of memory? look at the kernel's log)" if number == signal.SIGKILL else ""
    return f"killed by {signal.Signals(number).name}{hint}"
