"""The training loop. `fit` is the whole story; each line of it decides for itself whether this step is its turn."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from megatron_sky.checkpoint.saver import Saved, Saver
from megatron_sky.config.schema import (
    CheckpointConfig,
    OptimizerConfig,
    ResilienceConfig,
    TrainConfig,
)
from megatron_sky.data.loader import Batch
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError, LeftEarly, RunError
from megatron_sky.log import get_logger
from megatron_sky.optim.schedule import global_batch_size_at
from megatron_sky.optim.update import forget_moments
from megatron_sky.trainer.anomaly import FINE, NONFINITE, AnomalyDetector
from megatron_sky.trainer.garbage import GarbageCollection
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.profiler import Profiler
from megatron_sky.trainer.sessions import Sessions
from megatron_sky.trainer.signals import HURRY, STAY, LeaveRequests
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.step import StepResult, StepRunner
from megatron_sky.trainer.stragglers import Stragglers
from megatron_sky.trainer.validation import Validator

log = get_logger(__name__)


class RunFiles(Protocol):
    """What the loop asks of the run's data and folder (`trainer.run` answers)."""

    def batches(self, state: TrainState) -> Iterator[Batch]:
        """This rank's micro batches from `state` on."""

    def rollback(self) -> TrainState | None:
        """Fills weights and optimizer from the last whole checkpoint; its progress, or None where there is none."""

    def name_suspects(self, step: int, numbers: list[int]) -> str:
        """The text behind these samples, in words; all of them are written into the run folder."""

    def usage(self, state: TrainState) -> list[dict]:
        """Tokens and epochs that each source has given: `name`, `tokens`, `epochs`."""

    def prune(self, newest: int) -> None:
        """Deletes the checkpoints that retention lets go; that of step `newest` is known to be whole."""


@dataclass(frozen=True)
class PlannedStep:
    """The step that comes next."""

    batch_size: int
    num_microbatches: int
    lr: float


