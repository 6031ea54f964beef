"""A group of processes for many-rank tests over gloo, started once and used by many checks.

They are forks of a process that has torch loaded and nothing else, which costs more than most checks do.

Each check is a function of a test module (found by name in the child) with plain arguments. The child that runs it is
a rank: it calls `open_context` with the RankInfo it is given, does its work, and leaves the groups again.
"""

import contextlib
import faulthandler
import gc
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from queue import Empty

TIMEOUT_SECONDS = 300
LOADED = ["torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.tensor"]
"""Not megatron-core, which must come after `device.setup`."""


class RankGroup:
    """Processes 0..n-1, as many as the largest check so far needed."""

    def __init__(self):
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(LOADED)
        self._workers: list[tuple] = []

    def run(self, world_size: int, function: Callable, *args) -> list:
        """`function(info, *args)` on `world_size` ranks; the results in rank order. A rank's error is raised here."""
        while len(self._workers) < world_size:
            self._workers.append(self._start())
        port = _free_port()
        for rank, (_, tasks, _) in enumerate(self._workers[:world_size]):
            tasks.put((function, args, rank, world_size, port))
        try:
            return [self._result(rank) for rank in range(world_size)]
        except BaseException:
            self.close()  # the other ranks may wait for one that is gone
            raise

    def _result(self, rank: int):
        process, _, results = self._workers[rank]
        for _ in range(TIMEOUT_SECONDS * 2):
            try:
                ok, value = results.get(timeout=0.5)
                break
            except Empty:
                assert process.is_alive(), f"rank {rank} died with exit code {process.exitcode}"
        else:
            os.kill(process.pid, signal.SIGABRT)  # its stacks go to standard error
            raise AssertionError(f"rank {rank} gave no result in {TIMEOUT_SECONDS} s")
        assert ok, f"rank {rank} failed:\n{value}"
        return value

    def _start(self) -> tuple:
        tasks, results = self._context.Queue(), self._context.Queue()
        process = self._context.Process(target=_work, args=(tasks, results), daemon=False)
        process.start()
        return process, tasks, results

    def close(self) -> None:
        for process, _, _ in self._workers:
            process.kill()
            process.join()
        self._workers = []


def _work(tasks, results) -> None:
    from megatron_sky.distributed.launch import RankInfo

    faulthandler.enable()
    make_own_deprecated_calls_errors()
    while True:
        function, args, rank, world_size, port = tasks.get()
        info = RankInfo(rank, world_size, rank, world_size, "127.0.0.1", port)
        try:
            results.put((True, function(info, *args)))
        except Exception:
            results.put((False, traceback.format_exc()))
            _forget_groups()
        _leave_groups()
        _release_models()
        gc.collect()
        gc.freeze()  # what is loaded by now stays, and is not looked at again


def make_own_deprecated_calls_errors() -> None:
    """As pytest's filters in pyproject.toml, which a process that tests start knows nothing of."""
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("error", category=category, module="megatron_sky")


def _forget_groups() -> None:
    """After a failed check the process groups are useless; the parent will end this process."""
    with contextlib.suppress(Exception):
        import torch.distributed

        torch.distributed.destroy_process_group()


def _leave_groups() -> None:
    """Those of a check that took an error for its answer: a run that fails leaves its groups as they are."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_initialized():
        return
    if "megatron.core" in sys.modules:
        from megatron_sky.distributed.context import close_context

        close_context()
    else:
        distributed.destroy_process_group()


def _release_models() -> None:
    """Has garbage collection see the models that a check built and left.

    A model holds its process groups, each with three threads, one of which wakes a hundred times a second: after some
    checks they keep all cores busy.
    """
    if megatron := sys.modules.get("megatron.core.distributed"):
        from megatron_sky.model.build import release_chunk

        for found in gc.get_objects():
            if type(found) is megatron.DistributedDataParallel:
                release_chunk(found)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
