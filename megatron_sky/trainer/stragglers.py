"""Which ranks are slow: each rank's own work per step, gathered now and then.

Ranks wait for each other in every step, so all steps take equally long everywhere. What differs is how long a rank
waits where gradients are reduced: the slowest hardly at all. Its work is the rest of the step. Measured on the host,
so ranks that wait for each other inside the forward pass (tensor parallelism) show up together.
"""

import socket
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.distributed.context import ParallelContext


@dataclass(frozen=True)
class Slow:
    """A rank whose work takes longer than the others'."""

    rank: int
    host: str
    work_seconds: float
    median_seconds: float


class Stragglers:
    """Sums up this rank's work and reports slow ranks every resilience.straggler_interval steps."""

    def __init__(self, config: ResilienceConfig, context: ParallelContext, tell: Callable[[list[Slow]], None]):
        self._interval, self._ratio = config.straggler_interval, config.straggler_ratio
        self._context, self._tell = context, tell
        self._work, self._steps = 0.0, 0

    def add(self, work_seconds: float) -> None:
        """One step's time without the wait for other ranks."""
        self._work += work_seconds
        self._steps += 1

    def maybe_report(self, step: int) -> None:
        """Collective on every straggler_interval-th step."""
        if step % self._interval or self._steps == 0 or self._context.world_size == 1:
            return
        mine = (self._work / self._steps, socket.gethostname())
        self._work, self._steps = 0.0, 0
        slow = find_slow(self._context.gather_objects(mine), self._ratio)
        if slow and self._context.rank == 0:
            self._tell(slow)


def find_slow(work: list[tuple[float, str]], ratio: float) -> list[Slow]:
    """The ranks whose work (seconds a step, host) is more than `ratio` times the others' median, slowest first."""
    slow = []
    for rank, (seconds, host) in enumerate(work):
        others = statistics.median(s for other, (s, _) in enumerate(work) if other != rank)
        if seconds > ratio * others:
            slow.append(Slow(rank, host, seconds, others))
    return sorted(slow, key=lambda report: -report.work_seconds)
