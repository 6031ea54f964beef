"""Is this step's number bad? Pure arithmetic over the numbers of the steps before it.

A robust z-score measures a spike: (x - median) / (1.4826 MAD), with the median absolute deviation over a window of good
steps (Rousseeuw & Croux 1993: 1.4826 makes MAD the standard deviation of normal numbers). The MAD is held above 1 % of
the median, so that a loss that hardly moves does not make a spike of every breath.
"""

import math
import statistics
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

from megatron_sky.config.schema import ResilienceConfig

FINE, NONFINITE, SPIKE = 0, 1, 2  # in order of how bad several ranks' verdicts are added up: the largest counts


@dataclass(frozen=True)
class Verdict:
    """What was found, and in words why."""

    kind: int
    reason: str = ""


class AnomalyDetector:
    """Judges the loss and gradient norm of each step; learns from the good ones only."""

    def __init__(self, config: ResilienceConfig):
        self._zscore = config.spike_zscore
        self._watch_spikes = config.on_spike != "ignore"
        self._window = config.spike_window
        self._seen: dict[str, deque[float]] = {name: deque(maxlen=self._window) for name in ("lm_loss", "grad_norm")}

    def judge(self, lm_loss: float, grad_norm: float | None) -> Verdict:
        """The verdict on one step's numbers; a window that is less than half full can't tell a spike.

        `grad_norm` None: the gradients overflowed fp16. That is no fault, as a lower loss scale fixes it, but a loss
        that is not finite is one: the loss is not scaled.
        """
        numbers = {"lm_loss": lm_loss} | ({} if grad_norm is None else {"grad_norm": grad_norm})
        for name, value in numbers.items():
            if not math.isfinite(value):
                return Verdict(NONFINITE, f"{name} = {value} is not finite")
        if self._watch_spikes and grad_norm is not None:
            for name, value in numbers.items():
                score = robust_zscore(value, self._seen[name]) if 2 * len(self._seen[name]) >= self._window else 0.0
                if score > self._zscore:
                    median = statistics.median(self._seen[name])
                    return Verdict(SPIKE, f"{name} = {value:.4g} is {score:.0f} robust deviations above {median:.4g}")
        return Verdict(FINE)

    def accept(self, lm_loss: float, grad_norm: float) -> None:
        """These numbers were good: later ones are measured against them too."""
        self._seen["lm_loss"].append(lm_loss)
        self._seen["grad_norm"].append(grad_norm)


def robust_zscore(value: float, seen: Collection[float]) -> float:
    """How far `value` lies above the median of `seen`, in robust standard deviations."""
    median = statistics.median(seen)
    deviation = 1.4826 * statistics.median(abs(value - median) for value in seen)
    return (value - median) / max(deviation, 0.01 * abs(median), 1e-12)
