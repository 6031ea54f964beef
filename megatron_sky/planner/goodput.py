"""The share of a job's time that trains, with nodes that fail: closed form, the best checkpoint interval, spare nodes.

A node fails at random, `node_mtbf_hours` apart on average; any failure stops the job. Work since the last checkpoint is
lost, and a restart (finding the failure, starting, loading, verifying) takes its time. The failed node is away for
repair; without a spare in its place the job waits for the first that comes back.
"""

import heapq
import math
import random
from dataclasses import dataclass, replace

HOUR = 3600.0
LEAST_TRAINED = 0.05
"""Of the time, where a job still gets on."""


@dataclass(frozen=True)
class Reliability:
    """Nodes, how often they fail, and what a failure and a checkpoint cost."""

    num_nodes: int
    node_mtbf_hours: float
    restart_seconds: float
    checkpoint_stall_seconds: float
    repair_hours: float
    num_spares: int = 0

    @property
    def job_mtbf_seconds(self) -> float:
        return self.node_mtbf_hours * HOUR / self.num_nodes


def too_often(r: Reliability) -> str:
    """Why next to nothing trains: failures come faster than restarts and checkpoints end. Empty: enough does."""
    stopped = r.restart_seconds + r.checkpoint_stall_seconds
    # more than e^(-stopped / M) of the time can't train: said first, as what is exact overflows far beyond it
    if stopped <= -math.log(LEAST_TRAINED) * r.job_mtbf_seconds and goodput(best_interval(r), r) >= LEAST_TRAINED:
        return ""
    return (
        f"one of {r.num_nodes:,} nodes fails every {r.job_mtbf_seconds:,.0f} s, and a restart and a checkpoint take "
        f"{stopped:,.0f} s: less than {LEAST_TRAINED:.0%} of the time would train"
    )


def goodput(interval_seconds: float, r: Reliability) -> float:
    """The share of time that trains where there is always a node to go on with.

    A checkpoint after each `interval_seconds` of work costs M e^(R / M) (e^((interval + stall) / M) - 1) seconds in the
    mean, for failures M apart and restarts R long (Daly 2006, doi 10.1016/j.future.2004.11.016, equation 13).
    """
    m = r.job_mtbf_seconds
    return interval_seconds / (
        m * math.exp(r.restart_seconds / m) * math.expm1((interval_seconds + r.checkpoint_stall_seconds) / m)
    )


def best_interval(r: Reliability) -> float:
    """Seconds of work between checkpoints with the highest goodput: by halving, as it rises and then falls."""
    low, high = 0.0, 10 * r.job_mtbf_seconds
    while high - low > 1e-6 * r.job_mtbf_seconds:
        one, two = low + (high - low) / 3, high - (high - low) / 3
        if goodput(one, r) < goodput(two, r):
            low = one
        else:
            high = two
    return (low + high) / 2


def young_daly(r: Reliability) -> float:
    """The best interval as usually reckoned: sqrt(2 stall M) (Young 1974), for stalls much shorter than M."""
    return math.sqrt(2 * r.checkpoint_stall_seconds * r.job_mtbf_seconds)


def simulate(interval_seconds: float, r: Reliability, *, num_failures: int, seed: int = 0) -> float:
    """The share of time that trained in a played-through job of that many failures."""
    draw = random.Random(seed)
    m, cycle = r.job_mtbf_seconds, interval_seconds + r.checkpoint_stall_seconds
    clock = trained = 0.0
    away: list[float] = []  # when each node under repair comes back
    for _ in range(num_failures):
        alive = draw.expovariate(1 / m)
        trained += alive // cycle * interval_seconds  # what came after the last checkpoint is lost
        clock += alive
        clock = _restarted(clock, away, r, draw)
    return trained / clock


def _restarted(clock: float, away: list[float], r: Reliability, draw: random.Random) -> float:
    """When the job runs again after a failure at `clock`; a failure in the restart begins it anew."""
    while True:
        heapq.heappush(away, clock + r.repair_hours * HOUR)
        while away and away[0] <= clock:
            heapq.heappop(away)
        while len(away) > r.num_spares:  # fewer than it needs
            clock = max(clock, heapq.heappop(away))
        failure = draw.expovariate(1 / r.job_mtbf_seconds)
        if failure >= r.restart_seconds:
            return clock + r.restart_seconds
        clock += failure


def spares_worth_having(interval_seconds: float, r: Reliability, *, most: int = 16, num_failures: int = 4000) -> list:
    """`(spares, goodput, goodput for all nodes paid for)` from none up to `most`, or to where more help no further."""
    choices: list[tuple[int, float, float]] = []
    for spares in range(most + 1):
        share = simulate(interval_seconds, replace(r, num_spares=spares), num_failures=num_failures)
        choices.append((spares, share, share * r.num_nodes / (r.num_nodes + spares)))
        if spares >= 2 and choices[-1][1] - choices[-3][1] < 1e-4:
            break
    return choices
