"""What a recipe's mixture gives over its run: tokens, share and epochs of each source, before anything is started."""

from dataclasses import dataclass

from megatron_sky.config.schema import DataConfig
from megatron_sky.config.units import format_count
from megatron_sky.data.indexed import IndexedTokens
from megatron_sky.data.plan import SHARE_UNIT, SamplingPlan, build_plan
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


def open_plan(config: DataConfig, *, seq_length: int, total_samples: int) -> SamplingPlan:
    """The plan of a recipe's sources, from the sizes of their files.

    Raises:
        ConfigError: no source, or no weight above 0.
        DataError: a file is missing or damaged.
    """
    check_weights(config)
    sources = []
    for source in config.train:
        with IndexedTokens(source.path) as file:
            sources.append((source.name, source.weight, file.num_tokens))
    return build_plan(
        sources, seq_length=seq_length, total_samples=total_samples, seed=config.seed, max_epochs=config.max_epochs
    )


def mixture_table(plan: SamplingPlan) -> MixtureTable:
    """Each source's part in a plan."""
    given, epochs = plan.consumed(plan.total_samples), plan.epochs(plan.total_samples)
    total = sum(given)
    return MixtureTable(
        tuple(
            MixtureRow(
                name=source.name,
                num_tokens=source.num_tokens,
                given_tokens=given[i] * plan.seq_length,
                share_start=plan.shares[i][0] / SHARE_UNIT,
                share_end=plan.shares[i][1] / SHARE_UNIT,
                share=given[i] / total,
                epochs=epochs[i],
            )
            for i, source in enumerate(plan.sources)
        ),
        tuple(plan.problems()),
    )


def check_weights(config: DataConfig) -> None:
    """Raises ConfigError where there is nothing to draw from."""
    if not config.train:
        raise ConfigError(Problem("data.train", "names no source", "list at least one {name, path, weight}"))
    for end in ("start", "end"):
        if sum(getattr(source.weight, end, source.weight) for source in config.train) <= 0:
            raise ConfigError(
                Problem("data.train", f"all weights are 0 at the run's {end}", "give a source a weight above 0")
            )
