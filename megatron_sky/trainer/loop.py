"""The training loop. `fit` is the whole story; each line of it decides for itself whether this step is its turn."""

import math
import time
from collections.abc import Callable, Iterator

from megatron_sky.config.schema import CheckpointConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from megatron_sky.data.loader import Batch
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import RunError
from megatron_sky.optim.schedule import global_batch_size_at, lr_at
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.step import StepResult, StepRunner
from megatron_sky.trainer.validation import Validator


class Trainer:
    """Everything a run needs, built elsewhere (`trainer.build`) and handed over by name."""

    def __init__(
        self,
        *,
        train: TrainConfig,
        schedule: ScheduleConfig,
        optimizer_config: OptimizerConfig,
        checkpoint: CheckpointConfig,
        context: ParallelContext,
        runner: StepRunner,
        optimizer,
        batches: Iterator[Batch],
        validator: Validator,
        observer: Observer,
        state: TrainState,
        save: Callable[[TrainState], None],
        has_dropout: bool,
    ):
        self.train = train
        self.schedule = schedule
        self.weight_decay = optimizer_config.weight_decay
        self.checkpoint = checkpoint
        self.context = context
        self.runner = runner
        self.optimizer = optimizer
        self.batches = batches
        self.validator = validator
        self.observer = observer
        self.state = state
        self.save = save
        self.has_dropout = has_dropout
        self.tokens_before = state.consumed_tokens
        self.saved_step = state.step
        self.validated_step = -1

    def fit(self) -> None:
        """Trains from `state` to the token budget (or train.max_steps) and leaves a checkpoint there."""
        self.maybe_validate_at_start()
        while self.should_continue():
            self.step()
            self.maybe_validate()
            self.maybe_save()
        self.finish()

    def should_continue(self) -> bool:
        limit = self.train.max_steps
        return self.state.consumed_tokens < self.train.tokens and (limit is None or self.state.step < limit)

    def step(self) -> None:
        """One optimizer update, counted and told."""
        start = time.perf_counter()
        self.tokens_before = self.state.consumed_tokens
        size = global_batch_size_at(self.train.global_batch_size, self.train.batch_rampup, self.tokens_before)
        lr = lr_at(self.schedule, self.tokens_before, self.train.tokens)
        if self.has_dropout:
            self.context.seed_step(self.train.seed, self.state.step)
        result = self.runner.train(
            self.optimizer,
            self.batches,
            num_microbatches=size // (self.train.micro_batch_size * self.context.layout.dp_size),
            lr=lr,
            weight_decay=self.weight_decay,
        )
        self.state.advance(size, self.runner.seq_length)
        self.check_finite(result)
        tokens, seconds = self.state.consumed_tokens - self.tokens_before, time.perf_counter() - start
        self.observer.step(self.state, result, lr=lr, batch_size=size, tokens=tokens, seconds=seconds)

    def check_finite(self, result: StepResult) -> None:
        """A NaN is never trained on: the run stops, and the checkpoint before it stays the latest."""
        if result.updated and not (math.isfinite(result.lm_loss) and math.isfinite(result.grad_norm)):
            raise RunError(
                f"step {self.state.step}: lm_loss = {result.lm_loss}, grad_norm = {result.grad_norm}: not finite\n"
                f"  mend: continue from the last checkpoint (step {self.saved_step}) with a lower schedule.lr or a "
                f"longer warm-up, or look at the data of samples {self.state.consumed_samples - 1} and before"
            )

    def maybe_validate_at_start(self) -> None:
        if self.state.step == 0 and self.validator.config.at_start:
            self.run_validation()

    def maybe_validate(self) -> None:
        if self.validator.due(self.state.step, self.tokens_before, self.state.consumed_tokens):
            self.run_validation()

    def run_validation(self) -> None:
        losses = self.validator.evaluate()
        self.validated_step = self.state.step
        if losses:
            self.observer.validation(self.state, losses)

    def maybe_save(self) -> None:
        interval = self.checkpoint.interval
        if interval is not None and interval.due(self.state.step, self.tokens_before, self.state.consumed_tokens):
            self.run_save()

    def run_save(self) -> None:
        self.save(self.state)
        self.saved_step = self.state.step

    def finish(self) -> None:
        """The run's end: its losses and its checkpoint, unless this step already has them."""
        if self.validated_step != self.state.step:
            self.run_validation()
        if self.saved_step != self.state.step:
            self.run_save()
        self.observer.event("end", step=self.state.step)
