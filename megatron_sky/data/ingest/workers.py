"""The processes that encode.

Where that is safe they are forks of this one, which imports first what they need: starting afresh, each would import
it again.
"""

import contextlib
import importlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

_NEEDED = ("sentencepiece", "gigatoken", "awkward")


def make_pool(workers: int, start: Callable[..., None], given: tuple) -> ProcessPoolExecutor:
    """A pool of this many processes, each of which calls `start(pid of this process, *given)` first."""
    forks = _may_fork()
    if forks:
        for name in _NEEDED:
            with contextlib.suppress(ImportError):  # who can't do without it says so
                importlib.import_module(name)
    context = get_context("fork" if forks else "spawn")
    pool = ProcessPoolExecutor(workers, context, start, (os.getpid(), *given))
    if forks:
        pool.submit(os.getpid)  # by which they are all there before this process starts a thread
    return pool


def _may_fork() -> bool:
    """Whether no thread can hold what a fork of this process would wait for; torch's may."""
    return sys.platform == "linux" and threading.active_count() == 1 and "torch" not in sys.modules
