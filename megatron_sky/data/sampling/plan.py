"""Which sequence comes next: arithmetic from a sample number to (source, epoch, sequence), with no index to build.

A run of `total_samples` samples draws from several sources whose shares are constant or move in a straight line.
Nothing is stored that grows with the run or the data: any sample is located from its number alone, so a resumed run,
whatever its batch or data-parallel size, goes on at exactly the next sample. Three steps lead there:

1. Counts. `T_i(n)`, the integral of source i's share over the first n samples, is a quadratic with rational
   coefficients. Rounding each on its own would neither sum to n nor grow steadily. So the sources are the leaves of a
   binary tree: a node that has m of the first n samples hands `round(T_left(T_node^-1(m)))` of them to its left child,
   the rest to the right one. That function never falls and never grows by more than 1 a sample, so every count is
   exact, steady, and in closed form; `count_error` bounds its distance from the integral.
2. Order. Within a block of `BLOCK` samples the sources are shuffled by a seeded permutation. A source's own samples
   stay in order, so what it has given at any moment is a prefix of its stream.
3. Sequences. A source's c-th sample is sequence `permutation(c mod q)` of epoch `c // q`, where q is its number of
   whole sequences. The permutations are Feistel networks with cycle walking: no memory, any size.

A run in sessions, or one whose mixture was changed in mid-run, is a chain of such plans (`RunPlan`): each begins where
the one before it ends, and every source goes on after what it has given.

Traded: the order differs from megatron-core's `GPTDataset`, and a sample costs some microseconds of arithmetic.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np

from megatron_sky.data.sampling.permutation import Permutation
from megatron_sky.data.sampling.shares import Node, apportion, best_tree, error_bound, normalised
from megatron_sky.errors import Problem

BLOCK = 1024  # samples; the sources are mixed within one


class RampLike(Protocol):
    """A weight that moves in a straight line from the run's first sample to its last."""

    @property
    def start(self) -> float: ...
    @property
    def end(self) -> float: ...


Weight = float | RampLike


def ends_of(weight: Weight) -> tuple[float, float]:
    """A weight at the run's first sample and at its last."""
    return (weight, weight) if isinstance(weight, int | float) else (weight.start, weight.end)


@dataclass(frozen=True)
class Location:
    """Where a sample lies: the source's number, how often the source was gone through before, which sequence."""

    source: int
    epoch: int
    sequence: int


@dataclass(frozen=True)
class Source:
    """One source of the mixture.

    Attributes:
        name: its name; it seeds the order of its sequences, so adding or removing other sources does not change it.
        start, end: weights at the first and after the last sample of the run, as the recipe gives them.
        num_tokens: tokens in its flat stream.
        consumed: sequences it had given before this plan began (a blend that was changed in mid-run).
    """

    name: str
    start: float
    end: float
    num_tokens: int
    consumed: int = 0


