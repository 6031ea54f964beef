"""How a job grows: the best layout on each number of GPUs, and what limits it there."""

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_sky.config import Config
from megatron_sky.planner.forecast import Forecast
from megatron_sky.planner.hardware import Cluster
from megatron_sky.planner.layout_text import with_updates
from megatron_sky.planner.remedies import nothing_fits
from megatron_sky.planner.search import Candidate, search

LIMITS = {
    "pipeline bubble": ("bubble",),
    "network": ("data_parallel", "p2p", "tensor_parallel", "context_parallel"),
    "memory (recomputation)": ("recompute",),
    "imbalance": ("imbalance",),
    "fixed costs": ("optimizer", "host"),
    "small products": ("products", "attention", "memory_kernels"),
}
"""What may keep a job from growing, and the parts of a step that show it."""
_NOTICED = 0.005


@dataclass(frozen=True)
class Point:
    """The best on a number of GPUs. `best` None: nothing works there, and `limit` says why."""

    num_gpus: int
    global_batch_size: int
    best: Candidate | None
    efficiency: float
    """Speed of a GPU beside the first point's."""
    limit: str
    """What takes most of the time that is lost beside the first point."""


def scale(config: Config, cluster: Cluster, numbers: Sequence[int], *, weak: bool) -> list[Point]:
    """One point for each number of GPUs, in order. Strong scaling keeps the batch; weak lets it grow with the GPUs."""
    points: list[Point] = []
    first: Forecast | None = None
    for number in sorted(set(numbers)):
        batch = config.train.global_batch_size
        if weak:
            batch = batch * number // min(numbers)
        sized = with_updates(config, {}, {"global_batch_size": batch}, {})
        outcome = search(sized, cluster, number)
        if not outcome.fitting:
            points.append(Point(number, batch, None, 0.0, nothing_fits(sized, cluster, number, outcome).rule))
            continue
        best = outcome.fitting[0]
        first = first or best.forecast
        efficiency = best.forecast.tokens_per_second_per_gpu / first.tokens_per_second_per_gpu
        points.append(Point(number, batch, best, efficiency, _limit(best.forecast, first)))
    return points


def _limit(forecast: Forecast, first: Forecast) -> str:
    """The kind of loss whose seconds a token and GPU grew most."""
    now, then = _seconds_a_token(forecast), _seconds_a_token(first)
    growth = {name: sum(now[part] - then[part] for part in parts) for name, parts in LIMITS.items()}
    name = max(growth, key=lambda part: growth[part])
    return name if growth[name] > _NOTICED * sum(then.values()) else "none"


def _seconds_a_token(forecast: Forecast) -> dict[str, float]:
    parts, total = forecast.step.parts(), forecast.step.total
    return {name: seconds / total / forecast.tokens_per_second_per_gpu for name, seconds in parts.items()}
