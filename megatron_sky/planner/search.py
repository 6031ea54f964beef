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
from megatron_sky.planner.forecast import Forecast
from megatron_sky.planner.hardware import Cluster
from megatron_sky.planner.job import Job
from megatron_sky.planner.layout_text import layout_words, with_updates
from megatron_sky.planner.memory import GIB, Memory

RECOMPUTE = ("none", "selective", "full")
BATCH = "train.global_batch_size"


@dataclass(frozen=True)
class Candidate:
    """A layout that breaks no rule."""

    config: Config
    forecast: Forecast

    @property
    def words(self) -> str:
        return layout_words(self.config, self.forecast.job.layout.world_size)

    @property
    def summary(self) -> str:
        f = self.forecast
        return f"{self.words}: {f.memory.total / GIB:.1f} GiB, {f.tokens_per_second_per_gpu:,.0f} tokens/s a GPU"


@dataclass
class SearchOutcome:
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
        for candidate in self.fitting:
            if not front or candidate.forecast.memory.total < front[-1].forecast.memory.total:
                front.append(candidate)
        return front


def search(config: Config, cluster: Cluster, world_size: int) -> SearchOutcome:
    """All layouts of the recipe; where none fits, `remedies.nothing_fits` says why."""
    outcome = SearchOutcome()
    for parallel, micro_batch_size, fp8 in _layouts(config, cluster, world_size):
        tried = with_updates(config, parallel, {"micro_batch_size": micro_batch_size}, {"fp8": fp8})
        variants = list(_variants(tried))
        problems = find_problems(tried, world_size)
        if problems:
            outcome.broken[f"{problems[0].where} {problems[0].rule}"] += len(variants)
            outcome.batch_breaks += all(problem.where == BATCH for problem in problems)
            continue
        for variant in variants:
            _weigh(outcome, Candidate(variant, Forecast(Job.of(variant, cluster, world_size))))
    outcome.fitting.sort(
        key=lambda candidate: (-candidate.forecast.tokens_per_second_per_gpu, candidate.forecast.memory.total)
    )
    return outcome


def largest_part(memory: Memory) -> str:
    """The name of the part that takes most."""
    return max((part.name for part in fields(memory)), key=lambda name: getattr(memory, name))


def _layouts(config: Config, cluster: Cluster, world_size: int) -> Iterator[tuple[dict, int, Fp8Config | None]]:
    """(parallel section, micro batch, 8-bit products): sizes that divide what they split."""
    m = config.model
    tensor = [divisor for divisor in divisors(cluster.gpus_per_node) if divisor & (divisor - 1) == 0]
    pipeline = [divisor for divisor in divisors(m.num_layers) if divisor <= world_size]
    context = [size for size in (1, 2, 4, 8, 16, 32) if size == 1 or m.seq_length // size >= 2048]
    formats: list[Fp8Config | None] = [config.precision.fp8]
    if config.precision.fp8 is None and "fp8" in cluster.gpu.tflops and config.precision.dtype == "bf16":
        formats.append(Fp8Config())
    elif config.precision.fp8 is not None:
        formats.append(None)
    for tp, pp, cp, micro, fp8 in product(tensor, pipeline, context, (1, 2, 4, 8), formats):
        if world_size % (tp * pp * cp):
            continue
        for vpp in divisors(m.num_layers // pp) if pp > 1 else [1]:
            for sequence_parallel in (False, True) if tp > 1 else (False,):
                sizes = {"tp_size": tp, "pp_size": pp, "vpp_size": vpp, "cp_size": cp}
                overlaps = config.parallel.tp_comm_overlap and sequence_parallel
                yield sizes | {"sequence_parallel": sequence_parallel, "tp_comm_overlap": overlaps}, micro, fp8


def _variants(config: Config) -> Iterator[Config]:
    """Recomputation and sharding, on which no rule depends; communication overlaps where it can."""
    fp8 = config.precision.fp8
    through_gradients = fp8 is not None and fp8.param_gather and fp8.recipe == "mxfp8"
    for recompute, sharded in product(RECOMPUTE, (True, False)):
        parallel = {
            "distributed_optimizer": sharded,
            "overlap_grad_reduce": True,
            "overlap_param_gather": sharded and not through_gradients,
        }
        yield with_updates(config, parallel, {"recompute": recompute}, {})


def _weigh(outcome: SearchOutcome, candidate: Candidate) -> None:
    memory = candidate.forecast.memory
    if candidate.forecast.fits:
        outcome.fitting.append(candidate)
        return
    outcome.too_large[largest_part(memory)] += 1
    if outcome.smallest is None or memory.total < outcome.smallest.forecast.memory.total:
        outcome.smallest = candidate


def divisors(number: int) -> list[int]:
    return [index for index in range(1, number + 1) if number % index == 0]
