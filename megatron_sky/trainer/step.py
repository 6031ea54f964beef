"""One step: forward and backward over all micro batches, and the step's numbers.

The loss is the mean over the step's unmasked tokens of all ranks, so it does not depend on the layout. The update is
apart (`apply`), so that the loop can judge a step's numbers before it lets them into the weights.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from megatron_sky.config.schema import DpoConfig, OptimizerConfig
from megatron_sky.data.loader import Batch
from megatron_sky.distributed import compat, device
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.model.backends.te import packed_documents
from megatron_sky.model.build import BuiltModel
from megatron_sky.monitor.metrics import Preference
from megatron_sky.optim import update
from megatron_sky.trainer.pair_loss import ANSWERS, SUMS, PairLoss, preference_of

if TYPE_CHECKING:
    from megatron.core.optimizer import MegatronOptimizer


@dataclass(frozen=True)
class StepResult:
    """A step's numbers. `grad_norm` None: the gradients overflowed fp16's loss scale, and can't be applied.

    `preference`: of a step over pairs of answers, whose mean loss `lm_loss` then is.
    """

    lm_loss: float
    grad_norm: float | None
    preference: Preference | None = None


@dataclass(frozen=True)
class Evaluated:
    """The loss summed over the `count` tokens, or pairs of answers, of all ranks' batches."""

    loss_sum: float
    count: int
    preference: Preference | None = None


