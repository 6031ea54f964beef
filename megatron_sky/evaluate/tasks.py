"""`eval tasks`: benchmarks by EleutherAI's lm-eval harness, on native and Hugging Face checkpoints alike.

A task is a YAML file of the harness's form; with --include-path those of a folder come before its own. Data that lie in
local files need no network.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from megatron_sky.distributed.launch import RankInfo
from megatron_sky.errors import CheckpointError, ConfigError, DataError, MissingDependency, Problem
from megatron_sky.evaluate.models import load_model, open_models
from megatron_sky.evaluate.results import check_writable, write_text
from megatron_sky.evaluate.tables import Rows, markdown_table
from megatron_sky.evaluate.write import print_partial_on_error
from megatron_sky.files import json_text, read_json
from megatron_sky.inference.checkpoints import Checkpoint, load_latest
from megatron_sky.log import get_logger
from megatron_sky.records import read_record

if TYPE_CHECKING:
    from megatron_sky.distributed.context import ParallelContext

log = get_logger(__name__)

FORMAT_VERSION: Final = 1


@dataclass(frozen=True)
class TaskScore:
    """One figure of one model: `metric` as the harness names it (acc, exact_match ...), with its standard error."""

    model: str
    step: int | None
    consumed_tokens: int | None
    task: str
    metric: str
    value: float
    stderr: float | None
    samples: int


@dataclass(frozen=True)
class _TaskScores:
    """tasks.json."""

    kind: Literal["tasks"]
    format_version: Literal[1]
    scores: list[TaskScore]


def evaluate_tasks(
    given: Sequence[str],
    tasks: Sequence[str],
    *,
    include_path: Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    batch_tokens: int = 4096,
    out: Path | None = None,
    info: RankInfo | None = None,
) -> list[TaskScore]:
    """Scores of the checkpoints `given`; rank 0 writes them into `out` after each. Collective.

    `limit`: the first so many samples of each task. Raises MissingDependency without lm-eval, ConfigError for a task
    that is not known.
    """
    from megatron_sky.config.schema import ParallelConfig
    from megatron_sky.distributed.context import open_context

    info = info or RankInfo()
    if not tasks:
        raise ConfigError(Problem("--tasks", "names none", "as --tasks arc_easy,piqa; `lm_eval ls tasks` lists them"))
    manager = _task_manager(tasks, include_path)
    checkpoints = open_models(given)
    if out is not None and info.rank == 0:
        check_writable(out)
    scores: list[TaskScore] = []
    shown = print_partial_on_error(info, lambda: tasks_markdown(scores) if scores else "")
    with shown, open_context(ParallelConfig(distributed_optimizer=False), info, warn=log.warning) as parallel:
        for checkpoint in checkpoints:
            scores += _evaluate(checkpoint, tasks, manager, num_fewshot, limit, batch_tokens, parallel)
            if out is not None and info.rank == 0:
                write_tasks(scores, out)
    return scores


def write_tasks(scores: Sequence[TaskScore], out: Path) -> None:
    """tasks.json and tasks.md into `out`. Raises RunError."""
    content = asdict(_TaskScores("tasks", FORMAT_VERSION, list(scores)))
    write_text(out / "tasks.json", json_text(content, indent=1) + "\n")
    write_text(out / "tasks.md", tasks_markdown(scores))


def tasks_markdown(scores: Sequence[TaskScore]) -> str:
    return markdown_table(*task_rows(scores)) + "\n"


def task_rows(scores: Sequence[TaskScore]) -> Rows:
    """A row for each task and metric, a column for each model."""
    models = list(dict.fromkeys(score.model for score in scores))
    by_key = {(score.model, score.task, score.metric): score for score in scores}
    rows = [
        [task, metric, *(_shown(by_key.get((model, task, metric))) for model in models)]
        for task, metric in dict.fromkeys((score.task, score.metric) for score in scores)
    ]
    return ["task", "metric", *models], rows


def read_tasks(path: Path) -> list[TaskScore]:
    """tasks.json (or the folder that holds it). Raises DataError."""
    path = path / "tasks.json" if path.is_dir() else path
    try:
        content = read_json(path)
        return read_record(_TaskScores, content).scores
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read as task scores: {error}\n  fix: evaluate again") from error


def _task_manager(tasks: Sequence[str], include_path: Path | None):
    """The harness's index of tasks: of the given folder alone where that has all of them, else its own too."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MissingDependency("lm_eval", "eval tasks", "pip install 'megatron-sky[eval]'") from None
    if include_path is not None and not include_path.is_dir():
        raise ConfigError(Problem("--include-path", "is no folder", "give the folder of the tasks' YAML", include_path))
    manager = None
    for defaults in (False, True) if include_path is not None else (True,):
        with _failures_told(tasks):
            manager = TaskManager(include_path=str(include_path) if include_path else None, include_defaults=defaults)
        unknown = [task for task in tasks if task not in manager.all_tasks]
        if not unknown:
            return manager
    raise ConfigError(
        Problem(
            "--tasks",
            "the harness knows no such task",
            "`lm_eval ls tasks` lists its own; --include-path names a folder of more",
            ", ".join(unknown),
        )
    )


