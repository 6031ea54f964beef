"""`slurm status`: where a run stands, from its folder and from Slurm."""

import time
from pathlib import Path

from megatron_sky.checkpoint.store import consumed_tokens, list_checkpoints
from megatron_sky.config import load_config
from megatron_sky.config.units import format_count
from megatron_sky.errors import RunError
from megatron_sky.monitor.console import format_seconds
from megatron_sky.monitor.metrics import METRICS_FILE, TrainRecord, read_metrics
from megatron_sky.slurm import queue
from megatron_sky.slurm.attempts import QueuedJob, attempts_of, read_jobs, read_run
from megatron_sky.slurm.submit import RECIPE
from megatron_sky.trainer.sessions import sessions_of

SPEED_STEPS = 20


def status_lines(run_dir: Path) -> list[str]:
    """The run's progress, its jobs, and the log to look at. Raises RunError where the folder is no run's."""
    jobs = read_jobs(run_dir)
    if not jobs and not (run_dir / METRICS_FILE).is_file():
        fix = "give the folder of a run (train.run_dir)"
        raise RunError(f"{run_dir}: holds neither a run nor jobs of one\n  fix: {fix}")
    attempts = read_run(run_dir)
    states = queue.find_jobs([job.job_id for job in jobs])
    lines = [*_progress(run_dir), _saved(run_dir)]
    lines += [_job_line(job, states.get(job.job_id), attempts_of(job.job_id, attempts)) for job in jobs]
    log = next((attempt["slurm"]["log"] for attempt in reversed(attempts) if "log" in attempt.get("slurm", {})), None)
    return lines if log is None else [*lines, f"log      {run_dir / log}"]


def _progress(run_dir: Path) -> list[str]:
    steps = read_metrics(run_dir).train if (run_dir / METRICS_FILE).is_file() else []
    if not steps:
        return [f"run      {run_dir}: no step yet"]
    last = steps[-1]
    budget = _budget(run_dir)
    part = f" of {format_count(budget)} ({last.consumed_tokens / budget:.1%})" if budget else ""
    speed = _tokens_per_second(steps[-SPEED_STEPS:])
    left = f", {format_seconds(max(budget - last.consumed_tokens, 0) / speed)} left" if budget and speed > 0 else ""
    return [
        f"run      {run_dir}: step {last.step:,}, {format_count(last.consumed_tokens)} tokens{part}, "
        f"loss {last.lm_loss:.4f}, {format_seconds(time.time() - last.time)} ago",
        f"speed    {format_count(speed)} tokens/s{left}",
    ]


def _tokens_per_second(steps: list[TrainRecord]) -> float:
    """Over the last steps, by their own times: pauses between them are not counted."""
    seconds = sum(s.step_seconds for s in steps)
    return sum(s.tokens_per_second * s.step_seconds for s in steps) / seconds if seconds > 0 else 0.0


def _budget(run_dir: Path) -> int | None:
    """Tokens at the run's end; None where the folder holds no recipe."""
    for file in (run_dir / RECIPE, run_dir / "config.yaml"):
        if file.is_file():
            return sessions_of(load_config([file], keep_unset=True)).every[-1].end_token
    return None


def _saved(run_dir: Path) -> str:
    saved = list_checkpoints(run_dir)
    if not saved:
        return "saved    no checkpoint yet"
    step, folder = saved[-1]
    age = format_seconds(time.time() - folder.stat().st_mtime)
    return f"saved    step {step:,} ({format_count(consumed_tokens(folder))} tokens), {age} ago"


def _job_line(job: QueuedJob, state: queue.JobState | None, attempts: list[dict]) -> str:
    head = f"job {job.job_id:<5}{job.name}: "
    ended = next((attempt["ended"] for attempt in reversed(attempts) if "ended" in attempt), None)
    last = f"; last attempt: {ended['reason']}" if ended else ""
    count = f", attempt {len(attempts)}" if len(attempts) > 1 else ""
    if state is None:
        return f"{head}ended, no longer known to Slurm{last}"
    if state.state == "RUNNING":
        return f"{head}RUNNING on {state.nodes}{count}, {state.time_left} of its time left{last}"
    reason = f" ({state.reason})" if state.state == "PENDING" else ""
    return f"{head}{state.state}{reason}{count}{last}"