@dataclass(frozen=True)
class SamplingPlan:
    """The order of the samples `first_sample` to `total_samples` of a run; build it with `build_plan`.

    A plan that begins in mid-run (the next session, a changed blend) takes over the run's numbering, and each source
    goes on after its `consumed` sequences. `retired` are sources of earlier plans that are not in this one; should one
    come back, it goes on too. Ramps go from `ramp_from` (the session's first sample) to `total_samples`. Samples beyond
    the end, which a run needs that has stepped over some, are drawn at the shares of the end.
    """

    sources: tuple[Source, ...]
    seq_length: int
    total_samples: int
    seed: int
    max_epochs: float
    first_sample: int = 0
    retired: tuple[Source, ...] = ()
    ramp_from: int = 0
    _blocks: dict = field(default_factory=dict, repr=False, compare=False)
    _epochs: dict = field(default_factory=dict, repr=False, compare=False)

    @property
    def length(self) -> int:
        """Samples in this plan."""
        return self.total_samples - self.first_sample

    def sequences_per_epoch(self, source: int) -> int:
        """Whole sequences in a source: `seq_length + 1` tokens each, at a stride of `seq_length`."""
        return max(0, (self.sources[source].num_tokens - 1) // self.seq_length)

    def locate(self, number: int) -> Location:
        """The place of sample `number`."""
        source, ordinal = self._given(number)
        epoch, within = divmod(ordinal, self.sequences_per_epoch(source))
        return Location(source, epoch, self._epoch(source, epoch).order(within))

    def token_offset(self, location: Location) -> int:
        """First token, in the source's flat stream, of the sequence at `location`.

        What does not fill a last sequence is skipped in an epoch; a random offset each epoch decides how much of it at
        the front and how much at the end, so that no token is left out for ever.
        """
        return self._epoch(location.source, location.epoch).shift + location.sequence * self.seq_length

    def _epoch(self, number: int, epoch: int) -> "_Epoch":
        cached = self._epochs.get((number, epoch))
        if cached is None:
            source = self.sources[number]
            spare = (source.num_tokens - 1) % self.seq_length
            cached = _Epoch(
                Permutation(self.sequences_per_epoch(number), f"{self.seed}/sequences/{source.name}/{epoch}"),
                Permutation(spare + 1, f"{self.seed}/offset/{source.name}")(epoch % (spare + 1)),
            )
            _keep(self._epochs, (number, epoch), cached, 1024)
        return cached

    def consumed(self, sample_count: int) -> list[int]:
        """Sequences each source has given once the run has used `sample_count` samples, earlier plans included."""
        assert self.first_sample <= sample_count, (sample_count, self.first_sample)
        done = sample_count - self.first_sample
        if done == self.length or (done % BLOCK == 0 and done < self.length):
            return self._counts(done)
        first, size, at = self._place_of(sample_count)
        block = self._block(first, size)
        here = np.bincount(block.sources[:at], minlength=len(self.sources))
        return [before + int(extra) for before, extra in zip(block.before, here, strict=True)]

    def epochs(self, sample_count: int) -> list[float]:
        """How often each source has been gone through after `sample_count` samples."""
        given = self.consumed(sample_count)
        return [count / max(1, self.sequences_per_epoch(i)) for i, count in enumerate(given)]

    def problems(self) -> list[Problem]:
        """What the plan can't keep: sources with less than one sequence, or used more often than `max_epochs`."""
        problems = []
        for number, (source, count) in enumerate(zip(self.sources, self._counts(self.length), strict=True)):
            whole = self.sequences_per_epoch(number)
            where = f"data.train[{source.name}]"
            if count == source.consumed:
                continue
            if whole == 0:
                problems.append(
                    Problem(
                        where,
                        f"holds {source.num_tokens:,} tokens, less than one sequence of {self.seq_length:,} + 1",
                        "leave the source out, or shorten model.seq_length",
                    )
                )
            elif count > self.max_epochs * whole:
                problems.append(self._overuse(number, where, count, whole))
        return problems

    def _overuse(self, number: int, where: str, count: int, whole: int) -> Problem:
        allowed = math.floor(self.max_epochs * whole)
        low, high = 0, self.length  # counts(low) <= allowed < counts(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._counts(middle)[number] > allowed else (middle, high)
        tokens = (self.first_sample + low) * self.seq_length
        share = allowed / count
        return Problem(
            where,
            f"would be used {count / whole:.2f} times, more than data.max_epochs = {self.max_epochs:g}; "
            f"the limit is reached at token {tokens:,} of {self.total_samples * self.seq_length:,}",
            f"lower its weight to about {share:.3g} of what it is, shorten train.tokens to {tokens:,}, add text to the "
            "source, or raise data.max_epochs",
        )

    def fingerprint(self) -> dict:
        """All that decides the order, as plain values; two plans with equal fingerprints give equal samples."""
        return {
            "seed": self.seed,
            "seq_length": self.seq_length,
            "total_samples": self.total_samples,
            "first_sample": self.first_sample,
            "sources": [asdict(source) for source in self.sources],
            "retired": [asdict(source) for source in self.retired],
            "ramp_from": self.ramp_from,
        }

    @cached_property
    def shares(self) -> list[tuple[int, int]]:
        """Each source's share at the plan's two ends, in SHARE_UNITs."""
        starts = normalised([source.start for source in self.sources])
        ends = normalised([source.end for source in self.sources])
        done = (self.first_sample - self.ramp_from) / (self.total_samples - self.ramp_from)
        here = [start + (end - start) * done for start, end in zip(starts, ends, strict=True)]
        return list(zip(apportion(here), apportion(ends), strict=True))

    @cached_property
    def _tree(self) -> Node:
        leaves = [Node(start, end, leaf=i) for i, (start, end) in enumerate(self.shares) if start or end]
        return best_tree(leaves)

    @property
    def count_error(self) -> float:
        """No source's count is ever further than this from the integral of its share, in samples."""
        return error_bound(self._tree)

    def _counts(self, done: int) -> list[int]:
        """Sequences each source has given after the first `done` samples of this plan, before shuffling."""
        counts = [source.consumed for source in self.sources]
        pending = [(self._tree, done)]
        while pending:
            node, number = pending.pop()
            if node.leaf is not None:
                counts[node.leaf] += number
                continue
            left = node.split_one(number, self.length)
            pending += [(node.left, left), (node.right, number - left)]
        return counts

    def _given(self, number: int) -> tuple[int, int]:
        """(source, its sequences before this one) of sample `number`. Of a block that is asked for the first time only
        what leads to the sample is computed: who reads at random seldom asks twice."""
        first, size, at = self._place_of(number)
        if first not in self._blocks:
            _keep(self._blocks, first, None, 64)
            return self._one_of_block(first, size, at)
        block = self._block(first, size)
        source = int(block.sources[at])
        return source, block.before[source] + int(block.ranks[at])

    def _place_of(self, number: int) -> tuple[int, int, int]:
        """(first sample of its block, that block's size, the place in it). A block ends where the plan does."""
        assert self.first_sample <= number, (number, self.first_sample)
        number -= self.first_sample
        start = 0 if number < self.length else self.length
        first = start + (number - start) // BLOCK * BLOCK
        return first, min(BLOCK, self.length - first) if first < self.length else BLOCK, number - first

    def _block(self, first: int, size: int) -> "_Block":
        block = self._blocks.get(first)
        if block is None:
            block = self._make_block(first, size)
            _keep(self._blocks, first, block, 64)
        return block

    def _one_of_block(self, first: int, size: int, at: int) -> tuple[int, int]:
        """`_given` of one sample, by the one path of the tree that its slot takes."""
        order = self._order_of_block(first, size)
        is_before = np.zeros(size, dtype=bool)
        is_before[order[:at]] = True
        node, number, slots = self._tree, first, np.arange(size)
        while node.leaf is None:
            left, goes_left = self._parted(node, number, slots)
            if goes_left[slots.searchsorted(order[at])]:
                node, number, slots = node.left, left, slots[goes_left]
            else:
                node, number, slots = node.right, number - left, slots[~goes_left]
        return node.leaf, self.sources[node.leaf].consumed + number + int(is_before[slots].sum())

    def _parted(self, node: Node, number: int, slots: np.ndarray) -> tuple[int, np.ndarray]:
        """How many of a node's first `number` samples its left child has, and which of the next, in `slots`, too."""
        counts_left = node.split(number, len(slots), self.length)
        return int(counts_left[0]), counts_left[1:] != counts_left[:-1]

    def _order_of_block(self, first: int, size: int) -> np.ndarray:
        """The slot at each place of a block."""
        key = hashlib.sha256(f"{self.seed}/block/{self.first_sample}/{first}".encode()).digest()
        return np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little"))).random(size).argsort()

    def _make_block(self, first: int, size: int) -> "_Block":
        sources = np.empty(size, dtype=np.int64)
        counts = [source.consumed for source in self.sources]
        pending = [(self._tree, first, np.arange(size))]
        while pending:
            node, number, slots = pending.pop()
            if node.leaf is not None:
                sources[slots] = node.leaf
                counts[node.leaf] += number
                continue
            if not len(slots):
                left = node.split_one(number, self.length)
                pending += [(node.left, left, slots), (node.right, number - left, slots)]
                continue
            left, goes_left = self._parted(node, number, slots)
            pending += [(node.left, left, slots[goes_left]), (node.right, number - left, slots[~goes_left])]
        sources = sources[self._order_of_block(first, size)]
        by_source = sources.argsort(kind="stable")
        given = np.bincount(sources)
        ranks = np.empty(size, dtype=np.int64)
        ranks[by_source] = np.arange(size) - np.repeat(given.cumsum() - given, given)
        return _Block(sources, ranks, counts)


@dataclass(frozen=True)
class _Block:
    """The samples of one block: each one's source, and how many of the same source come before it in the block; and how
    many sequences each source had given before the block."""

    sources: np.ndarray
    ranks: np.ndarray
    before: list[int]


@dataclass(frozen=True)
class _Epoch:
    """The order of a source's sequences in one epoch, and the token at which the first of them begins."""

    order: Permutation
    shift: int


def _keep(cache: dict, key: object, value: object, limit: int) -> None:
    """Add to a cache, the oldest entries leaving; threads may do so at once, as each step is whole by itself."""
    cache[key] = value
    while len(cache) > limit:
        cache.pop(next(iter(list(cache))), None)


def build_plan(
    sources: Sequence[tuple[str, Weight, int]],
    *,
    seq_length: int,
    total_samples: int,
    seed: int,
    max_epochs: float,
    first_sample: int = 0,
) -> SamplingPlan:
    """The plan for a mixture, of a whole run or of one session.

    Args:
        sources: (name, weight or ramp, tokens in the source) each. Weights are normalised to sum to 1 at the start and
            at the end; in between every share moves in a straight line.
        seq_length: tokens a sample feeds to the model.
        total_samples: samples of the run up to its end, or the session's, at which ramps reach their end.
        first_sample: at which they begin; a session's first.
        seed: of the order.
        max_epochs: how often a source may be gone through; see `SamplingPlan.problems`.
    """
    assert sources and total_samples > first_sample and seq_length >= 1
    built = []
    for name, weight, num_tokens in sources:
        start, end = ends_of(weight)
        built.append(Source(name, float(start), float(end), num_tokens))
    return SamplingPlan(
        tuple(built), seq_length, total_samples, seed, max_epochs, first_sample=first_sample, ramp_from=first_sample
    )
