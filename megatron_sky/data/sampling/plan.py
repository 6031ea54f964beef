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
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol

import numpy as np

from megatron_sky.errors import ConfigError, Problem

BLOCK = 1024  # samples; the sources are mixed within one
SHARE_UNIT = 1 << 31  # shares are whole numbers out of this, so that they sum exactly
_FRACTION_BITS = 256  # of the inverse of a ramp; far under the least distance of two roots of such quadratics
_MASK = (1 << 64) - 1


class RampLike(Protocol):
    """A weight that moves in a straight line from the run's first sample to its last."""

    start: float
    end: float


Weight = float | RampLike


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


class Permutation:
    """A seeded bijection of `range(size)`, in constant memory: a Feistel network with cycle walking.

    Args:
        size: number of items, at least 1.
        key: whatever must give another order.
    """

    ROUNDS = 6

    def __init__(self, size: int, key: str):
        assert size >= 1, size
        self.size = size
        bits = max(4, (size - 1).bit_length())
        self._low_bits = bits // 2
        self._low_mask = (1 << self._low_bits) - 1
        self._high_mask = (1 << (bits - self._low_bits)) - 1
        digest = hashlib.shake_256(key.encode()).digest(8 * self.ROUNDS)
        self._keys = [int.from_bytes(digest[8 * i : 8 * i + 8], "little") for i in range(self.ROUNDS)]

    def __call__(self, item: int) -> int:
        assert 0 <= item < self.size, (item, self.size)
        item = self._network(item)
        while item >= self.size:  # walk the cycle back into the range; one more step on average, or 16 / size
            item = self._network(item)
        return item

    def _network(self, item: int) -> int:
        high, low = item >> self._low_bits, item & self._low_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                low ^= _mix(high, key) & self._low_mask
            else:
                high ^= _mix(low, key) & self._high_mask
        return high << self._low_bits | low


def _mix(value: int, key: int) -> int:
    """A 64-bit finaliser (multiply and fold) of value and key."""
    value = ((value ^ key) * 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ value >> 32) * 0xD6E8FEB86659FD93) & _MASK
    return value ^ value >> 32


