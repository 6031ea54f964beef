"""Confidence intervals by the bootstrap over documents: whole documents are drawn again, their tokens stay together."""

from dataclasses import dataclass

import numpy as np

NUM_RESAMPLES = 2000
_AT_ONCE = 4_000_000  # draws


@dataclass(frozen=True)
class Interval:
    """A figure and the interval that covers it with the stated confidence (percentiles of the resampled figures)."""

    value: float
    low: float
    high: float


def resample_counts(num_documents: int, rng: np.random.Generator, resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """`[resamples, num_documents]` float32: how often each document is drawn in each resample of the same size."""
    counts = np.empty((resamples, num_documents), np.float32)
    step = max(1, _AT_ONCE // num_documents)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(0, num_documents, (rows, num_documents)) + np.arange(rows)[:, None] * num_documents
        counts[start : start + rows] = np.bincount(drawn.ravel(), minlength=rows * num_documents).reshape(rows, -1)
    return counts


def resampled_loss(loss_sums: np.ndarray, tokens: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`[resamples]`: the loss per token of each resample, sum S / sum T."""
    sums = counts @ np.stack([loss_sums, tokens], 1).astype(np.float32)
    return sums[:, 0].astype(np.float64) / sums[:, 1]


def interval(value: float, resampled: np.ndarray, confidence: float) -> Interval:
    """The percentile interval of a figure from its resampled values."""
    tail = (1 - confidence) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(value, float(low), float(high))
