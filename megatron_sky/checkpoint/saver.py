"""Writing a checkpoint beside training: a snapshot in an instant, then files are written and hashed in the background.

A save goes through three stages. *Writing*: megatron-core's planner lists this rank's tensors, and a forked process
writes and hashes them; a fork's memory is a snapshot (see `staging`; on a GPU, the tensors are copied to the host).
*Hashing*: when the writers of all ranks are done, each rank hashes its share of the other files in a thread.
*Finishing*: rank 0 writes the manifest and renames the folder. `poll`, called once a step, moves on what can move; only
then do ranks talk, with one small all-reduce. One save is in flight at a time: the next waits for it.

A save that fails leaves no folder under the final name. What follows from that, and when to save, is `manager`'s.
"""

import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from megatron_sky.checkpoint import state, store
from megatron_sky.checkpoint.description import AdapterBase, write_description
from megatron_sky.checkpoint.staging import Staging, training_memory
from megatron_sky.checkpoint.writers import hashes_of_last_write, writers_queue
from megatron_sky.config import Config
from megatron_sky.distributed import compat
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError, RunError
from megatron_sky.files import remove_tree
from megatron_sky.model.build import gather_weights
from megatron_sky.model.flops import lora_parameters, num_parameters

if TYPE_CHECKING:
    from megatron.core.distributed import DistributedDataParallel
    from megatron.core.optimizer import MegatronOptimizer

    from megatron_sky.model.backends.fp8_linear import Fp8Scaling

T = TypeVar("T")


class _CallsQueue(Protocol):
    """megatron-core's AsyncCallsQueue."""

    def schedule_async_request(self, request: object, /) -> object: ...
    def maybe_finalize_async_calls(self, blocking: bool) -> list[int]: ...


@dataclass
class _Flight:
    """The save in flight."""

    step: int
    temporary: Path
    final: Path
    started: float
    queue: _CallsQueue | None  # while writing
    hashing: "_Hashing | None" = None


@dataclass
class _Hashing:
    """This rank's share of the hashes that its writer has not taken, in a thread (hashing releases Python's lock).

    `records`: what its writer has hashed, and at the end all of this rank.
    """

    folder: Path
    names: list[str]
    records: dict[str, store.FileRecord] = field(default_factory=dict)
    failure: str | None = None

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run, name="checkpoint-hash", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.records = self.records | store.hash_files(self.folder, self.names, "xxh3")
        except OSError as error:
            self.failure = f"{self.folder}: can't be read back: {error}"

    def done(self) -> bool:
        return not self.thread.is_alive()


@dataclass(frozen=True)
class SaveOutcome:
    """A save that ended: whole in `folder`, or failed with a reason. `seconds` from its start to its end."""

    step: int
    folder: Path
    seconds: float
    failure: str | None = None


def checkpoint_bytes(config: Config) -> int:
    """About what one checkpoint takes on disk: weights, and fp32 master weights and two moments with the optimizer."""
    weights = 4 if config.precision.dtype == "fp32" else 2
    lora = config.finetune.lora if config.finetune else None
    parameters = num_parameters(config.model, padded=True) if lora is None else lora_parameters(config.model, lora)
    return parameters * (weights + (12 if config.checkpoint.save_optimizer else 0))


