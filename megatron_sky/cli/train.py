"""`megatron-sky train` and `megatron-sky quickstart`."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from megatron_sky.cli._common import Nproc, Recipe, check_nproc


def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for the corpus, the tokenizer and the run.")] = Path(
        "runs/quickstart"
    ),
    seed: Annotated[int, typer.Option(help="Seed of corpus, weights and data order.")] = 1234,
) -> None:
    """Corpus, tokenizer, training at TP2, resume at PP2, report: the whole road in minutes, on any machine."""
    from megatron_sky.quickstart import run

    run(out, seed=seed)


def train(
    recipe: Recipe,
    nproc: Nproc = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; start nothing.")
    ] = False,
    world_size: Annotated[int | None, typer.Option(min=1, help="With --dry-run: plan for this many ranks.")] = None,
    session: Annotated[str | None, typer.Option(help="Train only this session of the recipe (train.session).")] = None,
) -> None:
    """Train, or continue, the run that the recipe describes.

    Ranks come from --nproc, from torchrun's or Slurm's variables, or it is one process alone.
    """
    from megatron_sky.distributed.launch import hold_stop_signals
    from megatron_sky.errors import ConfigError, Problem

    if world_size is not None and not dry_run:
        raise ConfigError(
            Problem("--world-size", "has an effect with --dry-run only", "use --nproc to start processes")
        )
    if session is not None:
        recipe = [*recipe, f"train.session={session}"]
    with contextlib.nullcontext() if dry_run else hold_stop_signals():
        _train(recipe, nproc, world_size, dry_run=dry_run)


def _train(recipe: list[str], nproc: int | None, world_size: int | None, *, dry_run: bool) -> None:
    from megatron_sky.config.load import load_recipe
    from megatron_sky.distributed.launch import (
        guard,
        hide_failed_lookups,
        rank_info,
        run_local,
        watch_launcher,
    )

    info = rank_info()
    if info.world_size > 1:
        watch_launcher()
    check_nproc(nproc, info.rank, info.world_size)
    config = load_recipe(recipe)
    ranks = nproc or info.world_size
    if dry_run:
        from megatron_sky.trainer.dry_run import print_plan

        print_plan(config, world_size or ranks)
        return
    if nproc is not None and nproc > 1:
        from megatron_sky.trainer.preflight import preflight

        hide_failed_lookups()
        preflight(config, nproc).raise_errors()
        run_local(["train", *recipe], nproc)
        return
    from megatron_sky.trainer.run import train as run_training

    if info.world_size == 1:
        run_training(config, info)
    else:
        guard(lambda: run_training(config, info), info.rank)
