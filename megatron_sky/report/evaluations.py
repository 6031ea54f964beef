"""Result files of `megatron-sky eval` -> the report's tables on perplexity, leakage and benchmarks.

They are looked for in a run's `eval` folder and the folders below it. One that can't be understood is told in `notes`.
Results of one kind that were taken in the same way on the same texts become one table of all their models.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from megatron_sky.errors import DataError
from megatron_sky.evaluate.answers import ANSWERS, AnswerResults, answer_rows, read_answers, sample_rows
from megatron_sky.evaluate.results import (
    LEAKAGE,
    LOSS,
    LeakageResults,
    LossResults,
    ModelLeakage,
    ModelLosses,
    Results,
    read_leakage,
    read_loss,
)
from megatron_sky.evaluate.tables import leakage_rows, loss_rows, setting_words
from megatron_sky.evaluate.tasks import TaskScore, read_tasks, task_rows
from megatron_sky.files import read_json, real_path, stays_inside
from megatron_sky.log import get_logger
from megatron_sky.report.content import Block, Notes, Section, Table, table

EVAL_FOLDER = "eval"
log = get_logger(__name__)

Read = LossResults | LeakageResults | AnswerResults | list[TaskScore]
_READERS: dict[str, Callable[[Path], Read]] = {
    LOSS: read_loss,
    LEAKAGE: read_leakage,
    "tasks": read_tasks,
    ANSWERS: read_answers,
}
_LOSS_FIGURES = (
    ("Perplexity", "perplexity", 2),
    ("Normalised loss, nats per reference token", "normalised_loss", 4),
    ("Bits per byte", "bits_per_byte", 4),
)
Model = TypeVar("Model", ModelLosses, ModelLeakage)


@dataclass(frozen=True)
class Evaluations:
    """What was found, each with the names of the files it comes from."""

    loss: list[tuple[LossResults, list[str]]] = field(default_factory=list)
    leakage: list[tuple[LeakageResults, list[str]]] = field(default_factory=list)
    tasks: list[tuple[list[TaskScore], str]] = field(default_factory=list)
    answers: list[tuple[AnswerResults, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_evaluations(run_dirs: Sequence[Path], files: Sequence[Path] = ()) -> Evaluations:
    """The results in the runs' `eval` folders, the newest first, and then those in `files` (which may be folders)."""
    evaluations = Evaluations()
    for path in _all_files(run_dirs, files):
        results, file = _read(path, evaluations.notes), _short(path, run_dirs)
        if isinstance(results, LossResults):
            _add(evaluations.loss, results, file)
        elif isinstance(results, LeakageResults):
            _add(evaluations.leakage, results, file)
        elif isinstance(results, AnswerResults):
            evaluations.answers.append((results, file))
        elif results is not None:
            evaluations.tasks.append((results, file))
    return evaluations


def evaluation_sections(evaluations: Evaluations) -> list[Section]:
    """The tables, each with what it was taken from."""
    loss = [block for results, files in evaluations.loss for block in _loss_blocks(results, files)]
    leakage = [block for results, files in evaluations.leakage for block in _leakage_blocks(results, files)]
    tasks = [block for scores, file in evaluations.tasks for block in _task_blocks(scores, file)]
    answers = [block for results, file in evaluations.answers for block in _answer_blocks(results, file)]
    return [
        Section("Domain perplexity", loss),
        Section("Leakage, nats per token", leakage),
        Section("Benchmarks", tasks),
        Section("Answers to held-out questions", answers),
    ]


def _all_files(run_dirs: Sequence[Path], given: Sequence[Path]) -> list[Path]:
    """Each file once."""
    own = sorted((file for folder in run_dirs for file in _json_files(folder / EVAL_FOLDER)), key=_newest_first)
    asked = [file for path in given for file in (_json_files(path) if path.is_dir() else [path])]
    return list({real_path(path): path for path in reversed([*own, *asked])}.values())[::-1]


def _json_files(folder: Path) -> list[Path]:
    paths = [path for path in sorted(folder.rglob("*.json")) if path.is_file()]
    inside = [path for path in paths if stays_inside(path, folder)]
    for path in sorted(set(paths) - set(inside)):
        log.warning("%s: is a link out of its folder, and left out", path)
    return inside


