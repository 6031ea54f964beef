"""Spans of tokens through a model, in batches of like length: one loss a token.

A batch is padded on the right, which a causal model never sees, and the output layer runs only where a prediction
counts. Batches are made of the whole list and dealt to the data-parallel ranks, so a batch is the same whatever their
number.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megatron_sky.evaluate.windows import Span, plan_batches
from megatron_sky.inference.model import Model
from megatron_sky.log import get_logger

log = get_logger(__name__)

_SECONDS_BETWEEN_NEWS = 30


@dataclass(frozen=True)
class SpanScore:
    """Loss of each scored token in nats, float32, in order; and whether each was the likeliest token there."""

    losses: np.ndarray
    likeliest: np.ndarray


Gather = Callable[[dict[int, SpanScore]], list[dict[int, SpanScore]]]
"""Hands every rank's answers to every rank."""


class Progress:
    """Log lines of how many batches of `what` are done, now and then."""

    def __init__(self, what: str, num_batches: int):
        self._what, self._num_batches = what, num_batches
        self._last = time.monotonic()

    def reached(self, batch: int) -> None:
        if time.monotonic() - self._last > _SECONDS_BETWEEN_NEWS:
            self._last = time.monotonic()
            log.info("%s: batch %d of %d", self._what, min(batch, self._num_batches), self._num_batches)


def score_spans(
    model: Model, spans: Sequence[Span], *, batch_tokens: int, gather: Gather, what: str = ""
) -> list[SpanScore]:
    """Every span's score, in order, on every rank.

    Args:
        batch_tokens: tokens of a batch, padding included, at most (a longer span is a batch of its own).
        gather: ParallelContext.gather_objects.
        what: name for the lines that tell how far it is.
    """
    batches = plan_batches([span.num_inputs for span in spans], batch_tokens)
    mine: dict[int, SpanScore] = {}
    progress = Progress(what, len(batches))
    with torch.inference_mode():
        for number, batch in enumerate(batches[model.share :: model.shares]):
            scores = _score_batch(model, [spans[index] for index in batch])
            if scores is not None:
                mine.update(zip(batch, scores, strict=True))
            progress.reached((number + 1) * model.shares)
    everyone: dict[int, SpanScore] = {}
    for part in gather(mine if model.answers else {}):
        everyone.update(part)
    return [everyone[number] for number in range(len(spans))]


def _score_batch(model: Model, spans: list[Span]) -> list[SpanScore] | None:
    longest = max(span.num_inputs for span in spans)
    tokens = np.zeros((len(spans), longest), np.int64)
    places, targets = [], []
    for row, span in enumerate(spans):
        tokens[row, : span.num_inputs] = span.tokens[:-1]
        end = row * longest + span.num_inputs
        places.append(np.arange(end - span.scored, end))
        targets.append(span.tokens[-span.scored :])
    device = model.device
    on_device = [
        torch.from_numpy(array).to(device) for array in (tokens, np.concatenate(places), np.concatenate(targets))
    ]
    tensors = model.losses(*on_device)
    if tensors is None:
        return None
    cuts = np.cumsum([span.scored for span in spans])[:-1]
    losses, likeliest = (np.split(tensor.cpu().numpy(), cuts) for tensor in tensors)
    return [SpanScore(*span) for span in zip(losses, likeliest, strict=True)]
