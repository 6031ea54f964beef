"""A corpus built by its recipe: pass after pass on this machine, or as Slurm jobs that wait for each other.

What is done is known from datatrove's completions, one for each task; a command that is given again goes on with the
tasks that are missing, when recipe and files are the same (`plan`).
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.config import dump_config
from megatron_sky.corpus.classifier import load_classifier
from megatron_sky.corpus.contamination import BenchmarkIndex
from megatron_sky.corpus.disk import check_disk, disk_needs
from megatron_sky.corpus.ledger import num_done
from megatron_sky.corpus.plan import Plan, continue_plan, quality_files
from megatron_sky.corpus.recipe import CorpusRecipe
from megatron_sky.corpus.skips import add_skips, input_of, read_failures, read_skips
from megatron_sky.errors import ConfigError, MissingDependency, Problem, RunError
from megatron_sky.files import InUse, hold, real_path, write_text
from megatron_sky.log import say

if TYPE_CHECKING:
    from megatron_sky.corpus.passes import Pass

_MOST_SHOWN = 10  # failed tasks
INSTALL = "pip install 'megatron-sky[corpus,crawl]'"


@dataclass(frozen=True)
class PassStatus:
    """How many of a pass's tasks are done, and which have failed or are skipped, with their input, in lines."""

    name: str
    num_done: int
    num_tasks: int
    remarks: tuple[str, ...]


def build(recipe: CorpusRecipe, executor: str, report: Callable[[str], None], *, skip: Sequence[str] = ()) -> Path:
    """Builds the corpus on this machine, or submits its jobs; returns its folder. `report` gets a line for each pass.

    Args:
        skip: tasks to do without, each as PASS:TASK.

    Raises:
        ConfigError: a recipe that can't be used here, or is not the one that the corpus was begun with.
        RunError: there is no space; or tasks failed, and all others of their pass are done.
    """
    require_engine(recipe)
    _check_files(recipe)
    folder = real_path(recipe.out)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with hold(folder / ".lock", say):
            plan = _prepare(recipe, folder)
            add_skips(folder, skip, [files_of(plan, task) for task in range(len(plan.units))])
            passes = _passes(recipe, plan, folder)
            if needs := disk_needs(recipe, plan, passes, folder):
                report(check_disk(needs, folder, refuse=recipe.execution.check_disk))
            if executor == "slurm":
                _submit(recipe, passes, folder, report)
            else:
                _run_here(recipe, plan, passes, folder, report)
    except InUse:
        fix = "wait for it, or end it"
        raise RunError(f"{folder}: another process builds this corpus now\n  fix: {fix}") from None
    return folder


def status(recipe: CorpusRecipe) -> list[PassStatus]:
    """The passes of a corpus that was begun. Raises RunError where none was."""
    require_engine(recipe)
    folder = real_path(recipe.out)
    if not (folder / "plan.json").exists():
        raise RunError(f"{folder}: no corpus was begun here\n  fix: megatron-sky corpus build RECIPE")
    plan = continue_plan(folder / "plan.json", recipe)
    passes, skips = _passes(recipe, plan, folder), read_skips(folder)
    return [
        PassStatus(
            one.name,
            num_done(folder, one.name),
            one.num_tasks,
            (
                *(f"task {skip.task} is skipped: {skip.input}" for skip in skips if skip.name == one.name),
                *_failures(plan, one, folder).values(),
            ),
        )
        for one in passes
    ]


def require_engine(recipe: CorpusRecipe) -> None:
    """Raises MissingDependency for the first package that this recipe needs and that is not there."""
    needed = ["datatrove", "zstandard"]
    if any(source.kind in ("warc", "wet") for source in recipe.sources):
        needed.append("warcio")
    if any(source.kind == "parquet" for source in recipe.sources):
        needed.append("pyarrow")
    if any(source.kind in ("warc", "html") or source.html for source in recipe.sources):
        needed.append(recipe.extract.engine)
    if recipe.language.simplify:
        needed.append("opencc")
    if recipe.quality.perplexity:
        needed.append("kenlm")
    import importlib.util

    for package in needed:
        if importlib.util.find_spec(package) is None:
            install = INSTALL.replace("]", ",perplexity]") if package == "kenlm" else INSTALL
            raise MissingDependency(package, "building a corpus", install)


