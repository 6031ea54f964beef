"""What one rank measures, beside the others on the machine: every operator in turn, round after round.

Rounds spread each operator's measurements over the whole time, so that what disturbs the machine for a while disturbs
all alike; the median of the rounds is kept. Before each measurement the ranks wait for each other, so that all of them
are at the same work, as in training.
"""

import math
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from megatron_sky.config.schema import ParallelConfig, PrecisionConfig
from megatron_sky.distributed import device
from megatron_sky.distributed.context import ParallelContext, open_context
from megatron_sky.distributed.helpers import end_with
from megatron_sky.distributed.launch import LOOPBACK, RankInfo
from megatron_sky.model.mcore_config import torch_dtype
from megatron_sky.planner.calibration.operators import Operator, Operators, tiny_config
from megatron_sky.planner.calibration.sizes import STEPS, WORK_MICROSECONDS, bytes_of_collectives, sizes_of
from megatron_sky.planner.measured import COLLECTIVES
from megatron_sky.planner.rehearsal.run import make_step_batches

_KINDS = (
    "product_forward",
    "attention_forward",
    "gated_layer_forward",
    "plain_layer_forward",
    "loss",
    "embedding",
    "gradients",
)
_SLICE_SECONDS = 0.03
"""An operator that is shorter is run again until so much time has gone."""
_MOST_RUNS = 50
_LONGEST_SECONDS = 1.0
"""Of an operator's run; larger sizes of its kind are left out."""
_FEWEST_ROUNDS = 3
_WAIT_SIZE = 512
_WAIT_RUNS = 12


@dataclass(frozen=True)
class Work:
    """What a rank is to measure."""

    ranks: int
    rank: int
    store_file: str
    dtypes: tuple[str, ...]
    seconds: float
    """For all rounds; at least three are done."""


def measure(work: Work, parent: int, tell: Callable[[tuple], None]) -> None:
    """In a process of its own: measures and tells ("result", table), with ("progress", done, rounds) on the way."""
    end_with(parent)
    os.environ.pop("OMP_NUM_THREADS", None)
    info = RankInfo(work.rank, work.ranks, work.rank, work.ranks, LOOPBACK, store_file=work.store_file)
    with open_context(ParallelConfig(), info) as context:
        table = measure_rounds(context, work, tell)
        if work.rank == 0:
            tell(("result", table))


def measure_rounds(context: ParallelContext, work: Work, tell: Callable[[tuple], None]) -> dict:
    """The table as the hardware file has it, on every rank."""
    reserve = device.peak_memory_bytes()
    rows: dict[tuple[str, str, tuple[int, ...]], list[float]] = defaultdict(list)
    started, number = time.perf_counter(), 0
    prepared = {dtype: list(_prepared(context, dtype)) for dtype in work.dtypes}
    while _goes_on(context, started, number, work.seconds):
        for dtype, kind, sizes, seconds in _round(context, prepared):
            rows[kind, dtype, sizes].append(seconds)
        number += 1
        if work.rank == 0:
            tell(("progress", time.perf_counter() - started, number))
    return _described(work, _table(context, rows), reserve)


def _goes_on(context: ParallelContext, started: float, number: int, seconds: float) -> bool:
    """Whether there is time for one more round: rank 0's clock decides for all."""
    spent = time.perf_counter() - started
    wanted = number < _FEWEST_ROUNDS or spent * (number + 1) / number < seconds
    answer = torch.tensor([int(wanted)], device=context.device)
    dist.broadcast(answer, 0)
    return bool(answer.item())


def _round(context: ParallelContext, prepared: dict[str, list]) -> Iterator[tuple[str, str, tuple[int, ...], float]]:
    """Every operator once: (format, kind, sizes, seconds)."""
    for dtype, operators in prepared.items():
        for ready in operators:
            for operator, seconds in zip(ready, _time(context, ready), strict=True):
                yield dtype, operator.kind, operator.sizes, seconds
    for dtype in prepared:
        for kind, sizes, seconds in _collectives(context, dtype):
            yield dtype, kind, sizes, seconds
        for sizes, seconds in _waits(context, dtype):
            yield dtype, "wait", sizes, seconds


def _prepared(context: ParallelContext, dtype: str) -> Iterator[list[Operator]]:
    """Operators that are timed in turn; those of a kind up to the first that takes too long here."""
    operators = Operators(context, dtype)
    for kind in _KINDS:
        for sizes in sizes_of(kind, context.device.type != "cpu"):
            ready = operators.prepare(kind, sizes)
            longest = torch.tensor([sum(_time(context, ready, once=True))])
            yield ready
            if max(context.gather_objects(float(longest))) > _LONGEST_SECONDS:
                break
    for layers in sorted({layers for layers, _ in STEPS}):
        yield from ([operator] for operator in _steps(operators, dtype, layers))


def _time(context: ParallelContext, operators: list[Operator], once: bool = False) -> list[float]:
    """The mean seconds of each, run in turn on all ranks at once, after a run that is not timed.

    All ranks run each as often: a step waits for the others' gradients.
    """
    for operator in operators:
        operator.run()
    dist.barrier()
    device.synchronize()
    sums, runs, wanted = [0.0] * len(operators), 0, 1
    while runs < wanted:
        for index, operator in enumerate(operators):
            sums[index] += _clock(operator.run)
        runs += 1
        if runs == 1 and not once:
            fitting = math.ceil(_SLICE_SECONDS * len(operators) / max(sum(sums), 1e-9))
            wanted = max(context.gather_objects(min(fitting, _MOST_RUNS)))
    return [total / runs for total in sums]