class Trainer:
    """Everything a run needs, built elsewhere (`trainer.run`) and handed over by name."""

    def __init__(
        self,
        *,
        train: TrainConfig,
        sessions: Sessions,
        optimizer_config: OptimizerConfig,
        checkpoint: CheckpointConfig,
        resilience: ResilienceConfig,
        context: ParallelContext,
        runner: StepRunner,
        optimizer,
        validator: Validator,
        observer: Observer,
        saver: Saver,
        leave: LeaveRequests,
        stragglers: Stragglers,
        profiler: Profiler,
        garbage: GarbageCollection,
        files: RunFiles,
        beat: Callable[[str], None],
        state: TrainState,
        has_dropout: bool,
    ):
        self.train = train
        self.sessions = sessions
        self.weight_decay = optimizer_config.weight_decay
        self.checkpoint = checkpoint
        self.resilience = resilience
        self.context = context
        self.runner = runner
        self.optimizer = optimizer
        self.validator = validator
        self.observer = observer
        self.saver = saver
        self.leave = leave
        self.stragglers = stragglers
        self.profiler = profiler
        self.garbage = garbage
        self.files = files
        self.beat = beat
        self.state = state
        self.has_dropout = has_dropout
        self.detector = AnomalyDetector(resilience)
        self.batches = files.batches(state)
        self.tokens_before = state.consumed_tokens
        self.saved_step = state.step
        self.first_step = state.step
        self.leaving = STAY

    def fit(self) -> None:
        """Trains from `state` to the token budget (or train.max_steps) and leaves a checkpoint there."""
        self.maybe_leave_at_start()
        self.maybe_validate_at_start()
        while self.should_continue():
            self.maybe_enter_session()
            with self.profiler.step(self.state.step + 1):
                self.step()
            self.maybe_validate()
            self.maybe_save()
            self.stragglers.maybe_report(self.state.step)
            self.garbage.maybe_collect(self.state.step)
        self.finish()

    def should_continue(self) -> bool:
        limit = self.train.max_steps
        unfinished = self.state.consumed_samples < self.sessions.last.end_sample
        return unfinished and (limit is None or self.state.step < limit) and self.leaving == STAY

    def maybe_enter_session(self) -> None:
        """At a session's first step: takes over what the session wants of the one before, and says so."""
        session = self.sessions.at(self.state.consumed_samples)
        if session.name == self.state.session:
            return
        if session.fresh_optimizer and self.state.session is not None:
            forget_moments(self.optimizer)
        self.state.session = session.name
        self.detector = AnomalyDetector(self.resilience)  # another mixture has another level of loss
        if session.name:
            self.observer.event(
                "session",
                step=self.state.step,
                session=session.name,
                first_token=session.first_token,
                end_token=session.end_token,
            )

    def step(self) -> None:
        """One optimizer update: computed, judged, applied, counted and told."""
        start = time.perf_counter()
        self.tokens_before = self.state.consumed_tokens
        planned = self.plan_step()
        self.beat("read data")
        batches = [next(self.batches) for _ in range(planned.num_microbatches)] if self.runner.needs_data else []
        result = self.compute(planned, batches)
        verdict = self.agree(result, time.perf_counter() - start)
        if verdict != FINE:
            result = self.handle_bad(planned, batches, result, verdict)
            if result is None:
                return
        updated = self.runner.apply(self.optimizer, result, lr=planned.lr, weight_decay=self.weight_decay)
        self.state.advance(planned.batch_size, self.runner.seq_length)
        if updated:
            self.detector.accept(result.lm_loss, result.grad_norm)
        self.tell(planned, result, updated, time.perf_counter() - start)

    def plan_step(self) -> PlannedStep:
        size = global_batch_size_at(self.train.global_batch_size, self.train.batch_rampup, self.tokens_before)
        return PlannedStep(
            batch_size=size,
            num_microbatches=size // (self.train.micro_batch_size * self.context.layout.dp_size),
            lr=self.sessions.at(self.state.consumed_samples).lr_at(self.tokens_before),
        )

    def compute(self, planned: PlannedStep, batches: list[Batch]) -> StepResult:
        if self.has_dropout:
            self.context.seed_step(self.train.seed, self.state.step)
        return self.runner.compute(self.optimizer, batches, num_microbatches=planned.num_microbatches)

    def agree(self, result: StepResult, seconds: float) -> int:
        """All ranks' verdict on the step's numbers, and whether any was asked to leave: one small all-reduce."""
        self.beat("agree")
        self.stragglers.add(seconds - self.runner.sync_seconds)
        verdict, self.leaving = self.context.agree([self.judge(result), self.leave.level])
        return verdict

    def judge(self, result: StepResult) -> int:
        """This rank's verdict."""
        return self.detector.judge(result.lm_loss, result.grad_norm).kind

    def handle_bad(
        self, planned: PlannedStep, batches: list[Batch], result: StepResult, verdict: int
    ) -> StepResult | None:
        """What the recipe wants done with a bad step; a result to apply where running it again gave good numbers."""
        reason = self.detector.judge(result.lm_loss, result.grad_norm).reason or "another rank found its numbers bad"
        numbers = self.state.plan_numbers(self.state.consumed_samples, planned.batch_size)
        suspects = self.files.name_suspects(self.state.step + 1, numbers)
        cause = "the step was not run again (resilience.rerun is off)"
        if self.resilience.rerun:
            again = self.compute(planned, batches)
            if self.context.agree([self.judge(again)]) == [FINE]:
                cause = "run again it was fine: a passing hardware fault"
                self.note_bad(reason, cause, suspects, "applied the second run")
                return again
            same = (again.lm_loss, again.grad_norm) == (result.lm_loss, result.grad_norm)
            both_nan = math.isnan(again.lm_loss) and math.isnan(result.lm_loss)
            cause = "run again it gave the same: the data or the model" if same or both_nan else "run again it differed"
        policy = self.resilience.on_nonfinite if verdict == NONFINITE else self.resilience.on_spike
        self.note_bad(reason, cause, suspects, policy)
        self.state.bad_steps += 1
        if policy == "stop" or self.state.bad_steps > self.resilience.max_bad_steps:
            self.stop(reason, cause, suspects, policy)
        if policy == "rollback":
            self.roll_back(numbers, reason)
        else:
            self.state.advance(planned.batch_size, self.runner.seq_length)
        return None

    def note_bad(self, reason: str, cause: str, suspects: str, action: str) -> None:
        step = self.state.step + 1
        self.observer.warn(f"step {step}: {reason}; {cause}; {action}; its samples: {suspects}")
        self.observer.event("bad_step", step=step, reason=reason, cause=cause, action=action, samples=suspects)

    def stop(self, reason: str, cause: str, suspects: str, policy: str) -> None:
        limit = self.resilience.max_bad_steps
        many = (
            f" for the {self.state.bad_steps}th time (resilience.max_bad_steps = {limit})" if policy != "stop" else ""
        )
        self.wait_for_saves()
        raise RunError(
            f"step {self.state.step + 1}{many}: {reason}; {cause}\n  its samples: {suspects}\n"
            f"  fix: the last checkpoint (step {self.saved_step}) is good; go on from it with a lower schedule.lr, or "
            f"set resilience.on_nonfinite or on_spike to skip or rollback"
        )

    def roll_back(self, numbers: list[int], reason: str) -> None:
        """Back to the last whole checkpoint, and from there over the offending samples."""
        self.wait_for_saves()
        self.beat("roll back")
        before, failed = self.state, self.state.step + 1
        saved = self.files.rollback()
        if saved is None:
            raise RunError(
                f"step {failed}: {reason}; there is no checkpoint to go back to\n"
                f"  fix: set checkpoint.interval, or resilience.on_nonfinite and on_spike to skip or stop"
            )
        self.state = saved
        self.state.bad_steps = before.bad_steps
        self.state.skipped = before.skipped
        self.state.skip(numbers)
        self.tokens_before, self.saved_step = saved.consumed_tokens, saved.step
        self.batches = self.files.batches(self.state)
        self.observer.event("resume", step=saved.step, reason=f"rolled back from step {failed}: {reason}")
        self.observer.warn(f"rolled back to step {saved.step}; {len(numbers)} samples are stepped over")

    def tell(self, planned: PlannedStep, result: StepResult, updated: bool, seconds: float) -> None:
        tokens = self.state.consumed_tokens - self.tokens_before
        self.observer.step(
            self.state,
            result,
            updated=updated,
            lr=planned.lr,
            batch_size=planned.batch_size,
            tokens=tokens,
            seconds=seconds,
        )

    def maybe_leave_at_start(self) -> None:
        """A rank may have been asked while it started up."""
        (self.leaving,) = self.context.agree([self.leave.level])

    def maybe_validate_at_start(self) -> None:
        if self.state.session is None and self.validator.config.at_start and self.leaving == STAY:
            self.run_validation()

    def maybe_validate(self) -> None:
        """At the interval, and with a session's last step."""
        due = self.validator.due(self.state.step, self.tokens_before, self.state.consumed_tokens)
        is_new = self.state.step != self.state.validated_step  # a rollback comes back to a step that was validated
        if self.leaving == STAY and is_new and (due or self.session_ended()):
            self.run_validation()

    def session_ended(self) -> bool:
        before = self.tokens_before // self.runner.seq_length
        return self.sessions.ended(before, self.state.consumed_samples)

    def tell_usage(self) -> None:
        self.observer.event("sources", step=self.state.step, sources=self.files.usage(self.state))

    def run_validation(self) -> None:
        self.beat("validate")
        losses = self.validator.evaluate(hurried=lambda: self.context.agree([self.leave.level]) == [HURRY])
        self.state.validated_step = self.state.step
        if losses:
            self.observer.validation(self.state, losses)

    def maybe_save(self) -> None:
        """Starts a save when it is time; otherwise moves the one in flight on."""
        if self.is_time_to_save():
            self.beat("save")
            self.note_saves(self.saver.start(self.state.to_dict()))
            self.saved_step = self.state.step
            self.tell_usage()
        else:
            self.note_saves(self.saver.poll())

    def is_time_to_save(self) -> bool:
        """At the interval, with a session's last step, and with the step that reaches a release mark."""
        before, now, interval = self.tokens_before, self.state.consumed_tokens, self.checkpoint.interval
        marked = any(before < mark <= now for mark in self.checkpoint.release_marks)
        due = interval is not None and interval.due(self.state.step, before, now)
        is_new = self.state.step != self.saved_step  # a rollback comes back to a step that was saved
        return is_new and (marked or due or self.session_ended())

    def note_saves(self, ended: list[Saved], may_fail: bool = True) -> None:
        for save in ended:
            if save.failure is None:
                self.observer.saved(save)
                self.files.prune(save.step)
            elif may_fail:
                self.observer.event("checkpoint_failed", step=save.step, reason=save.failure)
                self.observer.warn(f"checkpoint of step {save.step} failed, training goes on: {save.failure}")
            else:
                raise CheckpointError(save.failure)

    def wait_for_saves(self) -> None:
        self.beat("save")
        self.note_saves(self.saver.finish())

    def finish(self) -> None:
        """The run's end: its losses and its checkpoint, unless this step already has them."""
        if self.state.validated_step != self.state.step and self.leaving == STAY:
            self.run_validation()
        self.wait_for_saves()
        if not self.is_saved() and (self.leaving == STAY or self.state.step > self.first_step):
            self.beat("save")
            self.note_saves(self.saver.start(self.state.to_dict()), may_fail=False)
            self.note_saves(self.saver.finish(), may_fail=False)
        self.tell_usage()
        self.observer.event("end" if self.leaving == STAY else "left", step=self.state.step)
        if self.leaving != STAY:
            hurried = " (in a hurry)" if self.leaving == HURRY else ""
            reasons = [each for each in self.context.gather_objects(self.leave.reason) if each]
            kept = "everything is saved" if self.is_saved() else "nothing was done yet"
            raise LeftEarly(
                f"left{hurried} after step {self.state.step}: {reasons[0]}; {kept}, the same command goes on from there"
            )

    def is_saved(self) -> bool:
        """Whether this step's checkpoint is whole: an interval save may have failed."""
        return self.saver.last_step == self.state.step