class StepRunner:
    """Runs training steps and validation passes of one model in one layout."""

    def __init__(
        self,
        model: BuiltModel,
        *,
        optimizer: "MegatronOptimizer",
        numbers: OptimizerConfig,
        context: ParallelContext,
        seq_length: int,
        micro_batch_size: int,
        masks_documents: bool,
        dropout_seed: int | None,
        beat: Callable[[str], None],
        dpo: DpoConfig | None = None,
    ):
        """`dropout_seed`: the run's; None where the model draws no random numbers. `beat`
        tells the watchdog that a micro batch began. `dpo`: batches are pairs of answers."""
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.model = model
        self.optimizer = optimizer
        self.context = context
        self.seq_length = seq_length
        self.micro_batch_size = micro_batch_size
        self.masks_documents = masks_documents
        self._numbers, self._dropout_seed, self._beat, self._dpo = numbers, dropout_seed, beat, dpo
        self._run_schedule = get_forward_backward_func()
        self.sync_seconds = 0.0  # of the last step: reducing gradients, and waiting for the ranks that were not there
        self._finalize = model.config.finalize_model_grads_func
        model.config.finalize_model_grads_func = self._timed_finalize

    @property
    def needs_data(self) -> bool:
        """The first stage reads tokens, the last labels, and all of them where documents end."""
        return self.context.is_first_stage or self.context.is_last_stage or self.masks_documents

    def compute(self, batches: list[Batch], *, num_microbatches: int, step: int) -> StepResult:
        """Forward and backward over a step's micro batches (a middle stage needs none); nothing is updated.

        `step`: updates done before, which seeds dropout: the same step computed again draws the same.
        """
        if self._dropout_seed is not None:
            self.context.seed_step(self._dropout_seed, step)
        for chunk in self.model.chunks:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        with device.named_range("forward and backward"):
            reports = self._schedule(batches, num_microbatches, self.micro_batch_size, self.optimizer.scale_loss)
        grad_norm, sums = update.measure(self.optimizer, self._sums(reports))
        totals = _evaluated(sums)
        loss = totals.loss_sum / totals.count if totals.count else float("nan")
        return StepResult(lm_loss=loss, grad_norm=grad_norm, preference=totals.preference)

    def apply(self, result: StepResult, *, lr: float) -> bool:
        """Lets the computed gradients into the weights; whether they were. An overflow only lowers the loss scale."""
        update.set_numbers(self.optimizer, self._numbers, lr)
        with device.named_range("optimizer"):
            updated = result.grad_norm is not None and update.apply(self.optimizer, result.grad_norm)
        if updated and self.model.fp8 is not None:
            self.model.fp8.end_step(self.context.stage_group)
        return updated

    def forget_moments(self) -> None:
        """The optimizer goes on as a new one would, from the weights as they are."""
        update.forget_moments(self.optimizer)

    def evaluate(self, batches: Iterable[Batch], *, num_microbatches: int, micro_batch_size: int) -> Evaluated:
        """The loss over all ranks' batches."""
        return _evaluated(self._sums(self._forward_only(batches, num_microbatches, micro_batch_size)).tolist())

    def answer_log_probabilities(
        self, batches: Iterable[Batch], *, num_microbatches: int, micro_batch_size: int
    ) -> list[np.ndarray]:
        """Of each micro batch of pairs float32 `[answers]`, on the ranks of the last stage; none on others."""
        reports = self._forward_only(batches, num_microbatches, micro_batch_size)
        return [report[ANSWERS].cpu().numpy() for report in reports]

    @torch.no_grad()
    def _forward_only(self, batches: Iterable[Batch], num_microbatches: int, micro_batch_size: int) -> list[dict]:
        for chunk in self.model.chunks:
            chunk.eval()
        with device.named_range("validation"):
            reports = self._schedule(batches, num_microbatches, micro_batch_size, None)
        for chunk in self.model.chunks:
            chunk.train()
        return reports

    def _sums(self, reports: list[dict]) -> torch.Tensor:
        """The reports' sums over micro batches and ranks, in float64 on this rank's device."""
        if self.context.is_last_stage:
            sums = torch.stack([report[SUMS] for report in reports]).double().sum(0)
        else:
            sums = torch.zeros(2 if self._dpo is None else 5, dtype=torch.float64, device=self.context.device)
        return self.context.total_from_last_stage(sums)

    def _timed_finalize(self, chunks: list, num_tokens: torch.Tensor | None, **kwargs) -> None:
        """Gradients summed over the ranks, and divided by the step's tokens; megatron-core 0.16 would read these."""
        start = time.perf_counter()
        with device.named_range("gradient reduction"):
            self._finalize(chunks, None, **kwargs)
            if num_tokens is not None:
                scale = 1.0 / self.context.total_from_last_stage(num_tokens).clamp(min=1)
                for chunk in chunks:
                    chunk.scale_gradients(scale)
        self.sync_seconds = time.perf_counter() - start

    def _schedule(
        self, batches: Iterable[Batch], num_microbatches: int, micro_batch_size: int, scale_loss
    ) -> list[dict]:
        """Runs the pipeline schedule; what the loss function reports of each micro batch, on the last stage."""
        chunks = self.model.chunks
        if self.model.fp8 is not None:
            self.model.fp8.begin_pass()
        stream = iter(batches) if self.needs_data else itertools.repeat(None, num_microbatches)
        streams = list(itertools.tee(stream, len(chunks)))  # each chunk meets each micro batch
        self.model.config.grad_scale_func = scale_loss
        return self._run_schedule(
            forward_step_func=self._forward,
            data_iterator=streams if len(chunks) > 1 else streams[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=num_microbatches,
            seq_length=self.seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=scale_loss is None,
        )

    def _forward(self, batches: Iterator[Batch | None], chunk):
        self._beat("forward and backward")
        batch = next(batches)
        if batch is None:
            return chunk(None, None, None), None  # a middle stage: its input comes from the stage before
        part = self._on_this_rank(batch)
        documents = self._documents(batch)
        losses = chunk(part["tokens"], part["position_ids"], labels=part["labels"], **documents)
        if self._dpo is None:
            return losses, partial(_sum_loss, part["loss_mask"])
        return losses, self._pair_loss(batch, part["loss_mask"], self._dpo.beta)

    def _pair_loss(self, batch: Batch, loss_mask: torch.Tensor, beta: float) -> PairLoss:
        assert batch.answer_ids is not None and batch.reference is not None, "preflight found pairs"
        target = self.context.device
        return PairLoss(loss_mask, batch.answer_ids.to(target), batch.reference.to(target), beta)

    def _documents(self, batch: Batch) -> dict:
        """What keeps attention within documents, in the backend's form: their bounds."""
        if batch.cu_seqlens is None:
            return {"attention_mask": None}
        if self.model.backend == "te":
            bounds = packed_documents(batch.cu_seqlens, self.context.device)
            return {"attention_mask": None, "packed_seq_params": bounds}
        return {"attention_mask": batch.cu_seqlens.to(self.context.device, non_blocking=True)}

    def _on_this_rank(self, batch: Batch) -> dict:
        """The batch on this rank's device, cut along the sequence for context parallelism."""
        target = self.context.device
        part = {
            name: getattr(batch, name).to(target, non_blocking=True)
            for name in ("tokens", "labels", "loss_mask", "position_ids")
        }
        return compat.batch_on_this_cp_rank(part, self.context.cp_group) if self.context.layout.cp_size > 1 else part


def _evaluated(totals: list[float]) -> Evaluated:
    return Evaluated(totals[0], round(totals[1]), preference_of(totals))


def _sum_loss(loss_mask, losses):
    """megatron-core's loss function: the sum, the token count that divides it in the end, and what to report."""
    loss = (losses.float() * loss_mask).sum()
    tokens = loss_mask.sum()
    return loss, tokens.to(torch.int), {SUMS: torch.stack([loss.detach(), tokens])}
