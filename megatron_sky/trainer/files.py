"""What the loop asks of a run's data: batches, a place to go on from, what was used, the texts behind a bad step."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_sky.checkpoint.description import CheckpointDescription
from megatron_sky.config.schema import DataConfig, TrainConfig
from megatron_sky.data.loader import Batch, TrainingData, prefetch
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.log import get_logger
from megatron_sky.trainer import suspects
from megatron_sky.trainer.batches import training_requests
from megatron_sky.trainer.resume import take_up
from megatron_sky.trainer.state import TrainState, plan_number

log = get_logger(__name__)


class RunFiles:
    """A run's training data, read by this rank, and its folder. A context manager: it ends the reading threads."""

    def __init__(
        self, data: TrainingData, *, settings: DataConfig, train: TrainConfig, context: ParallelContext, run_dir: Path
    ):
        self._data, self._settings, self._train = data, settings, train
        self._context, self._run_dir = context, run_dir
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "RunFiles":
        return self

    def __exit__(self, *exc_info) -> None:
        self._open.close()

    def batches(self, state: TrainState) -> Iterator[Batch]:
        """This rank's micro batches from `state` on, read ahead, into memory that a GPU copies from meanwhile."""
        self._open.close()  # the threads that read ahead of another state
        requests = training_requests(self._train, context=self._context, seq_length=self._data.seq_length, state=state)
        ahead = prefetch(
            self._read, requests, num_workers=self._settings.num_workers, depth=self._settings.prefetch_batches
        )
        return self._open.enter_context(contextlib.closing(ahead))

    def _read(self, numbers: Sequence[int]) -> Batch:
        return self._data.read(numbers).pin()

    def continue_from(self, checkpoint: CheckpointDescription) -> TrainState:
        """Takes up the data where the checkpoint stands; the run's progress there."""
        return take_up(checkpoint, self._data).state

    def name_samples(self, step: int, numbers: list[int]) -> str:
        """The texts behind these samples of the plan, in words; all of them are written into the run folder."""
        named = suspects.name_samples(self._data, numbers)
        if self._context.rank == 0:
            self._keep(step, named)
        return suspects.in_words(named)

    def _keep(self, step: int, named: list[dict]) -> None:
        try:
            suspects.write(self._run_dir, step, named)
        except OSError as error:
            log.warning("the samples of step %d can't be kept, the run goes on without: %s", step, error)

    def usage(self, state: TrainState) -> list[dict]:
        """Tokens and epochs that each source has given: `name`, `tokens`, `epochs`."""
        plan, used = self._data.plan, plan_number(state.consumed_samples, state.skipped)
        return [
            {"name": source.name, "tokens": count * self._data.seq_length, "epochs": epochs}
            for source, count, epochs in zip(plan.sources, plan.consumed(used), plan.epochs(used), strict=True)
        ]
