"""What rank 0 tells of the run: log lines, progress bar, metrics.jsonl, TensorBoard, W&B. Others tell nothing."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from megatron_sky.checkpoint.saver import SaveOutcome
from megatron_sky.config import Config
from megatron_sky.distributed import device
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.log import get_logger
from megatron_sky.model.flops import flops_per_token
from megatron_sky.monitor.console import ProgressDisplay, train_line, validation_line
from megatron_sky.monitor.metrics import MetricsWriter, TrainRecord, ValidationRecord
from megatron_sky.monitor.throughput import Throughput, peak_tflops
from megatron_sky.trainer.bad_steps import BadStep, Decision
from megatron_sky.trainer.resume import Remaining
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.step import StepResult
from megatron_sky.trainer.stragglers import Slow
from megatron_sky.trainer.validation import SetLoss

log = get_logger(__name__)


class Observer:
    """Told of everything that happens; on ranks other than 0 every call returns at once."""

    def __init__(
        self,
        config: Config,
        *,
        context: ParallelContext,
        state: TrainState,
        remaining: Remaining,
        run_dir: Path,
        token_ratios: Mapping[str, float],
    ):
        """`token_ratios`: by validation set, own tokens / tokens of the reference tokenizer."""
        self._context, self._active = context, context.rank == 0
        self._open = contextlib.ExitStack()
        if not self._active:
            return
        self._token_ratios = token_ratios
        self._seconds = {"train": 0.0, "validation": 0.0}
        self._seconds_before = 0.0  # of validation before the first step
        self._log_interval = config.monitor.log_interval
        self._total_steps, self._total_tokens = state.step + remaining.steps, remaining.end_token
        peak = config.monitor.peak_tflops or peak_tflops(device.name(), config.precision.dtype)
        self._throughput = Throughput(
            flops_per_token=flops_per_token(config.model, config.lora),
            world_size=context.world_size,
            peak_tflops=peak,
        )
        self._writer = self._open.enter_context(
            MetricsWriter(
                run_dir,
                tensorboard=config.monitor.tensorboard,
                wandb=config.monitor.wandb,
                config=config.model_dump(mode="json"),
            )
        )
        self._bar = self._open.enter_context(
            ProgressDisplay(
                total_tokens=self._total_tokens, total_steps=self._total_steps, consumed_tokens=state.consumed_tokens
            )
        )

    def __enter__(self) -> "Observer":
        return self

    def __exit__(self, *exc_info) -> None:
        self._open.__exit__(*exc_info)

    def event(self, name: str, **fields) -> None:
        """Anything worth a line in metrics.jsonl that is neither a step nor a loss."""
        if self._active:
            self._writer.event(name, **fields)

    def run_started(self, step: int, *, is_resumed: bool) -> None:
        """This job begins after `step`."""
        if self._active:
            layout, world_size = str(self._context.layout), self._context.world_size
            self.event("resume" if is_resumed else "start", step=step, layout=layout, world_size=world_size)

    def step(
        self,
        state: TrainState,
        result: StepResult,
        *,
        updated: bool,
        lr: float,
        batch_size: int,
        tokens: int,
        seconds: float,
    ) -> None:
        """A step was done: `state` already counts it."""
        if not self._active:
            return
        self._seconds["train"] += seconds
        speed = self._throughput.step(tokens=tokens, seconds=seconds)
        left = self._seconds_left(state)
        record = TrainRecord(
            step=state.step,
            consumed_samples=state.consumed_samples,
            consumed_tokens=state.consumed_tokens,
            lm_loss=result.lm_loss,
            lr=lr,
            grad_norm=float("nan") if result.grad_norm is None else result.grad_norm,
            global_batch_size=batch_size,
            step_seconds=seconds,
            preference=result.preference,
            **asdict(speed),
        )
        self._writer.train(record)
        self._bar.update(record, seconds_left=left)
        if state.step % self._log_interval == 0 or state.step == self._total_steps:
            log.info(train_line(record, total_steps=self._total_steps, seconds_left=left))
        if not updated:
            log.warning(
                "step %d: gradients overflowed fp16; the update was skipped, the loss scale is lowered", state.step
            )

    def _seconds_left(self, state: TrainState) -> float | None:
        """Of training, and of validations in the proportion that they have had between steps."""
        left = self._throughput.seconds_left(max(0, self._total_tokens - state.consumed_tokens))
        between = self._seconds["validation"] - self._seconds_before
        return None if left is None else left * (1 + between / self._seconds["train"])

    def warn(self, text: str) -> None:
        """A warning, once for the whole job."""
        if self._active:
            log.warning("%s", text)

    def slow_ranks(self, slow: list[Slow]) -> None:
        """Ranks that the others wait for."""
        for slow_rank in slow[:4]:
            values = asdict(slow_rank)
            self.event("slow_rank", **values)
            self.warn(
                f"rank {slow_rank.rank} on {slow_rank.host} is slow: {slow_rank.work_seconds:.2f} s of work a step, "
                f"the others' median is {slow_rank.median_seconds:.2f} s"
            )

    def save_ended(self, save: SaveOutcome) -> None:
        """A checkpoint is whole, or could not be saved."""
        if save.failure is not None:
            self.event("checkpoint_failed", step=save.step, reason=save.failure)
            self.warn(f"checkpoint of step {save.step} failed, training goes on: {save.failure}")
            return
        self.event("checkpoint", step=save.step, path=f"checkpoints/{save.folder.name}", seconds=save.seconds)
        if self._active:
            log.info("checkpoint %s saved in %.1f s", save.folder, save.seconds)

    def bad_step(self, bad: BadStep, decision: Decision, action: str) -> None:
        """A step's numbers were bad; `action`: what was done about it."""
        self.warn(f"step {bad.step}: {decision.reason}; {decision.cause}; {action}; its samples: {decision.suspects}")
        self.event(
            "bad_step",
            step=bad.step,
            reason=decision.reason,
            cause=decision.cause,
            action=action,
            samples=decision.suspects,
        )

    def validation(self, state: TrainState, losses: dict[str, SetLoss]) -> None:
        """Every set's loss at this point."""
        if not self._active:
            return
        for name, loss in losses.items():
            self._seconds["validation"] += loss.seconds
            ratio = self._token_ratios.get(name)
            self._writer.validation(
                ValidationRecord(
                    step=state.step,
                    consumed_tokens=state.consumed_tokens,
                    set=name,
                    lm_loss=loss.lm_loss,
                    tokens=loss.tokens,
                    seconds=loss.seconds,
                    normalised_loss=None if ratio is None else loss.lm_loss * ratio,
                    preference=loss.preference,
                )
            )
        if not self._seconds["train"]:
            self._seconds_before = self._seconds["validation"]
        line = validation_line({name: loss.lm_loss for name, loss in losses.items()}, step=state.step)
        share = self._seconds["validation"] / sum(self._seconds.values())
        log.info("%s%s", line, f" | {share:.1%} of the time so far" if self._seconds["train"] else "")
