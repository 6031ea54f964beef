"""`megatron-sky train` and `megatron-sky quickstart`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megatron_sky.cli._common import Nproc, Recipe, check_nproc

if TYPE_CHECKING:
    from megatron_sky.errors import Problem


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
    rehearse: Annotated[
        bool,
        typer.Option(
            "--rehearse",
            help="With --dry-run: run a step and a validation of every kind of rank as GPUs would, without them, and "
            "print memory, operations and traffic.",
        ),
    ] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="With --rehearse: this rank alone.")] = None,
    stage: Annotated[
        int | None, typer.Option(min=0, help="With --rehearse: a rank of this pipeline stage alone.")
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="With --rehearse: print its result as JSON, nothing else.")
    ] = False,
    session: Annotated[str | None, typer.Option(help="Train only this session of the recipe (train.session).")] = None,
) -> None:
    """Train, or continue, the run that the recipe describes.

    Ranks come from --nproc, from torchrun's or Slurm's variables, or it is one process alone.
    """
    from megatron_sky.distributed.launch import hold_stop_signals
    from megatron_sky.errors import ConfigError

    asked = {"--rank": rank is not None, "--stage": stage is not None, "--json": json}
    problems = _option_problems(
        dry_run, rehearse, world_size is not None, [name for name, given in asked.items() if given]
    )
    if problems:
        raise ConfigError(problems)
    if session is not None:
        recipe = [*recipe, f"train.session={session}"]
    with contextlib.nullcontext() if dry_run else hold_stop_signals():
        if rehearse:
            _rehearse(recipe, nproc, world_size, rank=rank, stage=stage, as_json=json)
        else:
            _train(recipe, nproc, world_size, dry_run=dry_run)


def _option_problems(dry_run: bool, rehearse: bool, sizes: bool, asked: list[str]) -> "list[Problem]":
    """Options that have no effect together. `sizes`: --world-size is given; `asked`: options of --rehearse are."""
    from megatron_sky.errors import Problem

    problems = []
    if sizes and not dry_run:
        rule = "has an effect with --dry-run only"
        problems.append(Problem("--world-size", rule, "use --nproc to start processes"))
    if rehearse and not dry_run:
        problems.append(Problem("--rehearse", "has an effect with --dry-run only", "add --dry-run"))
    if not rehearse:
        problems += [Problem(name, "has an effect with --rehearse only", "add --dry-run --rehearse") for name in asked]
    if "--rank" in asked and "--stage" in asked:
        problems.append(Problem("--stage", "can't go with --rank, which names a rank of one stage", "give one of them"))
    return problems


def _rehearse(recipe: list[str], nproc: int | None, world_size: int | None, **asked: Any) -> None:
    from megatron_sky.config.load import load_recipe
    from megatron_sky.distributed.launch import rank_info
    from megatron_sky.planner.rehearsal.command import print_rehearsal

    print_rehearsal(load_recipe(recipe), world_size or nproc or rank_info().world_size, **asked)


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
