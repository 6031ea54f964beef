"""`train --dry-run --rehearse`: the plan as ever, then the rehearsal, then what data files are lacking."""

from megatron_sky.config import Config
from megatron_sky.distributed.topology import Layout
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.planner.rehearsal import process, table
from megatron_sky.trainer import dry_run


def print_rehearsal(
    config: Config, world_size: int, *, rank: int | None = None, stage: int | None = None, as_json: bool = False
) -> None:
    """Prints the rehearsal of `rank`, of `stage`'s first rank, or of every stage's; `as_json`: and nothing else.

    Raises the SkyError of all that would stop the run, data files last.
    """
    process.choose_backend(config)
    seen = dry_run.look(config, world_size)
    ranks = _ranks(config, world_size, rank, stage)
    if not as_json:
        dry_run.print_job(config, world_size, seen)
    results = process.rehearse_all([process.Request(config, world_size, rank) for rank in ranks])
    print(table.as_json(results) if as_json else table.as_text(results))
    seen.raise_errors()
    if not as_json:
        print("every check passed")


def _ranks(config: Config, world_size: int, rank: int | None, stage: int | None) -> list[int]:
    first_ranks = process.stage_ranks(config, world_size)
    layout = Layout.of(config.parallel, world_size)
    if rank is not None and not rank < world_size:
        rule = f"there are {world_size} ranks ({layout})"
        raise ConfigError(Problem("--rank", rule, f"use 0 to {world_size - 1}, or --world-size", rank))
    if stage is not None and not stage < layout.pp_size:
        rule = f"there are {layout.pp_size} pipeline stages ({layout})"
        raise ConfigError(Problem("--stage", rule, f"use 0 to {layout.pp_size - 1}", stage))
    if rank is not None:
        return [rank]
    return first_ranks if stage is None else [first_ranks[stage]]
