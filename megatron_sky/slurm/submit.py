"""From a recipe to jobs in the queue: a chain of one job a session, then evaluation, then release."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_sky import files
from megatron_sky.checkpoint.store import consumed_tokens, list_checkpoints
from megatron_sky.config import Config, dump_config
from megatron_sky.errors import ConfigError, Problem, RunError
from megatron_sky.slurm import queue
from megatron_sky.slurm.attempts import LOG, QueuedJob, add_jobs, read_jobs
from megatron_sky.slurm.render import Job, as_output, render
from megatron_sky.slurm.site import Site, in_seconds
from megatron_sky.trainer import run_folder
from megatron_sky.trainer.sessions import sessions_of

RECIPE = "slurm/recipe.yaml"
LONGEST_SIGNAL_SECONDS = 65_535
EVALUATION_TASKS = 4
FOLLOW_SECONDS = 2.0


@dataclass(frozen=True)
class Wanted:
    """What the user asks for beside the recipe."""

    nodes: int
    name: str
    folder: Path
    """Working folder of the jobs, where relative paths of the recipe start."""
    evaluate: tuple[str, ...] = ()
    """NAME=FILE.jsonl of each set on which every checkpoint is evaluated after training."""
    release: bool = False

    def check(self) -> None:
        """Raises ConfigError for what would fail in the queue only."""
        problems = []
        if not re.fullmatch(r"[\w.\-]+", self.name):
            problems.append(Problem("--name", "must be letters, digits, _ . -", "give --name another", self.name))
        for argument in self.evaluate:
            name, _, file = argument.partition("=")
            if not name or not (self.folder / file).is_file():
                fix = "give a name and a file that is there, as --evaluate news=data/news.jsonl"
                problems.append(Problem("--evaluate", "must be NAME=FILE.jsonl", fix, argument))
        if problems:
            raise ConfigError(problems)


def name_of(run_dir: Path) -> str:
    """What a run's jobs are called where the user gives no name: as its folder, with _ for what a name may not have."""
    return re.sub(r"[^\w.\-]+", "_", files.real_path(run_dir).name)


def world_size(site: Site, nodes: int) -> int:
    """Ranks of a training job."""
    return nodes * tasks_per_node(site)


def tasks_per_node(site: Site) -> int:
    return site.tasks_per_node or site.gpus_per_node or 1


def plan_jobs(config: Config, site: Site, wanted: Wanted) -> list[Job]:
    """The jobs of a run, each to start when the one before it has ended well. Raises ConfigError."""
    _check_time(config, site)
    run_dir = config.train.run_dir
    jobs = [_training(config, site, wanted, session) for session in _sessions_left(config)]
    if wanted.evaluate:
        sets = [word for argument in wanted.evaluate for word in ("--data", argument)]
        jobs.append(
            Job(
                "evaluate",
                f"{wanted.name}-evaluate",
                (run_dir, *sets),
                folder=str(wanted.folder),
                output=f"{as_output(run_dir)}/slurm/evaluate_%A_%a.txt",
                gpus_per_node=min(site.gpus_per_node, 1),
                array=f"0-{EVALUATION_TASKS - 1}",
            )
        )
    if wanted.release:
        jobs.append(
            Job(
                "convert",
                f"{wanted.name}-release",
                ("release", run_dir),
                folder=str(wanted.folder),
                output=f"{as_output(run_dir)}/slurm/release_%j.txt",
            )
        )
    return jobs


def _check_time(config: Config, site: Site) -> None:
    """Slurm's signal comes `exit_before_seconds` before the limit; at once, where the limit is no further away."""
    limit, before = in_seconds(site.time), config.resilience.exit_before_seconds
    if 0 < limit <= before:
        rule = f"must be longer than resilience.exit_before_seconds ({before:g})"
        fix = "give a longer --time, or lower resilience.exit_before_seconds"
        raise ConfigError(Problem("--time (or time of the site profile)", rule, fix, site.time))


def _training(config: Config, site: Site, wanted: Wanted, session: str | None) -> Job:
    run_dir = config.train.run_dir
    return Job(
        "train",
        wanted.name if session is None else f"{wanted.name}-{session}",
        (f"{run_dir}/{RECIPE}", *([] if session is None else [f"train.session={session}"])),
        folder=str(wanted.folder),
        output=f"{as_output(run_dir)}/slurm/job_%j.txt",
        nodes=wanted.nodes,
        tasks_per_node=tasks_per_node(site),
        gpus_per_node=site.gpus_per_node,
        exclusive=site.exclusive,
        signal_seconds=min(max(math.ceil(config.resilience.exit_before_seconds), 1), LONGEST_SIGNAL_SECONDS),
    )


def _sessions_left(config: Config) -> list[str | None]:
    """Names of the sessions that the run has not ended; None stands for a run without, or for all in one job."""
    if not config.sessions:
        return [None]
    if config.train.session is not None:
        return [config.train.session]
    saved = list_checkpoints(Path(config.train.run_dir))
    done = consumed_tokens(saved[-1][1]) if saved else 0
    return [session.name for session in sessions_of(config).every if session.end_token > done]


def submit(config: Config, jobs: list[Job], site: Site) -> list[QueuedJob]:
    """Writes the scripts into the run folder and queues all of them, or none. Raises RunError."""
    run_dir = Path(config.train.run_dir)
    if not jobs:
        raise ConfigError(Problem("sessions", "are all trained to their ends", "add one, or ask for --release"))
    run_folder.prepare(run_dir)
    check_idle(run_dir)
    (run_dir / "slurm").mkdir(exist_ok=True)
    files.write_text(run_dir / RECIPE, dump_config(config))
    queued: list[QueuedJob] = []
    try:
        for job in jobs:
            script = run_dir / "slurm" / f"{job.name}.sbatch"
            files.write_text(script, render(job, site))
            job_id = queue.submit(script, after=queued[-1].job_id if queued else None)
            kind = "release" if job.script == "convert" else job.script
            queued.append(QueuedJob(job_id, kind, job.name, str(script)))
    except RunError:
        queue.cancel([job.job_id for job in queued])
        raise
    add_jobs(run_dir, queued)
    return queued


def check_idle(run_dir: Path) -> None:
    """Raises RunError where a job of this run waits or runs."""
    live = live_jobs(run_dir)
    if live:
        raise RunError(
            f"{run_dir}: job {live[0].job_id} of this run is queued or running\n"
            f"  fix: wait for it, or megatron-sky slurm cancel {run_dir}"
        )


def live_jobs(run_dir: Path) -> list[QueuedJob]:
    """Those of the run's jobs that run or wait."""
    jobs = read_jobs(run_dir)
    states = queue.find_jobs([job.job_id for job in jobs])
    return [job for job in jobs if job.job_id in states and states[job.job_id].is_live]


def follow(run_dir: Path, say: Callable[[str], None]) -> None:
    """Hands on what the run's jobs write, attempt after attempt, until none of them is live."""
    read: dict[Path, int] = {}
    while True:
        live = live_jobs(run_dir)
        files = sorted(run_dir.glob(f"slurm/job_*_attempt_*/{LOG}"), key=lambda path: path.stat().st_mtime)
        for path in [*sorted(run_dir.glob("slurm/*.txt")), *files]:
            with open(path, encoding="utf-8", errors="replace") as file:
                file.seek(read.get(path, 0))
                text = file.read()
                read[path] = file.tell()
            if text:
                say(text)
        if not live:
            return
        time.sleep(FOLLOW_SECONDS)
