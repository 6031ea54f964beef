"""The order of a whole run's samples: plans that follow one another, across sessions and changes of the mixture."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from megatron_sky.data.sampling.plan import Location, SamplingPlan, Source
from megatron_sky.errors import CheckpointError, ConfigError, Problem


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
        try:
            return cls(tuple(_segment(segment, max_epochs) for segment in saved["segments"]))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise CheckpointError(
                f"train_state.json of the checkpoint: data is no plan of samples: {type(error).__name__}: {error}\n"
                "  fix: restore the checkpoint from a copy"
            ) from error

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

    def source_of(self, number: int) -> int:
        """The place among `sources` of the source of sample `number`."""
        return self.locate(number).source

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
        problems: dict[str, Problem] = {}
        for segment in self.segments:
            for problem in segment.problems():
                problems.setdefault(problem.where, problem)
        return list(problems.values())

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


def describe_change(saved: Mapping, plan: RunPlan, used_samples: int) -> str:
    """What the `plan` of a resumed run changes after `used_samples` samples of the `saved` one; empty: nothing."""
    if plan.fingerprint() == dict(saved):
        return ""
    now, given = plan.segment(used_samples), plan.tokens_given(used_samples)
    known = {source.name for source in RunPlan.from_fingerprint(saved, math.inf).segment(used_samples).sources}
    known |= {name for name, count in given.items() if count}
    new = [f"{source.name} begins at its first token" for source in now.sources if source.name not in known]
    gone = [source for source in now.retired if source.name in known]
    left = [f"{source.name} has left after {source.consumed * now.seq_length:,} tokens" for source in gone]
    renamed = [
        f"where {source.name} is only {old.name} under a new name, restore the old one: its texts would be repeated"
        for source in now.sources
        for old in gone
        if source.name not in known and source.num_tokens == old.num_tokens
    ]
    going_on = ", ".join(source.name for source in now.sources if source.name in known)
    return "; ".join([*left, *new, *renamed] + ([f"from where they stopped go on {going_on}"] if going_on else []))


def check_sampling(saved: Mapping, sampling: str) -> None:
    """Raises ConfigError where the run whose order is `saved` can't go on in the order of `data.sampling: <sampling>`:
    neither knows which sequences the other has given."""
    before = saved.get("sampling", "plan" if "segments" in saved else None)
    if before is None:
        rule = "holds a checkpoint without an order of samples, as no training made it"
        raise ConfigError(Problem("train.run_dir", rule, "start a new run from its weights with checkpoint.init_from"))
    if before != sampling:
        rule = f"was {before} when the run began; a change would repeat and skip data"
        fix = f"set data.sampling={before}, or start a new run from the weights with checkpoint.init_from"
        raise ConfigError(Problem("data.sampling", rule, fix, sampling))


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
        sources=tuple(Source(**source) for source in saved["sources"]),
        seq_length=saved["seq_length"],
        total_samples=saved["total_samples"],
        seed=saved["seed"],
        max_epochs=max_epochs,
        first_sample=saved["first_sample"],
        retired=tuple(Source(**source) for source in saved["retired"]),
        ramp_from=saved["ramp_from"],
    )


def _recipe(plan: SamplingPlan) -> tuple:
    """What a recipe decides of a plan."""
    return plan.ramp_from, plan.total_samples, tuple(replace(source, consumed=0) for source in plan.sources)


def _breaks(before: SamplingPlan, plan: SamplingPlan) -> list[Problem]:
    fix = "restore it, or start a new run from the weights with checkpoint.init_from"
    problems = [
        Problem(where, f"was {old} when the run began; a change would repeat and skip data", fix, new)
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