def _clock(run: Callable[[], object]) -> float:
    """Seconds of one run, to its end on the device."""
    start = time.perf_counter()
    run()
    device.synchronize()
    return time.perf_counter() - start


def _steps(operators: Operators, dtype: str, layers: int) -> Iterator[Operator]:
    """Whole steps of a tiny model, of few micro batches and of more."""
    runner, config = operators.runner(layers), tiny_config(dtype, layers)
    for micro_batches in (number for depth, number in STEPS if depth == layers):
        batches = make_step_batches(config, micro_batches)

        def step(batches=batches, number=micro_batches) -> None:
            result = runner.compute(batches, num_microbatches=number, step=0)
            runner.apply(result, lr=1e-4)

        yield Operator("step", (layers, micro_batches), step)


def _collectives(context: ParallelContext, dtype: str) -> Iterator[tuple[str, tuple[int, int], float]]:
    """All groups of neighbours of a size at once, as in a layout."""
    size, rank = context.world_size, context.rank
    wide = torch_dtype(PrecisionConfig(dtype=dtype))
    members = 2
    while members <= size:
        groups = [dist.new_group(range(first, first + members)) for first in range(0, size - members + 1, members)]
        mine = rank // members
        for size_bytes in bytes_of_collectives(context.device.type != "cpu") if mine < len(groups) else ():
            whole = torch.ones(size_bytes // wide.itemsize, dtype=wide, device=context.device)
            for kind in COLLECTIVES:
                run = _collective(kind, whole, groups[mine], rank % members, members)
                (seconds,) = _time_collective(run, groups[mine])
                yield kind, (members, size_bytes), seconds
        dist.barrier()
        for group in groups:
            if group != dist.GroupMember.NON_GROUP_MEMBER:
                dist.destroy_process_group(group)
        members *= 2


def _collective(kind: str, whole: torch.Tensor, group, place: int, members: int) -> Callable[[], object]:
    part = whole.chunk(members)[place]
    if kind == "all_reduce":
        return lambda: dist.all_reduce(whole, group=group)
    if kind == "reduce_scatter":
        return lambda: dist.reduce_scatter_tensor(part, whole, group=group)
    if kind == "all_gather":
        return lambda: dist.all_gather_into_tensor(whole, part, group=group)
    ranks = dist.get_process_group_ranks(group)

    def send() -> None:
        """There and back again between two neighbours: two sends."""
        if place >= members // 2 * 2:
            return
        peer = ranks[place ^ 1]
        for sends in (place % 2 == 0, place % 2 == 1):
            operation = dist.P2POp(dist.isend if sends else dist.irecv, whole, peer, group)
            for request in dist.batch_isend_irecv([operation]):
                request.wait()

    return send


def _time_collective(run: Callable[[], object], group, runs: int = 4) -> list[float]:
    """The fastest rank's clock says what the collective itself takes: the others waited for it to begin."""
    run()
    seconds = []
    for _ in range(runs):
        dist.barrier(group)
        device.synchronize()
        seconds.append(_clock(run))
    return [statistics.median(seconds)]


def _waits(context: ParallelContext, dtype: str) -> Iterator[tuple[tuple[int, int], float]]:
    """How long an all-reduce takes beyond its own time where every rank comes to it from products of its own."""
    if context.world_size == 1:
        return
    wide = torch_dtype(PrecisionConfig(dtype=dtype))
    one, other, sums = (torch.ones(_WAIT_SIZE, _WAIT_SIZE, dtype=wide, device=context.device) for _ in range(3))

    def work(products: int) -> None:
        for _ in range(products):
            torch.matmul(one, other)
        device.synchronize()

    def reduce() -> None:
        dist.all_reduce(sums)

    work(_WAIT_RUNS)
    a_product = max(context.gather_objects(_clock(lambda: work(_WAIT_RUNS)) / _WAIT_RUNS))
    for microseconds in WORK_MICROSECONDS:
        products = max(1, round(microseconds * 1e-6 / a_product))
        alone, after = [], []
        for _ in range(_WAIT_RUNS):
            sums.fill_(1)
            dist.barrier()
            alone.append(_clock(reduce))
            work(products)
            after.append(_clock(reduce))
        yield (context.world_size, microseconds), max(statistics.mean(after) - statistics.median(alone), 1e-7)


def _table(context: ParallelContext, rows: dict) -> list[tuple[str, str, tuple, float]]:
    """The medians over the rounds, and the mean of the ranks."""
    own = [(*key, statistics.median(seconds)) for key, seconds in rows.items()]
    every = context.gather_objects(own)
    known: dict[tuple, list[float]] = defaultdict(list)
    for rank in every:
        for kind, dtype, sizes, seconds in rank:
            known[kind, dtype, sizes].append(seconds)
    return [(*key, statistics.mean(seconds)) for key, seconds in known.items()]


def _described(work: Work, table: list, reserve: int) -> dict:
    """As the hardware file has it. Two sends were timed as one."""
    seconds: dict[str, dict[str, list]] = {}
    for kind, dtype, sizes, value in table:
        value = value / 2 if kind == "send" else value
        seconds.setdefault(kind, {}).setdefault(dtype, []).append([*sizes, float(f"{value:.4g}")])
    threads = 0 if device.has_gpu() else torch.get_num_threads()
    return {"ranks": work.ranks, "threads": threads, "reserve_gib": round(reserve / 2**30, 3), "seconds": seconds}
