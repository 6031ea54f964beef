"""A rank's process that writes its files of a checkpoint: one fork per save, that ends with the rank.

megatron-core starts it, and would start more: a server for the writers' results, and in 0.16 one process per file. Here
the files of a rank are threads of the one process, and the results come back through memory that both share. So there
is one process to lose, and its loss is a failed save with a name.
"""

import multiprocessing.dummy
import os
import pickle
import queue
import tempfile
from functools import partial
from types import SimpleNamespace

from megatron_sky.distributed import compat
from megatron_sky.distributed.helpers import end_with, how_it_ended


class _Results:
    """What the writer has to say at its end, in a file without a name that a fork shares."""

    def __init__(self):
        self._file = os.memfd_create("checkpoint") if hasattr(os, "memfd_create") else _unnamed_file()

    def clear(self) -> None:
        os.ftruncate(self._file, 0)

    def put(self, value: object) -> None:
        with open(self._file, "r+b", closefd=False) as file:
            file.seek(0)
            pickle.dump(value, file)

    def get_nowait(self) -> object:
        size = os.fstat(self._file).st_size
        if not size:
            raise queue.Empty
        with open(self._file, "rb", closefd=False) as file:
            file.seek(0)
            value = pickle.load(file)
        self.clear()
        return value


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def writers_queue():
    """megatron-core's queue of checkpoint writers, whose processes are of the kind that this module describes."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, TemporalAsyncCaller

    results = filesystem_async._results_queue
    if not isinstance(results, _Results):
        results = _Results()
        threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
        compat.replace_members(filesystem_async, _results_queue=results, mp=threads)

    class Caller(TemporalAsyncCaller):
        def schedule_async_call(self, async_req) -> None:
            if async_req.async_fn is not None:
                results.clear()
                async_req = async_req._replace(async_fn=partial(_write, os.getpid(), async_req.async_fn))
            super().schedule_async_call(async_req)

        def close(self, abort: bool = False) -> None:
            process = self.process
            super().close(abort)
            if process is not None and process.exitcode:
                results.clear()
                results.put(ChildProcessError(f"the process that writes these files {how_it_ended(process.exitcode)}"))

    class Queue(AsyncCallsQueue):
        def _get_async_caller(self):
            return Caller()

    return Queue(persistent=False)


def _write(parent: int, write, *args, **kwargs) -> None:
    end_with(parent)
    write(*args, **kwargs)
