"""A step of the pipeline played through: when each stage computes, and when it waits.

Each stage runs its passes in the order of 1F1B or interleaved 1F1B (Narayanan et al. 2021, arXiv 2104.04473, section
2.2), as megatron-core's schedules do; a pass begins when the stage is free and what it needs has arrived.
"""

from dataclasses import dataclass

from megatron_sky.planner import hardware
from megatron_sky.planner.job import Job
from megatron_sky.planner.speed import pass_seconds, step_seconds


@dataclass(frozen=True)
class Span:
    """What a stage does from `start` on: forward, backward, send, gradients (reduced, and weights gathered) or
    update."""

    stage: int
    kind: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Timeline:
    """A step, stage by stage."""

    spans: list[Span]

    @property
    def seconds(self) -> float:
        return max(span.start + span.seconds for span in self.spans)

    def idle_share(self) -> float:
        """Of all stages' time, what is spent waiting."""
        stages = 1 + max(span.stage for span in self.spans)
        busy = sum(span.seconds for span in self.spans if span.kind != "send")
        return 1 - busy / (stages * self.seconds)


Pass = tuple[str, int, int]  # forward or backward, micro batch, chunk


def play(job: Job) -> Timeline:
    """The step, with the seconds that `speed` predicts for its passes and sends."""
    pp, vpp = job.layout.pp_size, job.layout.vpp_size
    forward, backward, send = pass_seconds(job, hardware.coefficients())
    queues = [order_of_passes(job, stage) for stage in range(pp)]
    ready: dict[tuple[str, int, int], float] = {}  # by kind, micro batch and place in the whole model
    free = [0.0] * pp
    spans: list[Span] = []
    positions = [0] * pp
    while any(positions[stage] < len(queues[stage]) for stage in range(pp)):
        before = sum(positions)
        for stage in range(pp):
            while positions[stage] < len(queues[stage]):
                kind, micro, chunk = queues[stage][positions[stage]]
                place = chunk * pp + stage
                needs = _needs(kind, micro, place, pp * vpp)
                if needs is not None and needs not in ready:
                    break
                start = max(free[stage], 0.0 if needs is None else ready[needs])
                seconds = (forward if kind == "forward" else backward)[stage] / vpp
                spans.append(Span(stage, kind, start, seconds))
                free[stage] = start + seconds
                sends = place < pp * vpp - 1 if kind == "forward" else place > 0
                ready[kind, micro, place] = free[stage] + (send if sends else 0.0)
                if sends and vpp == 1:  # 1F1B waits for its sends; interleaved, the next pass runs beside them
                    spans.append(Span(stage, "send", free[stage], send))
                    free[stage] += send
                positions[stage] += 1
        assert sum(positions) > before, "the schedule waits for itself"
    return Timeline(spans + _ends(job, free))


def order_of_passes(job: Job, stage: int) -> list[Pass]:
    """The passes of a stage in their order: some forward, then one forward and one backward in turn, then the rest."""
    pp, vpp, micro = job.layout.pp_size, job.layout.vpp_size, job.num_microbatches
    total = micro * vpp
    forward = [("forward", *_micro_and_chunk(number, pp, vpp)) for number in range(total)]
    backward = [
        ("backward", turn, vpp - 1 - chunk)
        for turn, chunk in (_micro_and_chunk(number, pp, vpp) for number in range(total))
    ]
    warmup = min(job.chunks_in_flight(stage) - 1, total)
    passes = forward[:warmup]
    for one, other in zip(forward[warmup:], backward, strict=False):
        passes += [one, other]
    return passes + backward[total - warmup :]


def _micro_and_chunk(number: int, pp: int, vpp: int) -> tuple[int, int]:
    """Of the number-th pass: `pp` micro batches go through a chunk before the next chunk's turn."""
    if vpp == 1:
        return number, 0
    group, within = divmod(number, pp * vpp)
    return group * pp + within % pp, within // pp


def _needs(kind: str, micro: int, place: int, places: int) -> tuple[str, int, int] | None:
    if kind == "forward":
        return None if place == 0 else ("forward", micro, place - 1)
    return ("forward", micro, place) if place == places - 1 else ("backward", micro, place + 1)


def _ends(job: Job, free: list[float]) -> list[Span]:
    """The gradients' reduction as each stage is done, and the update when all are: the norm needs every gradient."""
    step = step_seconds(job)
    done = max(free) + step.data_parallel
    spans = [Span(stage, "gradients", at, step.data_parallel) for stage, at in enumerate(free)]
    return spans + [Span(stage, "update", done, step.optimizer + step.host) for stage in range(len(free))]
