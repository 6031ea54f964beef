"""The training loop. `fit` is the whole story; each line of it decides for itself whether this step is its turn."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from megatron_sky.checkpoint.manager import CheckpointManager
from megatron_sky.config.schema import TrainConfig
from megatron_sky.data.loader import Batch
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import LeftEarly
from megatron_sky.optim.schedule import global_batch_size_at
from megatron_sky.trainer.anomaly import FINE
from megatron_sky.trainer.bad_steps import BadStep, BadSteps, nowhere_to_roll_back
from megatron_sky.trainer.best import Best
from megatron_sky.trainer.files import RunFiles
from megatron_sky.trainer.garbage import GarbageCollection
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.profiler import Profiler
from megatron_sky.trainer.sessions import Sessions
from megatron_sky.trainer.signals import RUN, STOP_NOW, StopRequests
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.step import StepResult, StepRunner
from megatron_sky.trainer.stragglers import Stragglers
from megatron_sky.trainer.validation import Validator


@dataclass(frozen=True)
class PlannedStep:
    """The step that comes next."""

    batch_size: int
    num_microbatches: int
    lr: float


@dataclass(kw_only=True)
class Trainer:
    """Everything a run needs, built elsewhere (`trainer.run`) and handed over by name.

    `beat` tells the watchdog what this rank does now; `check_folder` raises where another job has taken the run folder.
    `stopping` is what all ranks were asked, at most: RUN, STOP or STOP_NOW; `tokens_before` were consumed before the
    step in hand.
    """

    train: TrainConfig
    sessions: Sessions
    context: ParallelContext
    state: TrainState
    files: RunFiles
    runner: StepRunner
    validator: Validator
    checkpoints: CheckpointManager
    bad_steps: BadSteps
    observer: Observer
    stop_requests: StopRequests
    check_folder: Callable[[], None]
    stragglers: Stragglers
    profiler: Profiler
    garbage: GarbageCollection
    beat: Callable[[str], None]
    best: Best | None = None

    batches: Iterator[Batch] = field(init=False)
    tokens_before: int = field(init=False)
    first_step: int = field(init=False)
    stopping: int = field(init=False, default=RUN)

    def __post_init__(self):
        self.batches = self.files.batches(self.state)
        self.tokens_before = self.state.consumed_tokens
        self.first_step = self.state.step

    def fit(self) -> None:
        """Trains from `state` to the token budget (or train.max_steps) and leaves a checkpoint there."""
        self.maybe_stop_at_start()
        self.maybe_validate_at_start()
        while self.should_continue():
            self.check_folder()
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
        return unfinished and (limit is None or self.state.step < limit) and self.stopping == RUN

    def maybe_enter_session(self) -> None:
        """At a session's first step: takes over what the session wants of the one before, and says so."""
        session = self.sessions.at(self.state.consumed_samples)
        if session.name == self.state.session:
            return
        if session.fresh_optimizer and self.state.session is not None:
            self.runner.forget_moments()
        self.state.session = session.name
        self.bad_steps.enter_session()
        if session.name:
            self.observer.event(
                "session",
                step=self.state.step,
                session=session.name,
                first_token=session.first_token,
                end_token=session.end_token,
            )

    def step(self) -> None:
        """One optimizer update: computed, judged, applied, counted and reported."""
        start = time.perf_counter()
        self.tokens_before = self.state.consumed_tokens
        planned = self.plan_step()
        self.beat("read data")
        batches = [next(self.batches) for _ in range(planned.num_microbatches)] if self.runner.needs_data else []
        computed = self.compute(planned, batches)
        verdict = self.agree(computed, time.perf_counter() - start)
        result = computed if verdict == FINE else self.handle_bad(planned, batches, computed, verdict)
        if result is None:
            return
        updated = self.runner.apply(result, lr=planned.lr)
        self.state.advance(planned.batch_size, self.runner.seq_length)
        if updated:
            self.bad_steps.accept(result)
        self.report(planned, result, updated, time.perf_counter() - start)

    def plan_step(self) -> PlannedStep:
        size = global_batch_size_at(self.train.global_batch_size, self.train.batch_rampup, self.tokens_before)
        return PlannedStep(
            batch_size=size,
            num_microbatches=size // (self.train.micro_batch_size * self.context.layout.dp_size),
            lr=self.sessions.at(self.state.consumed_samples).lr_at(self.tokens_before),
        )

    def compute(self, planned: PlannedStep, batches: list[Batch]) -> StepResult:
        return self.runner.compute(batches, num_microbatches=planned.num_microbatches, step=self.state.step)

    def agree(self, result: StepResult, seconds: float) -> int:
        """All ranks' verdict on the step's numbers, and whether any was asked to stop: one small all-reduce."""
        self.beat("agree")
        self.stragglers.add(seconds - self.runner.sync_seconds)
        verdict, self.stopping = self.context.agree([self.bad_steps.judge(result), self.stop_requests.level])
        return verdict

    def handle_bad(
        self, planned: PlannedStep, batches: list[Batch], result: StepResult, verdict: int
    ) -> StepResult | None:
        """What the recipe has done with a bad step; a result to apply where running it again gave good numbers."""
        samples = self.state.plan_numbers(self.state.consumed_samples, planned.batch_size)
        bad = BadStep(self.state.step + 1, result, verdict, samples, earlier=self.state.bad_steps)
        decision = self.bad_steps.decide(bad, rerun=lambda: self.compute(planned, batches))
        if decision.action == "apply":
            return decision.result
        self.state.bad_steps += 1
        if decision.action == "stop":
            self.checkpoints.wait()
            raise self.bad_steps.stop_error(bad, decision, self.checkpoints.last_good_step)
        if decision.action == "rollback":
            self.roll_back(bad, decision.reason)
        else:
            self.state.advance(planned.batch_size, self.runner.seq_length)
        return None

    def roll_back(self, bad: BadStep, reason: str) -> None:
        """Back to the last good checkpoint, and from there over the offending samples."""
        before, checkpoint = self.state, self.checkpoints.roll_back()
        if checkpoint is None:
            raise nowhere_to_roll_back(bad, reason)
        self.state = self.files.continue_from(checkpoint)
        self.state.bad_steps = before.bad_steps
        self.state.skipped = before.skipped
        self.state.skip(bad.samples)
        self.tokens_before = self.state.consumed_tokens
        self.batches = self.files.batches(self.state)
        self.observer.event("resume", step=self.state.step, reason=f"rolled back from step {bad.step}: {reason}")
        self.observer.warn(f"rolled back to step {self.state.step}; {len(bad.samples)} samples are stepped over")

    def report(self, planned: PlannedStep, result: StepResult, updated: bool, seconds: float) -> None:
        self.observer.step(
            self.state,
            result,
            updated=updated,
            lr=planned.lr,
            batch_size=planned.batch_size,
            tokens=self.state.consumed_tokens - self.tokens_before,
            seconds=seconds,
        )

    def maybe_stop_at_start(self) -> None:
        """A rank may have been asked while it started up."""
        (self.stopping,) = self.context.agree([self.stop_requests.level])

    def maybe_validate_at_start(self) -> None:
        if self.state.session is None and self.validator.config.at_start and self.stopping == RUN:
            self.run_validation()

    def maybe_validate(self) -> None:
        """At the interval, and with a session's last step."""
        due = self.validator.due(self.state.step, self.tokens_before, self.state.consumed_tokens)
        is_new = self.state.step != self.state.validated_step  # a rollback comes back to a step that was validated
        if self.stopping == RUN and is_new and (due or self.session_ended()):
            self.run_validation()

    def session_ended(self) -> bool:
        before = self.tokens_before // self.runner.seq_length
        return self.sessions.ended(before, self.state.consumed_samples)

    def run_validation(self) -> None:
        self.beat("validate")
        losses = self.validator.evaluate(stops_now=lambda: self.context.agree([self.stop_requests.level]) == [STOP_NOW])
        self.state.validated_step = self.state.step
        if losses:
            self.observer.validation(self.state, losses)
        if self.best is not None:
            self.best.note(self.state, losses)

    def maybe_save(self) -> None:
        if self.checkpoints.maybe_save(self.state):
            self.report_usage()

    def report_usage(self) -> None:
        self.observer.event("sources", step=self.state.step, sources=self.files.usage(self.state))

    def finish(self) -> None:
        """The run's end: its losses and its checkpoint, unless this step already has them."""
        if self.state.validated_step != self.state.step and self.stopping == RUN:
            self.run_validation()
        self.check_folder()
        if self.stopping == RUN or self.state.step > self.first_step:
            self.checkpoints.save_at_end(self.state)
        self.report_usage()
        self.observer.event("end" if self.stopping == RUN else "left", step=self.state.step)
        if self.stopping != RUN:
            raise self.left_early()

    def left_early(self) -> LeftEarly:
        """Where and why the run stopped before its end. Collective."""
        hurried = " (in a hurry)" if self.stopping == STOP_NOW else ""
        reason = next(filter(None, self.context.gather_objects(self.stop_requests.reason)))
        saved = self.checkpoints.last_good_step == self.state.step
        kept = "everything is saved" if saved else "nothing was done yet"
        return LeftEarly(
            f"left{hurried} after step {self.state.step}: {reason}; {kept}, the same command goes on from there"
        )