def _check_files(recipe: CorpusRecipe) -> None:
    """Before hours of work that end with a file that is missing. Raises ConfigError, DataError."""
    paths = {"tokens.tokenizer": recipe.tokens.tokenizer} | quality_files(recipe)
    problems = [
        Problem(key, "is not there", "give the path of a file", path)
        for key, path in paths.items()
        if path is not None and not os.path.exists(path)
    ]
    if problems:
        raise ConfigError(problems)
    if recipe.quality.classifier:
        known = load_classifier(recipe.quality.classifier)
        for language in sorted(recipe.quality.min_score.keys() - known):
            fix = f"train one for it, or give {', '.join(known)} alone"
            problems.append(Problem(f"quality.min_score.{language}", "the classifier has no such language", fix))
    if problems:
        raise ConfigError(problems)


def _prepare(recipe: CorpusRecipe, folder: Path) -> Plan:
    plan = continue_plan(folder / "plan.json", recipe)
    if not (folder / "recipe.yaml").exists():
        write_text(folder / "recipe.yaml", dump_config(recipe))
    index = folder / "work" / "benchmarks.npz"
    if recipe.decontamination.benchmarks and not index.exists() and not num_done(folder, "finish"):
        index.parent.mkdir(exist_ok=True)
        BenchmarkIndex.build(recipe.decontamination).save(index)
    return plan


def _passes(recipe: CorpusRecipe, plan: Plan, folder: Path) -> "list[Pass]":
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when it is imported: the screen has a line for each pass
    from megatron_sky.corpus.passes import build_passes

    return build_passes(recipe, plan, folder)


def _run_here(
    recipe: CorpusRecipe, plan: Plan, passes: "list[Pass]", folder: Path, report: Callable[[str], None]
) -> None:
    from megatron_sky.corpus.executors import run_local

    for one in passes:
        done = num_done(folder, one.name)
        if done == one.num_tasks:
            continue
        needs = disk_needs(recipe, plan, passes, folder)
        check_disk(needs, folder, refuse=recipe.execution.check_disk)
        rest = f", {done:,} of them are done" if done else ""
        report(f"{one.name}: {one.num_tasks:,} {'task' if one.num_tasks == 1 else 'tasks'}{rest}")
        run_local(one, folder, recipe.execution)
        if failures := _failures(plan, one, folder):
            raise RunError(_failed(failures, one, folder))


def _failures(plan: Plan, one: "Pass", folder: Path) -> dict[int, str]:
    """A line for each task of a pass that failed at last, with its error and input."""
    lines = {}
    for task, failure in read_failures(folder, one.name).items():
        files = f"; its input: {input_of(files_of(plan, task))}" if one.of == "unit" else ""
        times = "once" if failure.attempts == 1 else f"{failure.attempts:,} times"
        lines[task] = f"task {task} failed {times} ({failure.error}){files}"
    return lines


def files_of(plan: Plan, task: int) -> list[str]:
    """The files of a unit."""
    return [piece.path for piece in plan.units[task].pieces]


def _failed(failures: dict[int, str], one: "Pass", folder: Path) -> str:
    shown = "".join(f"\n  {one.name}: {line}" for line in list(failures.values())[:_MOST_SHOWN])
    more = f"\n  and {len(failures) - _MOST_SHOWN:,} more" if len(failures) > _MOST_SHOWN else ""
    skip = f", or do without its input by --skip-task {one.name}:{min(failures)}" if one.of == "unit" else ""
    fix = f"see {folder / 'logs' / one.name / 'logs'}, repair what they name, give the same command again{skip}"
    return f"{len(failures):,} of {one.num_tasks:,} tasks failed:{shown}{more}\n  fix: {fix}"


def _submit(recipe: CorpusRecipe, passes: "list[Pass]", folder: Path, report: Callable[[str], None]) -> None:
    from megatron_sky.corpus.executors import submit

    jobs = submit(passes, folder, recipe.execution)
    if not jobs:
        report("all passes are done")
    for name, job in jobs.items():
        report(f"{name}: job {job}")