@dataclass(frozen=True)
class _Node:
    """A subtree of sources; `start` and `end` are its shares in SHARE_UNITs at the two ends of the run."""

    start: int
    end: int
    leaf: int | None = None
    left: "_Node | None" = None
    right: "_Node | None" = None

    def split(self, first: int, count: int, total: int) -> np.ndarray:
        """Of the node's first m samples, how many the left child gets, for m in `first .. first + count`."""
        left = self.left
        if left.start * self.end == left.end * self.start:  # a constant ratio
            part, whole = (left.start, self.start) if self.start else (left.end, self.end)
            exact = np.int64 if 2 * (first + count) * part + whole < 1 << 63 else object
            numbers = np.arange(first, first + count + 1, dtype=exact)
            return ((2 * part * numbers + whole) // (2 * whole)).astype(np.int64)
        return np.array([self._split_ramp(number, total) for number in range(first, first + count + 1)], dtype=np.int64)

    def _split_ramp(self, number: int, total: int) -> int:
        """round(T_left(T_node^-1(number))) for T(n) = (start * n + (end - start) * n^2 / (2 * total)) / SHARE_UNIT."""
        left, slope, scale = self.left, self.end - self.start, 1 << _FRACTION_BITS
        # slope * n^2 + 2 * total * start * n = 2 * total * SHARE_UNIT * number, in the form that keeps all digits
        area = 2 * total * SHARE_UNIT * number
        past_end = area - total * total * (self.start + self.end)
        if past_end > 0:  # rounding gave the node more than its share of the whole run: the ratio stays as at the end
            part = total * total * (left.start + left.end) * self.end + left.end * past_end
            whole = 2 * total * SHARE_UNIT * self.end  # not 0: a node that ends at 0 has a constant ratio
            return (2 * part + whole) // (2 * whole)
        root = math.isqrt(((total * self.start) ** 2 + slope * area) * scale**2)
        time = area * scale**2 // (root + total * self.start * scale) if number else 0
        twice = 2 * total * left.start * time * scale + (left.end - left.start) * time * time
        return (twice + total * SHARE_UNIT * scale**2) // (2 * total * SHARE_UNIT * scale**2)


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
        block, at = self._block_of(number)
        source = int(block.sources[at])
        ordinal = block.before[source] + int(block.ranks[at])
        epoch, within = divmod(ordinal, self.sequences_per_epoch(source))
        return Location(source, epoch, self._epoch(source, epoch).order(within))

    def token_offset(self, location: Location) -> int:
        """First token, in the source's flat stream, of the sequence at `location`.

        What does not fill a last sequence is skipped in an epoch; a random offset each epoch decides how much of it at
        the front and how much at the end, so that no token is left out for ever.
        """
        return self._epoch(location.source, location.epoch).shift + location.sequence * self.seq_length

    def _epoch(self, number: int, epoch: int) -> "_Epoch":
        found = self._epochs.get((number, epoch))
        if found is None:
            source = self.sources[number]
            spare = (source.num_tokens - 1) % self.seq_length
            found = _Epoch(
                Permutation(self.sequences_per_epoch(number), f"{self.seed}/sequences/{source.name}/{epoch}"),
                Permutation(spare + 1, f"{self.seed}/offset/{source.name}")(epoch % (spare + 1)),
            )
            _keep(self._epochs, (number, epoch), found, 1024)
        return found

    def consumed(self, sample_count: int) -> list[int]:
        """Sequences each source has given once the run has used `sample_count` samples, earlier plans included."""
        assert self.first_sample <= sample_count, (sample_count, self.first_sample)
        done = sample_count - self.first_sample
        if done == self.length or (done % BLOCK == 0 and done < self.length):
            return self._counts(done)
        block, at = self._block_of(sample_count)
        here = np.bincount(block.sources[:at], minlength=len(self.sources))
        return [before + int(extra) for before, extra in zip(block.before, here, strict=True)]

    def epochs(self, sample_count: int) -> list[float]:
        """How often each source has been gone through after `sample_count` samples."""
        given = self.consumed(sample_count)
        return [count / max(1, self.sequences_per_epoch(i)) for i, count in enumerate(given)]

    def problems(self) -> list[Problem]:
        """What the plan can't keep: sources with less than one sequence, or used more often than `max_epochs`."""
        found = []
        for number, (source, count) in enumerate(zip(self.sources, self._counts(self.length), strict=True)):
            whole = self.sequences_per_epoch(number)
            where = f"data.train[{source.name}]"
            if count == source.consumed:
                continue
            if whole == 0:
                found.append(
                    Problem(
                        where,
                        f"holds {source.num_tokens:,} tokens, less than one sequence of {self.seq_length:,} + 1",
                        "leave the source out, or shorten model.seq_length",
                    )
                )
            elif count > self.max_epochs * whole:
                found.append(self._overuse(number, where, count, whole))
        return found

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
        starts = _normalised([source.start for source in self.sources])
        ends = _normalised([source.end for source in self.sources])
        done = (self.first_sample - self.ramp_from) / (self.total_samples - self.ramp_from)
        here = [start + (end - start) * done for start, end in zip(starts, ends, strict=True)]
        return list(zip(_apportion(here), _apportion(ends), strict=True))

    @cached_property
    def _tree(self) -> _Node:
        leaves = [_Node(start, end, leaf=i) for i, (start, end) in enumerate(self.shares) if start or end]
        return _best_tree(leaves)

    @property
    def count_error(self) -> float:
        """No source's count is ever further than this from the integral of its share, in samples."""
        return _error_bound(self._tree)

    def _counts(self, done: int) -> list[int]:
        """Sequences each source has given after the first `done` samples of this plan, before shuffling."""
        counts = [source.consumed for source in self.sources]
        pending = [(self._tree, done)]
        while pending:
            node, number = pending.pop()
            if node.leaf is not None:
                counts[node.leaf] += number
                continue
            left = int(node.split(number, 0, self.length)[0])
            pending += [(node.left, left), (node.right, number - left)]
        return counts

    def _block_of(self, number: int) -> tuple["_Block", int]:
        """The block that holds sample `number`, and the place in it. A block ends where the plan does."""
        assert self.first_sample <= number, (number, self.first_sample)
        number -= self.first_sample
        start = 0 if number < self.length else self.length
        first = start + (number - start) // BLOCK * BLOCK
        found = self._blocks.get(first)
        if found is None:
            found = self._make_block(first, min(BLOCK, self.length - first) if first < self.length else BLOCK)
            _keep(self._blocks, first, found, 64)
        return found, number - first

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
            left = node.split(number, len(slots), self.length)
            goes_left = np.diff(left) == 1
            pending += [
                (node.left, int(left[0]), slots[goes_left]),
                (node.right, number - int(left[0]), slots[~goes_left]),
            ]
        key = hashlib.sha256(f"{self.seed}/block/{self.first_sample}/{first}".encode()).digest()
        order = np.random.Generator(np.random.PCG64(int.from_bytes(key[:16], "little"))).random(size).argsort()
        sources = sources[order]
        ranks = np.empty(size, dtype=np.int64)
        for source in np.unique(sources):
            mine = np.flatnonzero(sources == source)
            ranks[mine] = np.arange(len(mine))
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
        start, end = (weight.start, weight.end) if hasattr(weight, "start") else (weight, weight)
        built.append(Source(name, float(start), float(end), num_tokens))
    return SamplingPlan(
        tuple(built), seq_length, total_samples, seed, max_epochs, first_sample=first_sample, ramp_from=first_sample
    )


@dataclass(frozen=True)
class RunPlan:
    """The order of a whole run's samples: plans that follow one another, each from its `first_sample` on."""

    segments: tuple[SamplingPlan, ...]

    @classmethod
    def of_sessions(cls, sessions: Sequence[SamplingPlan]) -> "RunPlan":
        """The chain of the sessions' plans, each built as if it stood alone."""
        chain = list(sessions[:1])
        for begins, plan in pairwise(sessions):
            chain.append(_follow(chain[-1], plan, begins.total_samples))
        return cls(tuple(chain))

    @classmethod
    def from_fingerprint(cls, saved: Mapping, max_epochs: float) -> "RunPlan":
        """The plan that `fingerprint` described."""
        return cls(tuple(_segment(each, max_epochs) for each in saved["segments"]))

    @property
    def sources(self) -> tuple[Source, ...]:
        return self.segments[-1].sources

    @property
    def seq_length(self) -> int:
        return self.segments[0].seq_length

    @property
    def total_samples(self) -> int:
        return self.segments[-1].total_samples

    def segment(self, number: int) -> SamplingPlan:
        """The plan that gives sample `number`."""
        return self.segments[self._index(number)]

    def _index(self, number: int) -> int:
        assert number >= self.segments[0].first_sample, (number, self.segments[0].first_sample)
        return bisect_right(self.segments, number, key=lambda segment: segment.first_sample) - 1

    def locate(self, number: int) -> Location:
        """The place of sample `number`."""
        return self.segment(number).locate(number)

    def token_offset(self, location: Location) -> int:
        """First token, in the source's flat stream, of the sequence at `location`."""
        return self.segments[-1].token_offset(location)

    def consumed(self, sample_count: int) -> list[int]:
        """Sequences each of `sources` has given once the run has used `sample_count` samples."""
        given = self._given(sample_count)
        return [given.get(source.name, 0) for source in self.sources]

    def tokens_given(self, sample_count: int) -> dict[str, int]:
        """Tokens of every source, those that left the mixture included, in the first `sample_count` samples."""
        return {name: count * self.seq_length for name, count in self._given(sample_count).items()}

    def _given(self, sample_count: int) -> dict[str, int]:
        segment = self.segment(max(sample_count - 1, self.segments[0].first_sample))
        given = {source.name: source.consumed for source in segment.retired}
        return given | dict(
            zip((source.name for source in segment.sources), segment.consumed(sample_count), strict=True)
        )

    def epochs(self, sample_count: int) -> list[float]:
        """How often each of `sources` has been gone through after `sample_count` samples."""
        last = self.segments[-1]
        return [count / max(1, last.sequences_per_epoch(i)) for i, count in enumerate(self.consumed(sample_count))]

    def problems(self) -> list[Problem]:
        """What the plan can't keep; a source is told with the first session that asks too much of it."""
        found: dict[str, Problem] = {}
        for segment in self.segments:
            for problem in segment.problems():
                found.setdefault(problem.where, problem)
        return list(found.values())

    def fingerprint(self) -> dict:
        """All that decides the order, as plain values; two plans with equal fingerprints give equal samples."""
        return {"version": 2, "segments": [segment.fingerprint() for segment in self.segments]}


def tokens_given(saved: Mapping, sample_count: int) -> dict[str, int]:
    """Tokens that each source had given after `sample_count` samples of the run whose plan's fingerprint is `saved`.

    Empty where the order was not a plan's (megatron-core's), or no training made the checkpoint.
    """
    return RunPlan.from_fingerprint(saved, math.inf).tokens_given(sample_count) if "segments" in saved else {}


def continue_plan(saved: Mapping, plan: RunPlan, used_samples: int) -> RunPlan:
    """The plan of a run that is resumed: the saved one, or from here on another where the recipe's mixture was changed.

    In a new segment each source goes on after the sequences it has given, whatever its weight now; new sources begin,
    and those that left are remembered. Sessions still to come follow as the recipe has them.

    Args:
        saved: the `fingerprint` of the plan the run had.
        plan: the recipe's plan, from the run's first sample on.
        used_samples: samples the run has used.

    Raises:
        ConfigError: what may not change did: the seed, the sequence length, the tokens of a source, `data.sampling`.
    """
    check_sampling(saved, "plan")
    before = RunPlan.from_fingerprint(saved, plan.segments[0].max_epochs)
    last = before._index(max(used_samples - 1, before.segments[0].first_sample))
    current = before.segments[last]
    if problems := _breaks(current, plan.segments[-1]):
        raise ConfigError(problems)
    if used_samples >= plan.total_samples:
        return RunPlan(before.segments[: last + 1])
    now = plan._index(max(used_samples, plan.segments[0].first_sample))
    chain = list(before.segments[: last + 1])
    if _recipe(current) != _recipe(plan.segments[now]):
        chain.append(_follow(current, plan.segments[now], used_samples))
    for ends, segment in pairwise(plan.segments[now:]):
        chain.append(_follow(chain[-1], segment, ends.total_samples))
    return RunPlan(tuple(chain))


def check_sampling(saved: Mapping, sampling: str) -> None:
    """Raises ConfigError where the run whose order is `saved` can't go on in the order of `data.sampling: <sampling>`:
    neither knows which sequences the other has given."""
    before = saved.get("sampling", "plan" if "segments" in saved else None)
    if before is None:
        rule = "holds a checkpoint without an order of samples, as no training made it"
        raise ConfigError(Problem("train.run_dir", rule, "start a new run from its weights with checkpoint.init_from"))
    if before != sampling:
        rule = f"was {before} when the run began; a change would repeat and skip data"
        mend = f"set data.sampling={before}, or start a new run from the weights with checkpoint.init_from"
        raise ConfigError(Problem("data.sampling", rule, mend, sampling))


def _follow(before: SamplingPlan, plan: SamplingPlan, first_sample: int) -> SamplingPlan:
    """`plan` from `first_sample` on, every source going on after what it has given in `before`."""
    given = dict(zip((source.name for source in before.sources), before.consumed(first_sample), strict=True))
    known = {source.name: source for source in before.retired}
    known |= {source.name: replace(source, consumed=given[source.name]) for source in before.sources}
    sources = tuple(
        replace(source, consumed=known[source.name].consumed if source.name in known else 0) for source in plan.sources
    )
    present = {source.name for source in sources}
    retired = tuple(source for name, source in known.items() if name not in present)
    return replace(plan, sources=sources, first_sample=first_sample, retired=retired, _blocks={}, _epochs={})


def _segment(saved: Mapping, max_epochs: float) -> SamplingPlan:
    return SamplingPlan(
        sources=tuple(Source(**each) for each in saved["sources"]),
        seq_length=saved["seq_length"],
        total_samples=saved["total_samples"],
        seed=saved["seed"],
        max_epochs=max_epochs,
        first_sample=saved["first_sample"],
        retired=tuple(Source(**each) for each in saved["retired"]),
        ramp_from=saved["ramp_from"],
    )


def _recipe(plan: SamplingPlan) -> tuple:
    """What a recipe decides of a plan."""
    return plan.ramp_from, plan.total_samples, tuple(replace(source, consumed=0) for source in plan.sources)


def _breaks(before: SamplingPlan, plan: SamplingPlan) -> list[Problem]:
    mend = "restore it, or start a new run from the weights with checkpoint.init_from"
    problems = [
        Problem(where, f"was {old} when the run began; a change would repeat and skip data", mend, new)
        for where, old, new in (
            ("data.seed", before.seed, plan.seed),
            ("model.seq_length", before.seq_length, plan.seq_length),
        )
        if old != new
    ]
    tokens = {source.name: source.num_tokens for source in (*before.retired, *before.sources)}
    problems += [
        Problem(
            f"data.train[{source.name}]",
            f"held {tokens[source.name]:,} tokens before, now {source.num_tokens:,}: its order would be another",
            "restore the file, or give the new one another name",
        )
        for source in plan.sources
        if tokens.get(source.name, source.num_tokens) != source.num_tokens
    ]
    return problems


def _apportion(weights: Sequence[float]) -> list[int]:
    """Weights as whole numbers that sum to SHARE_UNIT: rounded down, what is left goes to the largest remainders."""
    exact = [weight * SHARE_UNIT for weight in _normalised(weights)]
    parts = [math.floor(value) for value in exact]
    rest = SHARE_UNIT - sum(parts)
    by_remainder = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for i in range(rest):
        parts[by_remainder[i % len(parts)]] += 1
    return parts


def _normalised(weights: Sequence[float]) -> list[float]:
    total = math.fsum(weights)
    assert total > 0, weights
    return [weight / total for weight in weights]


def _join(left: _Node, right: _Node) -> _Node:
    return _Node(left.start + right.start, left.end + right.end, left=left, right=right)


def _best_tree(leaves: list[_Node]) -> _Node:
    """The tree with the smallest error bound among those that set the s smallest sources apart at the top, one a level,
    and pair the rest as Huffman's code does."""
    ordered = sorted(leaves, key=lambda node: (node.start + node.end, node.leaf))
    candidates = []
    for apart in range(len(ordered)):
        tree = _huffman(ordered[apart:])
        for leaf in reversed(ordered[:apart]):
            tree = _join(leaf, tree)
        candidates.append(tree)
    return min(candidates, key=_error_bound)


def _huffman(nodes: list[_Node]) -> _Node:
    nodes = list(nodes)
    while len(nodes) > 1:
        nodes.sort(key=lambda node: node.start + node.end)
        nodes = [_join(nodes[0], nodes[1]), *nodes[2:]]
    return nodes[0]


def _error_bound(tree: _Node) -> float:
    """Half a sample is lost at a node's own split, and of what its parent is off, its largest share of the parent.

    The shares are taken where each is largest: on a ramp, an error of a parent moves its child to another moment.
    """
    worst, pending = 0.0, [(tree, 0.0)]
    while pending:
        node, off = pending.pop()
        worst = max(worst, off)
        if node.leaf is None:
            pending += [(child, 0.5 + off * _largest_ratio(child, node)) for child in (node.left, node.right)]
    return worst


def _largest_ratio(child: _Node, node: _Node) -> float:
    """Of two straight lines the ratio is largest at one of the ends."""
    ends = [(child.start, node.start), (child.end, node.end)]
    return max((part / whole for part, whole in ends if whole), default=0.0)
