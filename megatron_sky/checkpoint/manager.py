"""A run's checkpoints: when one is due, which is the last good one, what is kept, and the way back to it.

The loop says `maybe_save` after every step and `save_at_end` at last. An interval's save may fail (a full disk is told,
training goes on with the older checkpoints); the run's last one may not. `last_good_step` is the step of the newest
checkpoint that this run has loaded or seen whole on disk: a save in flight, or one that failed, does not count.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from megatron_sky.checkpoint import shared_check, store
from megatron_sky.checkpoint.description import CheckpointDescription, read_description
from megatron_sky.checkpoint.saver import SaveOutcome, Saver
from megatron_sky.config.schema import CheckpointConfig
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError
from megatron_sky.log import get_logger

log = get_logger(__name__)


class Progress(Protocol):
    """How far the run is, as a checkpoint holds it."""

    step: int
    consumed_tokens: int
    best_tokens: int | None

    def to_dict(self) -> dict: ...


class CheckpointManager:
    """One run's checkpoints. Its methods are collective."""

    def __init__(
        self,
        config: CheckpointConfig,
        *,
        run_dir: Path,
        context: ParallelContext,
        saver: Saver,
        load: Callable[[Path], None],
        marks: Sequence[int],
        progress: Progress,
        last_good_step: int | None,
        report: Callable[[SaveOutcome], None],
        beat: Callable[[str], None],
    ):
        """`load` fills weights and optimizer from a folder. `marks`: consumed tokens at which a checkpoint is saved and
        kept for ever. `progress`, `last_good_step` (None: there is none): at the start. `report` is told of every save
        that ended."""
        self._config, self._run_dir, self._context = config, run_dir, context
        self._saver, self._load, self._marks = saver, load, marks
        self._tokens, self._best_tokens = progress.consumed_tokens, progress.best_tokens
        self._report, self._beat = report, beat
        self._warned: set[str] = set()
        self.last_good_step = last_good_step

    def maybe_save(self, progress: Progress) -> bool:
        """Starts a save where one is due, or the run has never been better; otherwise moves the one in flight on."""
        before, self._tokens = self._tokens, progress.consumed_tokens
        self._best_tokens = progress.best_tokens
        is_best = progress.best_tokens == progress.consumed_tokens and progress.step != self.last_good_step
        if not (is_best or self.is_due(progress.step, before, progress.consumed_tokens)):
            self._note(self._saver.poll())
            return False
        self._beat("save")
        self._note(self._saver.start(progress.to_dict()))
        return True

    def is_due(self, step: int, tokens_before: int, tokens_after: int) -> bool:
        """At the interval, and with the step that reaches a mark; never for a step that has its checkpoint."""
        if step == self.last_good_step:  # a rollback has come back to it
            return False
        interval = self._config.interval
        reached = any(tokens_before < mark <= tokens_after for mark in self._marks)
        return reached or (interval is not None and interval.due(step, tokens_before, tokens_after))

    def wait(self) -> None:
        """Ends the save in flight, if any; a failure is told."""
        self._beat("save")
        self._note(self._saver.finish())

    def save_at_end(self, progress: Progress) -> None:
        """The run's last checkpoint, unless this step has one. Raises CheckpointError where it can't be saved."""
        self._best_tokens = progress.best_tokens
        self.wait()
        if progress.step == self.last_good_step:
            return
        for outcome in self._saver.start(progress.to_dict(), wait=True):
            if outcome.failure is not None:
                raise CheckpointError(outcome.failure)
            self._note([outcome])

    def roll_back(self) -> CheckpointDescription | None:
        """Fills weights and optimizer from the last good checkpoint; what that says of itself. None: there is none."""
        self.wait()
        self._beat("roll back")
        folder = shared_check.find_latest(self._run_dir, self._context, log.warning)
        if folder is None:
            return None
        description = read_description(folder)
        self._load(folder)
        self.last_good_step = description.progress["step"]
        self._tokens = description.progress["consumed_tokens"]
        return description

    def _note(self, outcomes: list[SaveOutcome]) -> None:
        for outcome in outcomes:
            self._report(outcome)
            if outcome.failure is None:
                self.last_good_step = outcome.step
                self._prune(outcome.step)

    def _prune(self, newest: int) -> None:
        """Deletes the checkpoints that retention lets go; that of step `newest` is known to be whole."""
        keep_last = self._config.keep_last
        if self._context.rank != 0 or keep_last is None:
            return
        for old in store.to_prune(
            self._run_dir,
            newest=newest,
            keep_last=keep_last,
            keep_every_tokens=self._config.keep_every_tokens,
            marks=[*self._marks, *([] if self._best_tokens is None else [self._best_tokens])],
            warn=self._warn_once,
        ):
            try:
                store.remove(old)
            except OSError as error:
                self._warn_once(f"{old}: can't be deleted, training goes on: {error}")
            else:
                log.info("checkpoint %s deleted (checkpoint.keep_last = %d)", old.name, keep_last)

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)