def _newest_first(path: Path) -> tuple[float, str]:
    return -path.stat().st_mtime, str(path)


def _short(path: Path, run_dirs: Sequence[Path]) -> str:
    """From the run's folder on, where it lies in one."""
    inside = [folder for folder in run_dirs if path.is_relative_to(folder)]
    return str(path.relative_to(inside[0].parent)) if inside else str(path)


def _read(path: Path, notes: list[str]) -> Read | None:
    try:
        given = read_json(path)
        kind = given.get("kind") if isinstance(given, dict) else None
        if kind in list(_READERS):  # which, unlike the dict, may be asked for anything
            return _READERS[kind](path)
        notes.append(f"{path}: is no result of `megatron-sky eval` that a report can show")
    except (OSError, ValueError) as error:
        notes.append(f"{path}: can't be read ({error})")
    except DataError as error:
        notes.append(str(error))
    return None


def _identity(model: ModelLosses | ModelLeakage) -> tuple:
    return model.model.path, model.model.step, model.model.name


def _add(groups: list[tuple[Results, list[str]]], results: Results, file: str) -> None:
    """Into the group of its setting and texts. Of two results for one model the first stays."""
    for place, (group, files) in enumerate(groups):
        if _is_alike(group, results):
            files.append(file)
            groups[place] = _both(group, results, file), files
            return
    groups.append((results, [file]))


def _is_alike(group: Results, results: Results) -> bool:
    return replace(group, models=(), failed=()) == replace(results, models=(), failed=())


def _both(group: Results, results: Results, file: str) -> Results:
    models, names = {_identity(model): model for model in group.models}, {model.model.name for model in group.models}
    for model in results.models:
        models.setdefault(_identity(model), _renamed(model, file) if model.model.name in names else model)
    return replace(group, models=tuple(models.values()), failed=(*group.failed, *results.failed))


def _renamed(measured: Model, file: str) -> Model:
    """A model of another model's name, told apart by its file."""
    return replace(measured, model=replace(measured.model, name=f"{measured.model.name} ({file})"))


def _loss_blocks(results: LossResults, files: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    for caption, name, digits in _LOSS_FIGURES:
        head, rows = loss_rows(results, name, digits)
        blocks.append(Table(head, rows, "n" + "r" * (len(head) - 1), caption))
    documents = ", ".join(f"{domain.name} {domain.documents:,}" for domain in results.domains)
    return [*blocks, Notes([setting_words(results.setting), f"Documents: {documents}.", *_origin(results, files)])]


def _leakage_blocks(results: LeakageResults, files: Sequence[str]) -> list[Block]:
    head, rows = leakage_rows(results)
    reasons = [
        f"{model.model.name}, {split}: {verdict.finding}. {verdict.reason}."
        for model in results.models
        for split, verdict in (("test split", model.test_verdict), ("train split", model.train_verdict))
    ]
    brackets = f"Brackets: {results.confidence:.0%} intervals, bootstrap over documents."
    setting = [setting_words(results.setting)] if results.setting else []
    lines = [*reasons, brackets, *setting, *_origin(results, files)]
    return [Table(head, rows, "nrrrrrnn"), Notes(lines)]


def _task_blocks(scores: Sequence[TaskScore], file: str) -> list[Block]:
    """The metrics of the field's benchmarks, with their standard errors."""
    head, rows = task_rows(scores)
    return [*table(head, rows, "nn" + "r" * (len(head) - 2)), Notes([f"From {file}."])]


def _answer_blocks(results: AnswerResults, file: str) -> list[Block]:
    """How many answers are the expected ones, and some of them as each model gave them."""
    head, rows = answer_rows(results)
    samples, texts = sample_rows(results)
    return [
        *table(head, rows, "nrrr"),
        *table(samples, texts, "t" * len(samples)),
        Notes([f"Greedy answers to {', '.join(results.files)}. From {file}."]),
    ]


def _origin(results: LossResults | LeakageResults, files: Sequence[str]) -> list[str]:
    warnings = [f"{model.model.name}: {warning}" for model in results.models for warning in model.model.warnings]
    failed = [f"Failed: {failure}." for failure in results.failed]
    return [*failed, *warnings, f"From {', '.join(files)}."]
