"""A rank's process that writes its files of a checkpoint: one fork per save, that ends with the rank.

megatron-core starts it, and would start more: a server for the writers' results, and in 0.16 one process per file. Here
the files of a rank are threads of the one process, and the results come back through memory that both share. So there
is one process to lose, and its loss is a failed save with a name. It also hashes what it writes.
"""

import multiprocessing.dummy
import os
import pickle
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import cache, partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import xxhash

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.reader.weights import MODEL_SPACE
from megatron_sky.checkpoint.staging import left_out_of_forks, tensors_of
from megatron_sky.distributed import compat, cpu_memory
from megatron_sky.distributed.helpers import end_with, how_it_ended
from megatron_sky.files import DirectWriter

if TYPE_CHECKING:
    import torch


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


class _HashedFile(DirectWriter):
    """A file of a checkpoint that is hashed as it is written; entered in `records` when it is closed."""

    def __init__(self, path: str | Path, records: dict[str, store.FileRecord]):
        self._name, self._records, self._digest = Path(path).name, records, xxhash.xxh3_128()
        super().__init__(path, self._digest.update)

    def close(self) -> None:
        super().close()
        self._records[self._name] = store.FileRecord(self.tell(), xxh3=self._digest.hexdigest())


@cache
def _writers_hashes() -> _Results:
    return _Results()


def hashes_of_last_write() -> dict[str, store.FileRecord]:
    """The records, by name, of the files that this rank's last writer has written, once it has ended; given once."""
    try:
        return cast(dict[str, store.FileRecord], _writers_hashes().get_nowait())
    except queue.Empty:
        return {}


def writers_queue(memory: "Iterable[torch.Tensor]" = ()):
    """megatron-core's queue of checkpoint writers, whose processes are of the kind that this module describes.

    `memory`: tensors that a writer has no need of, but for those that it writes; see `staging.left_out_of_forks`.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async
    from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue, TemporalAsyncCaller

    results = filesystem_async._results_queue
    if not isinstance(results, _Results):
        results = _Results()
        threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
        compat.replace_members(filesystem_async, _results_queue=results, mp=threads)

    class Caller(TemporalAsyncCaller):
        def schedule_async_call(self, async_req) -> None:
            results.clear()
            _writers_hashes().clear()
            if async_req.async_fn is None:
                return
            rank, buckets, *others = async_req.async_fn_args
            if async_req.preload_fn is not None:
                buckets = async_req.preload_fn()
            self.preloaded_holder = buckets  # as 0.19 does: memory that a GPU has copied to stays its own
            work = partial(_write, os.getpid(), async_req.async_fn)
            async_req = async_req._replace(async_fn=work, async_fn_args=(rank, buckets, *others), preload_fn=None)
            cpu_memory.give_back_freed_blocks()
            with left_out_of_forks(memory, but=tensors_of(buckets)):
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
    """The process's work. megatron-core opens the files; here they are hashed on their way."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    end_with(parent)
    records: dict[str, store.FileRecord] = {}
    vars(filesystem_async)["open"] = lambda path, mode: _HashedFile(path, records)
    vars(filesystem_async)["_write_item"] = _crc_of_weights_alone(filesystem_async._write_item)
    write(*args, **kwargs)
    _writers_hashes().put(records)


def _crc_of_weights_alone(write_item: Callable) -> Callable:
    """`write_item` of torch, which leaves the optimizer's tensors without torch's own CRC-32.

    It would be most of a writer's work, for bytes that the manifest has a hash of. Weights keep theirs: by it a
    conversion verifies what it reads, which is a small part of a file. torch asks for its setting at each archive;
    set the way that it offers, it would be that of all threads in some versions.
    """
    import torch
    from torch.distributed.checkpoint.planner import WriteItem

    of_this_thread = threading.local()
    compat.replace_members(torch.serialization, get_crc32_options=lambda: getattr(of_this_thread, "has_crc", True))

    @wraps(write_item)
    def write(*args, **kwargs):
        (item,) = (one for one in args if isinstance(one, WriteItem))
        of_this_thread.has_crc = not item.index.fqn.startswith(MODEL_SPACE)
        return write_item(*args, **kwargs)

    return write
