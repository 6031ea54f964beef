"""One step: forward and backward over all micro batches, update, and the step's numbers.

The loss is the mean over the step's unmasked tokens of all ranks, so it does not depend on the layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from megatron_sky.data.loader import Batch
from megatron_sky.distributed import compat
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.model.build import BuiltModel
from megatron_sky.optim.build import set_lr


@dataclass(frozen=True)
class StepResult:
    """What one update did. `updated` is False when fp16 loss scaling skipped it."""

    lm_loss: float
    grad_norm: float
    updated: bool


class StepRunner:
    """Runs training steps and validation passes of one model in one layout."""

    def __init__(self, model: BuiltModel, *, context: ParallelContext, seq_length: int, micro_batch_size: int):
        from megatron.core.pipeline_parallel import get_forward_backward_func

        self.model = model
        self.context = context
        self.seq_length = seq_length
        self.micro_batch_size = micro_batch_size
        self._run_schedule = get_forward_backward_func()

    @property
    def needs_data(self) -> bool:
        """Only the first stage (tokens) and the last (labels) read batches."""
        return self.context.is_first_stage or self.context.is_last_stage

    def train(self, optimizer, batches: Iterator[Batch], *, num_microbatches: int, lr: float, weight_decay: float):
        """One optimizer step over `num_microbatches` micro batches."""
        for chunk in self.model.chunks:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        sums = self._schedule(batches, num_microbatches, self.micro_batch_size, optimizer.scale_loss)
        set_lr(optimizer, lr, weight_decay)
        updated, grad_norm, _ = optimizer.step()
        loss_sum, tokens = self.context.total_from_last_stage(sums).tolist()
        return StepResult(
            lm_loss=loss_sum / tokens if tokens else float("nan"),
            grad_norm=float("nan") if grad_norm is None else float(grad_norm),
            updated=bool(updated),
        )

    @torch.no_grad()
    def evaluate(self, batches: Iterator[Batch], *, num_microbatches: int, micro_batch_size: int) -> tuple[float, int]:
        """(loss summed over tokens, tokens) of all ranks' batches."""
        for chunk in self.model.chunks:
            chunk.eval()
        sums = self._schedule(batches, num_microbatches, micro_batch_size, None)
        for chunk in self.model.chunks:
            chunk.train()
        loss_sum, tokens = self.context.total_from_last_stage(sums).tolist()
        return loss_sum, round(tokens)

    def _schedule(self, batches: Iterator[Batch], num_microbatches: int, micro_batch_size: int, scale_loss):
        """Runs the pipeline schedule; `[loss sum, tokens]` of this rank's batches (zeros before the last stage)."""
        chunks = self.model.chunks
        held = [next(batches) for _ in range(num_microbatches)] if self.needs_data else [None] * num_microbatches
        self.model.config.grad_scale_func = scale_loss
        reports = self._run_schedule(
            forward_step_func=self._forward,
            data_iterator=[iter(held) for _ in chunks] if len(chunks) > 1 else iter(held),
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=num_microbatches,
            seq_length=self.seq_length,
            micro_batch_size=micro_batch_size,
            forward_only=scale_loss is None,
        )
        if not self.context.is_last_stage:
            return torch.zeros(2, dtype=torch.float64, device=self.context.device)
        return torch.stack([report["sums"] for report in reports]).double().sum(0)

    def _forward(self, batches: Iterator[Batch | None], chunk):
        batch = next(batches)
        if batch is None:
            return chunk(None, None, None), None  # a middle stage: its input comes from the stage before
        part = self._on_this_rank(batch)
        losses = chunk(part["tokens"], part["position_ids"], None, labels=part["labels"])
        return losses, partial(_sum_loss, part["loss_mask"])

    def _on_this_rank(self, batch: Batch) -> dict:
        """The batch on this rank's device, cut along the sequence for context parallelism."""
        device = self.context.device
        part = {
            name: getattr(batch, name).to(device, non_blocking=True)
            for name in ("tokens", "labels", "loss_mask", "position_ids")
        }
        return compat.batch_on_this_cp_rank(part) if self.context.layout.cp_size > 1 else part


def _sum_loss(loss_mask, losses):
    """megatron-core's loss function: the sum, the token count that divides it in the end, and what to report."""
    loss = (losses.float() * loss_mask).sum()
    tokens = loss_mask.sum()
    return loss, tokens.to(torch.int), {"sums": torch.stack([loss.detach(), tokens])}
