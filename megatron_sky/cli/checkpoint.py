"""`megatron-sky checkpoint ...`: what a run folder holds, whether it is whole, and how two checkpoints differ."""

from pathlib import Path
from typing import Annotated

import typer

from megatron_sky.cli._common import parse_size, verb_group

app = verb_group("List, verify, prune and compare checkpoints.")

RunDir = Annotated[Path, typer.Argument(help="Run folder.")]


@app.command("list")
def list_(run_dir: RunDir) -> None:
    """Step, tokens, size and layout of every checkpoint, oldest first; sizes are checked, contents are not."""
    from megatron_sky.checkpoint import store
    from megatron_sky.checkpoint.description import read_description
    from megatron_sky.errors import CheckpointError

    checkpoints = store.list_checkpoints(run_dir)
    if not checkpoints:
        raise _no_checkpoint(run_dir)
    print(f"{'step':>10}{'tokens':>20}{'GiB':>10}  {'layout':<24}folder")
    for step, folder in checkpoints:
        try:
            store.check_sizes(folder)
            saved = read_description(folder)
        except CheckpointError as error:
            print(f"{step:>10}  DAMAGED  {error}")
            continue
        size = sum(record.size for record in store.read_manifest(folder).values()) / (1 << 30)
        print(f"{step:>10}{saved.progress.get('consumed_tokens', 0):>20,}{size:>10.2f}  {saved.layout:<24}{folder}")


def _no_checkpoint(run_dir: Path):
    from megatron_sky.errors import CheckpointError

    return CheckpointError(f"{run_dir}: holds no checkpoint\n  fix: give a run folder (train.run_dir)")


@app.command()
def verify(
    paths: Annotated[list[Path], typer.Argument(help="Checkpoint folders, or run folders for all of theirs.")],
) -> None:
    """Check every file's size and hash against the manifest; exit code 4 where anything is damaged."""
    from megatron_sky.checkpoint import store
    from megatron_sky.errors import CheckpointError

    folders = []
    for path in paths:
        folders += [folder for _, folder in store.list_checkpoints(path)] or [path]
    damaged = []
    for folder in folders:
        try:
            store.verify(folder)
            print(f"whole    {folder}")
            for name in store.unlisted(folder):
                print(f"         {name} is in no manifest")
        except CheckpointError as error:
            damaged.append(str(error))
            print(f"DAMAGED  {error}")
    if damaged:
        raise CheckpointError(f"{len(damaged)} of {len(folders)} checkpoints are damaged")


@app.command()
def prune(
    run_dir: RunDir,
    keep_last: Annotated[int, typer.Option(min=1, help="Keep this many newest ones.")],
    keep_every_tokens: Annotated[str | None, typer.Option(help="Also keep one per so many tokens, as 100B.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
) -> None:
    """Delete old checkpoints and what cut-off saves left; kept: release marks, sessions' ends, damaged ones.

    The newest is verified first: where none is whole, nothing is deleted.
    """
    from megatron_sky.checkpoint import store
    from megatron_sky.log import get_logger
    from megatron_sky.trainer.sessions import kept_marks

    log = get_logger(__name__)
    every = None
    if keep_every_tokens is not None:
        every = parse_size(keep_every_tokens, "--keep-every-tokens", "give a number of tokens, as 100B")
    latest = store.find_latest(run_dir, log.warning)
    if latest is None and not store.leftovers(run_dir):
        raise _no_checkpoint(run_dir)
    if latest is not None:
        for folder in store.to_prune(
            run_dir,
            newest=store.step_of(latest),
            keep_last=keep_last,
            keep_every_tokens=every,
            marks=kept_marks(_recipe_of(run_dir, latest)),
            warn=log.warning,
        ):
            if not dry_run:
                store.remove(folder)
            print(f"{'would delete' if dry_run else 'deleted'}  {folder}")
    _sweep(run_dir, dry_run)


def _recipe_of(run_dir: Path, checkpoint: Path):
    """The run's recipe, from its folder or from its checkpoint."""
    from megatron_sky.checkpoint.description import read_description
    from megatron_sky.config import load_config

    recipe = run_dir / "config.yaml"
    return load_config([recipe], keep_unset=True) if recipe.is_file() else read_description(checkpoint).config


def _sweep(run_dir: Path, dry_run: bool) -> None:
    """Deletes what cut-off saves and deletions left, unless a live job has the folder, or may have it."""
    from megatron_sky.checkpoint import store
    from megatron_sky.errors import RunError
    from megatron_sky.trainer import run_folder

    leftovers = store.leftovers(run_dir)
    if dry_run or not leftovers:
        print("".join(f"would delete  {folder}\n" for folder in leftovers), end="")
        return
    try:
        with run_folder.locked(run_dir, print) as lock:
            if lock.is_held:
                run_folder.sweep(run_dir, print)
    except RunError as error:
        print(f"{len(leftovers)} unfinished folders stay: {error}")


@app.command()
def diff(
    first: Annotated[Path, typer.Argument(help="Checkpoint folder, or a run folder for its latest.")],
    second: Annotated[Path, typer.Argument(help="Checkpoint folder, or a run folder for its latest.")],
) -> None:
    """Say how two checkpoints differ: recipe, progress, largest difference of each weight; exit code 1 if they do."""
    from megatron_sky.checkpoint import store
    from megatron_sky.checkpoint.reader.diff import differences
    from megatron_sky.log import get_logger

    lines = differences(
        *(store.resolve(name, get_logger(__name__).warning, check=store.check_sizes) for name in (first, second))
    )
    for line in lines:
        print(line)
    if lines:
        raise typer.Exit(1)
    print("equal: recipe, progress and every weight")