class Saver:
    """Writes one run's checkpoints. Every method is collective."""

    def __init__(
        self,
        run_dir: Path,
        *,
        config: Config,
        context: ParallelContext,
        chunks: "Sequence[DistributedDataParallel]",
        optimizer: "MegatronOptimizer",
        fingerprint: Callable[[], dict],
        sources: Mapping[str, str] | None = None,
        tokenizer: Mapping[str, bytes] | None = None,
        fp8: "Fp8Scaling | None" = None,
        adapter: AdapterBase | None = None,
    ):
        """`tokenizer`: its files by name, held in memory: what lies at its place may change while the run goes on."""
        self._run_dir, self._config, self._context = run_dir, config, context
        self._chunks, self._fp8, self._adapter = chunks, fp8, adapter
        self._optimizer = optimizer if config.checkpoint.save_optimizer else None
        self._trained = list(chunks), optimizer
        self._staging = Staging(context)
        self._fingerprint, self._sources = fingerprint, dict(sources or {})
        self._tokenizer = dict(tokenizer or {})
        self._flight: _Flight | None = None
        self.bytes_needed = checkpoint_bytes(config)

    def start(self, progress: dict, *, wait: bool = False) -> list[SaveOutcome]:
        """Starts the save of this moment; returns the saves that ended meanwhile (one in flight is waited for).

        `wait`: until it has ended, though the recipe saves beside training.
        """
        ended = self.finish()
        beside = self._config.checkpoint.async_save and not wait
        try:
            self._flight = self._begin(progress, beside=beside)
        except CheckpointError as error:
            folder = store.folder_of(self._run_dir, progress["step"])
            self._remove(temporary_of(folder))
            return [*ended, SaveOutcome(progress["step"], folder, 0.0, str(error))]
        return ended if beside else [*ended, *self.finish()]

    def poll(self) -> list[SaveOutcome]:
        """Moves the save in flight on, without waiting; returns it if it ended. Free when nothing is in flight."""
        return self._advance(wait=False) if self._flight is not None else []

    def finish(self) -> list[SaveOutcome]:
        """Waits for the save in flight, if any."""
        ended: list[SaveOutcome] = []
        while self._flight is not None:
            ended += self._advance(wait=True)
        return ended

    def _begin(self, progress: dict, *, beside: bool) -> _Flight:
        started = time.perf_counter()
        final = store.folder_of(self._run_dir, progress["step"])
        temporary = temporary_of(final)
        described = {"progress": progress, "data": self._fingerprint(), "layout": str(self._context.layout)}
        described["sources"] = self._sources
        if self._adapter is not None:
            described["adapter"] = asdict(self._adapter)
        self._on_first_rank(lambda: self._prepare(temporary, described), temporary)
        return _Flight(progress["step"], temporary, final, started, self._plan(temporary, beside=beside))

    def _plan(self, temporary: Path, *, beside: bool) -> _CallsQueue:
        """Starts the writers. What rank 0 alone can't write is every rank's failure. Any other failure here is one
        rank's, so it ends the run: the others wait for this one."""
        from megatron.core import dist_checkpointing

        gather_weights(self._chunks)
        alone = self._adapter is not None
        tensors, metadata = state.sharded_state(
            self._chunks, self._optimizer, self._context, loading=False, fp8=self._fp8, only_adapters=alone
        )
        compat.write_views_in_place()
        queue = writers_queue(training_memory(*self._trained))
        try:
            with compat.failures_of_first_rank() as failures:
                request = compat.call(
                    dist_checkpointing.save,
                    tensors,
                    str(temporary),
                    state.save_strategy(self._context),
                    async_sharded_save=True,
                    content_metadata=metadata,
                    async_strategy="mcore",
                )
        except OSError as error:
            raise RunError(_cannot_write(temporary, error)) from error
        self._on_first_rank(lambda: _raise_first(failures), temporary)
        self._on_first_rank(lambda: compat.write_common_file(tensors, temporary), temporary)
        queue.schedule_async_request(self._staging.staged(request) if beside else request)
        return queue

    def _prepare(self, temporary: Path, described: dict) -> None:
        if os.path.lexists(temporary):
            remove_tree(temporary)  # left by a save that did not end
        temporary.mkdir(parents=True)
        free, needed = shutil.disk_usage(temporary).free, self.bytes_needed
        if free < needed:
            temporary.rmdir()
            raise CheckpointError(
                f"{temporary}: {free:,} bytes are free, a checkpoint needs about {needed:,}\n  fix: free space, or "
                "keep fewer checkpoints (checkpoint.keep_last)"
            )
        write_description(temporary, self._config, described, self._tokenizer)

    def _advance(self, wait: bool) -> list[SaveOutcome]:
        flight = self._flight
        assert flight is not None
        try:
            if flight.queue is not None:
                self._advance_writing(flight, flight.queue, wait)
            elif flight.hashing is None:
                flight.hashing = self._begin_hashing(flight.temporary)
            elif self._hashed(flight.hashing, wait):
                return [self._end(flight, flight.hashing)]
        except CheckpointError as error:
            self._flight = None
            self._remove(flight.temporary)
            return [SaveOutcome(flight.step, flight.final, time.perf_counter() - flight.started, str(error))]
        return []

    def _advance_writing(self, flight: _Flight, queue: _CallsQueue, wait: bool) -> None:
        """The writers' failures reach every rank, so this fails on all ranks or none."""
        from megatron.core.dist_checkpointing.core import CheckpointingException
        from torch.distributed.checkpoint.api import CheckpointException

        try:
            with compat.failures_of_first_rank() as failures:
                ended = queue.maybe_finalize_async_calls(blocking=wait)
        except (CheckpointException, CheckpointingException) as error:
            raise CheckpointError(_cannot_write(flight.temporary, _reason(error))) from error
        if ended:
            flight.queue = None
            self._on_first_rank(lambda: _raise_first(failures), flight.temporary)

    def _begin_hashing(self, folder: Path) -> _Hashing:
        """Each file that no writer has hashed is one rank's to hash."""
        sizes = self._on_first_rank(lambda: store.sizes_of(folder), folder)
        records = {name: one for name, one in hashes_of_last_write().items() if one.size == sizes.get(name)}
        written = [name for one in self._context.gather_objects(list(records)) for name in one]
        rest = {name: size for name, size in sizes.items() if name not in written}
        return _Hashing(folder, store.share_of(rest, self._context.rank, self._context.world_size), records)

    def _hashed(self, hashing: _Hashing, wait: bool) -> bool:
        if wait:
            hashing.thread.join()
        return self._context.agree([0 if hashing.done() else 1]) == [0]

    def _end(self, flight: _Flight, hashing: _Hashing) -> SaveOutcome:
        gathered = self._context.gather_objects((hashing.records, hashing.failure))
        failures = [failure for _, failure in gathered if failure]
        if failures:
            raise CheckpointError(failures[0])
        records = {name: record for part, _ in gathered for name, record in part.items()}
        self._on_first_rank(lambda: store.finish(flight.temporary, flight.final, flight.step, records), flight.final)
        self._flight = None
        return SaveOutcome(flight.step, flight.final, time.perf_counter() - flight.started)

    def _remove(self, temporary: Path) -> None:
        """Of a save that failed: what was written may be what filled the disk."""
        if self._context.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)

    def _on_first_rank(self, action: Callable[[], T], path: Path) -> T:
        """What `action` gives on rank 0, on every rank; its failure is every rank's."""

        def work() -> T:
            try:
                return action()
            except (OSError, RuntimeError) as error:  # torch.save's own is a RuntimeError
                raise CheckpointError(_cannot_write(path, error)) from error

        return self._context.from_first_rank(work)


def temporary_of(folder: Path) -> Path:
    """What a checkpoint's folder is called until all is written."""
    return folder.with_name(folder.name + ".tmp")


def _raise_first(failures: Sequence[Exception]) -> None:
    if failures:
        raise failures[0]


def _cannot_write(path: Path, reason: object) -> str:
    """With the space that is left, since torch says of a full disk only that its position is not the expected one."""
    try:
        free = f" ({shutil.disk_usage(path if path.exists() else path.parent).free:,} bytes are free)"
    except OSError:  # the disk is gone: the reason says so
        free = ""
    return f"{path}: can't be written: {reason}{free}\n  fix: free space or permissions there"


def _reason(error: BaseException) -> str:
    """The last line of megatron-core's nested report, which names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
