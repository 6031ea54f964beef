"""What would help where a layout, or every layout, does not do: changes tried out, with what they bring."""

from megatron_sky.config import Config
from megatron_sky.config.validate import find_problems
from megatron_sky.errors import Problem
from megatron_sky.planner.forecast import Forecast
from megatron_sky.planner.hardware import Cluster, cluster_of, gpus
from megatron_sky.planner.job import Job
from megatron_sky.planner.layout_text import with_updates
from megatron_sky.planner.memory import GIB
from megatron_sky.planner.search import BATCH, RECOMPUTE, Candidate, SearchOutcome, divisors, largest_part, search

_ENOUGH = 3


def nothing_fits(config: Config, cluster: Cluster, world_size: int, outcome: SearchOutcome) -> Problem:
    """Why a search found nothing, with the nearest batches, GPU numbers and GPUs that would do."""
    if outcome.smallest is not None:
        memory, gpu = outcome.smallest.forecast.memory, cluster.gpu
        part = largest_part(memory)
        rule = (
            f"no layout of {world_size} {gpu.name} fits: the smallest, {outcome.smallest.words}, needs "
            f"{memory.total / GIB:.1f} GiB of {gpu.memory_gib:g}, most of it {part} ({getattr(memory, part) / GIB:.1f})"
        )
        offered = machines_that_fit(config, cluster, world_size)
        return Problem("--gpus", rule, "; or ".join(offered) or "use a smaller model or a shorter context", world_size)
    if outcome.batch_breaks:
        near = _batches_near(config, world_size)
        rule = (
            f"no layout of {world_size} GPUs divides the global batch, which must be a multiple of micro batch x "
            "data-parallel size"
        )
        fix = f"use {' or '.join(map(str, near))}, or another --gpus"
        return Problem(BATCH, rule, fix, config.train.global_batch_size)
    worst = outcome.broken.most_common(3)
    rule = "no layout keeps the recipe's rules; most often broken: " + "; ".join(each for each, _ in worst)
    return Problem("--gpus", rule, "use a number of GPUs with divisors that the model's sizes have", world_size)


def machines_that_fit(config: Config, cluster: Cluster, world_size: int) -> list[str]:
    """Up to three: more GPUs, a number that the layers divide, GPUs with more memory; each tried by a search."""
    whole = config.model.num_layers * cluster.gpus_per_node
    numbers = [world_size // whole * whole, *(world_size * factor for factor in (2, 4, 8, 16))]
    offered: list[str] = []
    for number in numbers:
        if number != world_size and number > 0 and (said := _tried(config, cluster, number)):
            offered.append(said)
            break
    larger = sorted(
        (gpu for gpu in gpus().values() if gpu.memory_gib > cluster.gpu.memory_gib), key=lambda gpu: gpu.memory_gib
    )
    for gpu in larger:
        if said := _tried(config, cluster_of(gpu), world_size):
            offered.append(said)
        if len(offered) == _ENOUGH:
            break
    return offered


def fixes(config: Config, cluster: Cluster, world_size: int) -> list[Candidate]:
    """Layouts one change away from one that does not fit, and that do: three, the fastest first."""
    p, t = config.parallel, config.train
    changes: list[tuple[dict, dict]] = [({}, {"recompute": each}) for each in RECOMPUTE if each != t.recompute]
    changes += [({"distributed_optimizer": True}, {})]
    changes += [({"tp_size": p.tp_size * factor, "sequence_parallel": True}, {}) for factor in (2, 4)]
    changes += [({"pp_size": p.pp_size * factor, "vpp_size": 1}, {}) for factor in (2, 4)]
    changes += [({"cp_size": p.cp_size * 2}, {})]
    changes += [({}, {"micro_batch_size": t.micro_batch_size // 2})] if t.micro_batch_size > 1 else []
    changes += [({"tp_size": 2 * p.tp_size, "sequence_parallel": True}, {"recompute": "full"})]
    changes += [({"pp_size": 2 * p.pp_size, "vpp_size": 1}, {"recompute": "full"})]
    fitting = []
    for parallel, train in changes:
        changed = with_updates(config, parallel, train, {})
        if changed != config and not find_problems(changed, world_size):
            candidate = Candidate(changed, Forecast(Job.of(changed, cluster, world_size)))
            if candidate.forecast.fits:
                fitting.append(candidate)
    fitting.sort(key=lambda candidate: -candidate.forecast.tokens_per_second_per_gpu)
    return fitting[:_ENOUGH]


def _tried(config: Config, cluster: Cluster, world_size: int) -> str:
    """What the best layout on this machine needs and does; empty where none fits."""
    outcome = search(config, cluster, world_size)
    if not outcome.fitting:
        return ""
    return f"use {world_size} {cluster.gpu.name} ({outcome.fitting[0].summary})"


def _batches_near(config: Config, world_size: int) -> list[int]:
    """Batches beside the recipe's that the smallest data-parallel size divides."""
    batch = config.train.global_batch_size
    split = [
        tp * pp
        for tp in (1, 2, 4, 8)
        for pp in divisors(config.model.num_layers)
        if world_size % (tp * pp) == 0 and config.model.num_attention_heads % tp == 0
    ]
    smallest = world_size // max(split)
    below, above = batch // smallest * smallest, -(-batch // smallest) * smallest
    return sorted({size for size in (below, above) if size > 0 and size != batch})
