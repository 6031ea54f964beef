"""From a document's tokens to spans that fit the model's context, each token scored in exactly one of them. No torch.

A document that fits is one span. A longer one is a row of windows of the full context, each `stride` tokens further
than the one before and scoring only what that one did not: every token but the first `context` is predicted from at
least `context - stride` tokens before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Span:
    """A piece of a document as the model meets it.

    Attributes:
        tokens: ids; the model is fed all but the last and predicts all but the first. At most context + 1.
        scored: how many of the last predictions count.
    """

    tokens: np.ndarray
    scored: int

    @property
    def num_inputs(self) -> int:
        return len(self.tokens) - 1


def num_predictions(num_tokens: int, begins: bool) -> int:
    """Predictions of a document: of every token where a begin token goes before, else of all but the first."""
    return num_tokens if begins else max(0, num_tokens - 1)


def cut_spans(tokens: Sequence[int] | np.ndarray, *, begin: int | None, context: int, stride: int | None) -> list[Span]:
    """The spans of one document.

    Args:
        begin: the id put before the document, or None.
        context: tokens that the model takes at once.
        stride: tokens by which a long document's windows advance; None: a longer document is an error of the caller's.
    """
    whole = np.asarray([*(() if begin is None else (begin,)), *tokens], dtype=np.int64)
    predictions = len(whole) - 1
    if predictions <= 0:
        return []
    if predictions <= context:
        return [Span(whole, predictions)]
    assert stride is not None and 0 < stride <= context, (
        f"{predictions} predictions, context {context}, stride {stride}"
    )
    spans, end = [Span(whole[: context + 1], context)], context
    while end < predictions:
        until = min(end + stride, predictions)
        spans.append(Span(whole[until - context : until + 1], until - end))
        end = until
    return spans


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Numbers of the spans of each batch: of like length, longest first, at most `batch_tokens` with the padding."""
    order = sorted(range(len(lengths)), key=lambda number: (-lengths[number], number))
    batches: list[list[int]] = []
    for number in order:
        last = batches[-1] if batches else None
        if last is not None and (len(last) + 1) * lengths[last[0]] <= batch_tokens:
            last.append(number)
        else:
            batches.append([number])
    return batches