@contextlib.contextmanager
def _failures_told(tasks: Sequence[str]) -> Iterator[None]:
    """Whatever a task's file of another shape causes within the harness, or data that are not there, as DataError."""
    try:
        yield
    except Exception as error:
        cause = str(error).partition("\n")[0] or "no more is told"
        raise DataError(
            f"--tasks {', '.join(tasks)}: the harness can't load them: {type(error).__name__}: {cause}\n"
            "  fix: mend the tasks' YAML files in --include-path, and see that their data are there or can be fetched"
        ) from error


def _load_tasks(manager, tasks: Sequence[str], num_fewshot: int | None) -> dict:
    """The harness's tasks, with `num_fewshot` examples, but for a task that allows none, and its own seeds."""
    import random

    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    loaded = manager.load(list(tasks))
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        if own == 0 and num_fewshot:
            log.warning("%s: takes no examples; --num-fewshot %d has no effect on it", name, num_fewshot)
        elif num_fewshot is not None or own is None:
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return loaded


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the harness's progress bars and its notes on bootstrapping off the screen; `harness` says how far it is."""
    from tqdm import tqdm

    os.environ["DISABLE_MULTIPROC"] = "1"  # 1,000 draws are one task for its pool of as many processes as processors
    drawn = tqdm.__init__

    def not_drawn(self, *args: object, **settings: object) -> None:
        drawn(self, *args, **(settings | {"disable": True}))

    tqdm.__init__ = not_drawn
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tqdm.__init__ = drawn


def _evaluate(
    checkpoint: Checkpoint, tasks: Sequence[str], manager, num_fewshot, limit, batch_tokens: int, parallel
) -> list[TaskScore]:
    from lm_eval import evaluate

    from megatron_sky.evaluate.harness import HarnessModel

    with _silence(), _failures_told(tasks):
        loaded = _load_tasks(manager, tasks, num_fewshot)
    generates = any(task.get_config("output_type") == "generate_until" for task in loaded["tasks"].values())
    checkpoint, weights, engine = _load_model(checkpoint, parallel, generates)
    model = HarnessModel(
        weights,
        checkpoint.coder,
        context=checkpoint.context,
        batch_tokens=batch_tokens,
        gather=parallel.gather_objects,
        engine=engine,
    )
    log.info("%s: %s", checkpoint.name, ", ".join(tasks))
    try:
        with _silence():
            # The harness's simple_evaluate does the same, asks git for a version and answers on local rank 0 alone.
            answer = evaluate(model, loaded, limit=limit, bootstrap_iters=1000, log_samples=False)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.name} ({checkpoint.path}): {error}") from error
    samples = {task: counts["effective"] for task, counts in answer["n-samples"].items()}
    return [
        TaskScore(
            model=checkpoint.name,
            step=checkpoint.step,
            consumed_tokens=checkpoint.consumed_tokens,
            task=task,
            metric=key.removesuffix(",none"),
            value=float(value),
            stderr=_stderr(figures, key),
            samples=samples.get(task, 0),
        )
        for task, figures in answer["results"].items()
        for key, value in figures.items()
        if isinstance(value, int | float) and "," in key and "_stderr" not in key
    ]


def _load_model(checkpoint: Checkpoint, parallel: "ParallelContext", generates: bool):
    """(the checkpoint, its model, the engine that continues texts or None): the weights are there once, so where a task
    generates, transformers runs the others too."""
    if not generates:
        return (*load_model(checkpoint, parallel), None)
    from megatron_sky.generation.run import engine_of
    from megatron_sky.inference.hf_model import HfModel

    checkpoint, engine = load_latest(checkpoint, parallel, lambda newest: engine_of(newest, parallel.device))
    return checkpoint, HfModel(engine.model, parallel), engine


def _stderr(figures: dict, key: str) -> float | None:
    """The harness keeps the error of `acc,none` under `acc_stderr,none`; a word where it has none."""
    metric, comma, filtered = key.partition(",")
    value = figures.get(f"{metric}_stderr{comma}{filtered}")
    return float(value) if isinstance(value, int | float) else None


def _shown(score: TaskScore | None) -> str:
    if score is None:
        return "-"
    return f"{score.value:.4f}" + (f" ± {score.stderr:.4f}" if score.stderr is not None else "")
