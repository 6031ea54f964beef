"""The loss on every named validation set, each by its own, equal in every layout."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from megatron_sky.config.schema import ValidationConfig
from megatron_sky.data.loader import ValidationData
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.trainer.batches import validation_requests
from megatron_sky.trainer.step import StepRunner


@dataclass(frozen=True)
class SetLoss:
    """The mean loss per token (nats) over `tokens` tokens, and the seconds it took."""

    lm_loss: float
    tokens: int
    seconds: float


class Validator:
    """Reads the sets once, evaluates them whenever asked."""

    def __init__(
        self,
        config: ValidationConfig,
        *,
        runner: StepRunner,
        context: ParallelContext,
        seq_length: int,
        vocab_size: int,
        micro_batch_size: int,
    ):
        self.config = config
        self._runner = runner
        self._context = context
        self._micro_batch_size = config.micro_batch_size or micro_batch_size
        self._sets = {
            each.name: ValidationData(
                each.path, seq_length=seq_length, vocab_size=vocab_size, max_sequences=config.max_sequences
            )
            for each in config.sets
        }

    @property
    def metas(self) -> dict:
        """Each set's description (None for files made by other tools)."""
        return {name: data.meta for name, data in self._sets.items()}

    def due(self, step: int, tokens_before: int, tokens_after: int) -> bool:
        """Whether the interval has come round after `step`."""
        interval = self.config.interval
        return bool(self._sets) and interval is not None and interval.due(step, tokens_before, tokens_after)

    def evaluate(self, hurried: Callable[[], bool]) -> dict[str, SetLoss]:
        """Every set's loss; no further set once `hurried` (which all ranks answer alike). Collective."""
        losses: dict[str, SetLoss] = {}
        for name, data in self._sets.items():
            if losses and hurried():
                break
            losses[name] = self._evaluate(data)
        return losses

    def _evaluate(self, data: ValidationData) -> SetLoss:
        start = time.perf_counter()
        requests = validation_requests(data.num_sequences, self._micro_batch_size, self._context)
        loss_sum, tokens = self._runner.evaluate(
            (data.read(request) for request in requests),
            num_microbatches=len(requests),
            micro_batch_size=self._micro_batch_size,
        )
        return SetLoss(loss_sum / tokens, tokens, time.perf_counter() - start)
