"""Tasks that failed, and tasks that are skipped because the user says so.

`<out>/failures/<pass>/<task>.json` is there while a task's last attempt has failed. `<out>/skipped.json` lists what is
skipped: the documents of such a task's unit are dropped by the rule `skipped_task`, in the account as others are.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import read_json, write_json
from megatron_sky.records import read_record

RULE = "skipped_task"
UNIT_PASSES = ("read", "paragraphs", "clean", "finish")
"""Those whose tasks are units of the input, which the rest can do without."""


@dataclass(frozen=True)
class Failure:
    """Why a task failed at last, and how often it was tried."""

    error: str
    attempts: int


@dataclass(frozen=True)
class Skip:
    """A task that is not done: its unit's documents are left out from its pass on.

    Attributes:
        files: its unit's input.
        error: what it had failed with; empty where it had not.
    """

    name: str
    task: int
    files: tuple[str, ...]
    error: str

    @property
    def input(self) -> str:
        return input_of(self.files)


def input_of(files: Sequence[str]) -> str:
    """A unit's files in words."""
    return files[0] + (f" and {len(files) - 1:,} more" if len(files) > 1 else "")


def _failure_path(folder: Path, name: str, task: int) -> Path:
    return folder / "failures" / name / f"{task:05d}.json"


def write_failure(folder: Path, name: str, task: int, error: str, attempts: int) -> None:
    path = _failure_path(folder, name, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(Failure(error, attempts)))


def clear_failure(folder: Path, name: str, task: int) -> None:
    _failure_path(folder, name, task).unlink(missing_ok=True)


def read_failures(folder: Path, name: str) -> dict[int, Failure]:
    """The tasks of a pass that failed at last, by number."""
    paths = sorted((folder / "failures" / name).glob("[0-9]*.json"))
    return {int(path.stem): read_record(Failure, read_json(path)) for path in paths}


def read_skips(folder: Path) -> tuple[Skip, ...]:
    """What is skipped in a corpus."""
    path = folder / "skipped.json"
    return read_record(tuple[Skip, ...], read_json(path)) if path.exists() else ()


def add_skips(folder: Path, given: Sequence[str], units: Sequence[Sequence[str]]) -> None:
    """Notes tasks as `PASS:TASK`; `units`: the files of each unit. Raises ConfigError for one that can't be skipped."""
    skips = {(skip.name, skip.task): skip for skip in read_skips(folder)}
    problems = []
    for text in given:
        name, _, number = text.partition(":")
        if name not in UNIT_PASSES or not number.isdecimal() or int(number) >= len(units):
            rule = f"must be PASS:TASK, of the passes {', '.join(UNIT_PASSES)} and tasks from 0 to {len(units) - 1}"
            problems.append(Problem("--skip-task", rule, "see `megatron-sky corpus status`", text))
            continue
        task = int(number)
        if (name, task) in skips:
            continue
        if (folder / "logs" / name / "completions" / f"{task:05d}").exists():
            problems.append(Problem("--skip-task", "is done, and can't be skipped any more", "leave it out", text))
            continue
        failure = read_failures(folder, name).get(task)
        skips[name, task] = Skip(name, task, tuple(units[task]), failure.error if failure else "")
    if problems:
        raise ConfigError(problems)
    if skips:
        write_json(folder / "skipped.json", [asdict(skip) for skip in skips.values()])


def skipped_tasks(skips: Sequence[Skip], name: str) -> frozenset[int]:
    """The tasks of a pass that are skipped."""
    return frozenset(skip.task for skip in skips if skip.name == name)
