"""What a recipe's mixture gives over its run: tokens, share and epochs of each source, before anything is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_sky.config.schema import DataConfig, SourceConfig
from megatron_sky.config.units import format_count
from megatron_sky.data.sampling.plan import SamplingPlan, Weight, build_plan, ends_of
from megatron_sky.data.sampling.run_plan import RunPlan
from megatron_sky.data.sampling.shares import SHARE_UNIT
from megatron_sky.data.tokens.indexed import IndexedTokens
from megatron_sky.data.tokens.meta import checked_meta
from megatron_sky.errors import ConfigError, Problem


@dataclass(frozen=True)
class MixtureRow:
    """One source: tokens it holds, tokens it gives over the run, its share at the ends and of the whole, its epochs."""

    name: str
    num_tokens: int
    given_tokens: int
    share_start: float
    share_end: float
    share: float
    epochs: float


@dataclass(frozen=True)
class MixtureTable:
    """The rows, and the sources that can't give what is asked."""

    rows: tuple[MixtureRow, ...]
    problems: tuple[Problem, ...]

    @property
    def text(self) -> str:
        """A table for a terminal."""
        width = max(6, *(len(row.name) for row in self.rows))
        lines = [f"{'source':<{width}} {'holds':>10} {'gives':>10} {'share':>7} {'start':>7} {'end':>7} {'epochs':>7}"]
        lines += [
            f"{row.name:<{width}} {format_count(row.num_tokens):>10} {format_count(row.given_tokens):>10} "
            f"{row.share:>7.2%} {row.share_start:>7.2%} {row.share_end:>7.2%} {row.epochs:>7.3f}"
            for row in self.rows
        ]
        return "\n".join([*lines, *map(str, self.problems)])


@dataclass(frozen=True)
class SessionMixture:
    """The part of a run that draws from one mixture: samples `first_sample` to `end_sample`.

    `weights`: by source name, each a number or a ramp; sources that are not named give nothing. None: the weights that
    stand at the sources themselves.
    """

    first_sample: int
    end_sample: int
    weights: Mapping[str, Weight] | None = None


def open_plan(config: DataConfig, *, seq_length: int, sessions: Sequence[SessionMixture]) -> RunPlan:
    """The plan of a recipe's sources, from the sizes of their files.

    Raises:
        ConfigError: no source, or no weight above 0.
        DataError: a file is missing or damaged, or is not what its index or its meta file says.
    """
    sizes = []
    for source in config.train:
        with IndexedTokens(source.path) as file:
            checked_meta(file)
            sizes.append(file.num_tokens)
    return plan_of(config, sizes, seq_length=seq_length, sessions=sessions)


def plan_of(
    config: DataConfig, sizes: Sequence[int], *, seq_length: int, sessions: Sequence[SessionMixture]
) -> RunPlan:
    """The plan of a run through its sessions; `sizes`: tokens in each source's file.

    Raises:
        ConfigError: no source, or a session with no weight above 0.
    """
    check_weights(config, sessions)
    return RunPlan.of_sessions(
        [
            build_plan(
                [
                    (source.name, _weight(source, session), size)
                    for source, size in zip(config.train, sizes, strict=True)
                ],
                seq_length=seq_length,
                first_sample=session.first_sample,
                total_samples=session.end_sample,
                seed=config.seed,
                max_epochs=config.max_epochs,
            )
            for session in sessions
        ]
    )


def _weight(source: SourceConfig, session: SessionMixture) -> Weight:
    return source.weight if session.weights is None else session.weights.get(source.name, 0.0)


def mixture_table(plan: SamplingPlan) -> MixtureTable:
    """Each source's part in a plan; epochs count what it gave before as well."""
    given, epochs = plan.consumed(plan.total_samples), plan.epochs(plan.total_samples)
    return MixtureTable(
        tuple(
            MixtureRow(
                name=source.name,
                num_tokens=source.num_tokens,
                given_tokens=(given[i] - source.consumed) * plan.seq_length,
                share_start=plan.shares[i][0] / SHARE_UNIT,
                share_end=plan.shares[i][1] / SHARE_UNIT,
                share=(given[i] - source.consumed) / plan.length,
                epochs=epochs[i],
            )
            for i, source in enumerate(plan.sources)
        ),
        tuple(plan.problems()),
    )


def check_weights(config: DataConfig, sessions: Sequence[SessionMixture]) -> None:
    """Raises ConfigError where there is nothing to draw from."""
    if not config.train:
        raise ConfigError(Problem("data.train", "names no source", "list at least one {name, path, weight}"))
    for session in sessions:
        weights = [ends_of(_weight(source, session)) for source in config.train]
        for end, at in enumerate((session.first_sample, session.end_sample)):
            if sum(weight[end] for weight in weights) <= 0:
                where = "data.train" if session.weights is None else "sessions.weights"
                raise ConfigError(
                    Problem(where, f"all weights are 0 at sample {at:,}", "give a source a weight above 0")
                )
