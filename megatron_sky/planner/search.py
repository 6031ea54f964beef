"""Every layout of a recipe on a number of GPUs: which break a rule, which do not fit, and how fast the others are.

The rules are the recipe's own (`config.validate`). Memory is computed first, speed only where it fits.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import product

from megatron_sky.config import Config
from megatron_sky.config.schema import Fp8Config
from megatron_sky.config.validate import find_problems
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.planner.forecast import Forecast
from megatron_sky.planner.hardware import Cluster
from megatron_sky.planner.job import Job
from megatron_sky.planner.layout_text import layout_words, with_updates
from megatron_sky.planner.memory import GIB, Memory

_RECOMPUTE = ("none", "selective", "full")
_BATCH = "train.global_batch_size"


@dataclass(frozen=True)
class Candidate:
    """A layout that breaks no rule."""

    config: Config
    forecast: Forecast

    @property
    def words(self) -> str:
        return layout_words(self.config, self.forecast.job.layout.world_size)


@dataclass
class Found:
    """What came out: `fitting` the fastest first; `broken` counts rules, `too_large` the part that is largest."""

    fitting: list[Candidate] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    too_large: Counter[str] = field(default_factory=Counter)
    smallest: Candidate | None = None
    """Of those that do not fit."""
    batch_breaks: int = 0
    """Layouts that only the global batch forbids."""

    @property
    def tried(self) -> int:
        return len(self.fitting) + sum(self.broken.values()) + sum(self.too_large.values())

    def frontier(self) -> list[Candidate]:
        """Those of which none is both smaller and faster, the fastest first."""
        front: list[Candidate] = []
        for each in self.fitting:
            if not front or each.forecast.memory.total < front[-1].forecast.memory.total:
                front.append(each)
        return front


def search(config: Config, cluster: Cluster, world_size: int) -> Found:
    """All layouts of the recipe. Raises ConfigError where none breaks no rule and fits."""
    found = Found()
    for parallel, micro_batch_size, fp8 in _layouts(config, cluster, world_size):
        tried = with_updates(config, parallel, {"micro_batch_size": micro_batch_size}, {"fp8": fp8})
        variants = list(_variants(tried))
        problems = find_problems(tried, world_size)
        if problems:
            found.broken[f"{problems[0].where} {problems[0].rule}"] += len(variants)
            found.batch_breaks += all(each.where == _BATCH for each in problems)
            continue
        for variant in variants:
            _weigh(found, Candidate(variant, Forecast(Job.of(variant, cluster, world_size))))
    found.fitting.sort(key=lambda each: (-each.forecast.tokens_per_second_per_gpu, each.forecast.memory.total))
    if not found.fitting:
        raise ConfigError(_nothing(config, found, world_size))
    return found


def largest_part(memory: Memory) -> str:
    """The name of the part that takes most."""
    return max((each.name for each in fields(memory)), key=lambda name: getattr(memory, name))


def _layouts(config: Config, cluster: Cluster, world_size: int) -> Iterator[tuple[dict, int, Fp8Config | None]]:
    """(parallel section, micro batch, 8-bit products): sizes that divide what they split."""
    m = config.model
    tensor = [each for each in _divisors(cluster.gpus_per_node) if each & (each - 1) == 0]
    pipeline = [each for each in _divisors(m.num_layers) if each <= world_size]
    context = [each for each in (1, 2, 4, 8, 16, 32) if each == 1 or m.seq_length // each >= 2048]
    formats: list[Fp8Config | None] = [config.precision.fp8]
    if config.precision.fp8 is None and "fp8" in cluster.gpu.tflops and config.precision.dtype == "bf16":
        formats.append(Fp8Config())
    elif config.precision.fp8 is not None:
        formats.append(None)
    for tp, pp, cp, micro, fp8 in product(tensor, pipeline, context, (1, 2, 4, 8), formats):
        if world_size % (tp * pp * cp):
            continue
        for vpp in _divisors(m.num_layers // pp) if pp > 1 else [1]:
            for sequence_parallel in (False, True) if tp > 1 else (False,):
                sizes = {"tp_size": tp, "pp_size": pp, "vpp_size": vpp, "cp_size": cp}
                overlaps = config.parallel.tp_comm_overlap and sequence_parallel
                yield sizes | {"sequence_parallel": sequence_parallel, "tp_comm_overlap": overlaps}, micro, fp8


def _variants(config: Config) -> Iterator[Config]:
    """Recomputation and sharding, on which no rule depends; communication overlaps where it can."""
    fp8 = config.precision.fp8
    through_gradients = fp8 is not None and fp8.param_gather and fp8.recipe == "mxfp8"
    for recompute, sharded in product(_RECOMPUTE, (True, False)):
        parallel = {
            "distributed_optimizer": sharded,
            "overlap_grad_reduce": True,
            "overlap_param_gather": sharded and not through_gradients,
        }
        yield with_updates(config, parallel, {"recompute": recompute}, {})


def _weigh(found: Found, candidate: Candidate) -> None:
    memory = candidate.forecast.memory
    if candidate.forecast.fits:
        found.fitting.append(candidate)
        return
    found.too_large[largest_part(memory)] += 1
    if found.smallest is None or memory.total < found.smallest.forecast.memory.total:
        found.smallest = candidate


def _nothing(config: Config, found: Found, world_size: int) -> Problem:
    if found.smallest is not None:
        memory, gpu = found.smallest.forecast.memory, found.smallest.forecast.job.cluster.gpu
        part = largest_part(memory)
        rule = (
            f"no layout of {world_size} {gpu.name} fits: the smallest, {found.smallest.words}, needs "
            f"{memory.total / GIB:.1f} GiB of {gpu.memory_gib:g}, most of it {part} ({getattr(memory, part) / GIB:.1f})"
        )
        return Problem("--gpus", rule, "use more GPUs, GPUs with more memory, or a smaller model", world_size)
    if found.batch_breaks:
        batch = config.train.global_batch_size
        near = _batches_near(config, world_size)
        rule = f"no layout of {world_size} GPUs divides it: it must be a multiple of micro batch x data-parallel size"
        return Problem(_BATCH, rule, f"use {' or '.join(map(str, near))}, or another --gpus", batch)
    worst = found.broken.most_common(3)
    rule = "no layout keeps the recipe's rules; most often broken: " + "; ".join(each for each, _ in worst)
    return Problem("--gpus", rule, "use a number of GPUs with divisors that the model's sizes have", world_size)


def _batches_near(config: Config, world_size: int) -> list[int]:
    """Batches beside the recipe's that the smallest data-parallel size divides."""
    batch = config.train.global_batch_size
    split = [
        tp * pp
        for tp in (1, 2, 4, 8)
        for pp in _divisors(config.model.num_layers)
        if world_size % (tp * pp) == 0 and config.model.num_attention_heads % tp == 0
    ]
    smallest = world_size // max(split)
    below, above = batch // smallest * smallest, -(-batch // smallest) * smallest
    return sorted({each for each in (below, above) if each > 0 and each != batch})


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def fixes(config: Config, cluster: Cluster, world_size: int) -> list[Candidate]:
    """Layouts one change away from one that does not fit, and that do: three, the fastest first."""
    p, t = config.parallel, config.train
    changes: list[tuple[dict, dict]] = [({}, {"recompute": each}) for each in _RECOMPUTE if each != t.recompute]
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
    fitting.sort(key=lambda each: -each.forecast.tokens_per_second_per_gpu)
    return fitting[:3]
