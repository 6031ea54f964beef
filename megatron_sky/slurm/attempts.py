"""What a job does before and after each of its attempts: it enters them in the run folder, and decides by them.

<run_dir>/run.json                        every attempt: job, log, steps, exit code, cause, decision
          slurm/jobs.json                 the jobs that were queued for this run
          slurm/cancelled.json            jobs that must not be requeued
          slurm/job_12_attempt_0/log.txt  all ranks' output of one attempt, each line under its rank's number
                                 /attempt.json  what run.json says of it, for where that is torn
"""

import math
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from megatron_sky.checkpoint.store import list_checkpoints
from megatron_sky.config import Config
from megatron_sky.distributed.launch import first_cause
from megatron_sky.errors import RunError
from megatron_sky.files import read_json, write_json
from megatron_sky.log import get_logger
from megatron_sky.records import read_record
from megatron_sky.slurm.policy import Decision, decide
from megatron_sky.trainer import run_folder, run_record

log = get_logger(__name__)
T = TypeVar("T")

CAUSES = "causes"
LOG = "log.txt"
ATTEMPT = "attempt.json"
_FOLDER = re.compile(r"job_(.+)_attempt_(\d+)")


@dataclass(frozen=True)
class QueuedJob:
    """One job of a run: `kind` is train, evaluate or release."""

    job_id: str
    kind: str
    name: str
    script: str


def begin(config: Config, *, max_requeues: int, environ: Mapping[str, str] = os.environ) -> Path:
    """Enters an attempt of the job that this process belongs to; the attempt's folder.

    Raises RunError where the job should not go on: Slurm starts a job again after a node failure without asking.
    """
    run_dir = Path(config.train.run_dir)
    run_folder.prepare(run_dir)
    here = run_record.slurm_attempt(environ)
    if not here:
        raise RunError("SLURM_JOB_ID is not set: this is a step of slurm/train.sbatch\n  fix: use megatron-sky train")
    job_id, number = here["job_id"], here["attempt"]
    attempts, step = read_run(run_dir), newest_step(run_dir)
    before = attempts_of(job_id, attempts)
    decision = None
    if before and "ended" not in before[-1]:
        decision = _close(before, step, None, max_requeues, cancelled=job_id in read_cancelled(run_dir))
    folder = run_dir / "slurm" / f"job_{job_id}_attempt_{number}"
    if decision is None or decision.action != "stop":
        (folder / CAUSES).mkdir(parents=True, exist_ok=True)
        log_file = str((folder / LOG).relative_to(run_dir))
        attempts.append({"slurm": here | {"log": log_file, "began": _now()}, "step_before": step})
    _write(run_dir, attempts, job_id)
    if decision is not None and decision.action == "stop":
        raise RunError(decision.reason)
    if job_id not in [job.job_id for job in read_jobs(run_dir)]:
        name = environ.get("SLURM_JOB_NAME", "train")
        add_jobs(run_dir, [QueuedJob(job_id, "train", name, "slurm/train.sbatch")])
    return folder


def end(folder: Path, exit_code: int, *, max_requeues: int) -> tuple[Decision, str]:
    """Enters how the attempt of `folder` ended; what becomes of the job, and the first cause in words (or "").

    A step's exit code is the highest of its ranks', so what the rank that failed first left in the folder counts more.
    """
    run_dir = folder.parents[1]
    attempts = read_run(run_dir)
    log_file = str((folder / LOG).relative_to(run_dir))
    job_id = next(attempt["slurm"]["job_id"] for attempt in attempts if attempt.get("slurm", {}).get("log") == log_file)
    cause = first_cause(folder / CAUSES) if exit_code else None
    shutil.rmtree(folder / CAUSES, ignore_errors=True)
    decision = _close(
        attempts_of(job_id, attempts),
        newest_step(run_dir),
        cause.exit_code if cause else exit_code,
        max_requeues,
        cancelled=job_id in read_cancelled(run_dir),
        cause=cause.message if cause else "",
    )
    _write(run_dir, attempts, job_id)
    return decision, cause.message if cause else ""


def _close(
    attempts: list[dict], step: int, exit_code: int | None, max_requeues: int, *, cancelled: bool, cause: str = ""
) -> Decision:
    """Enters the end of the last of a job's `attempts`, with the decision that follows."""
    codes = [attempt["ended"]["exit_code"] for attempt in attempts[:-1]]
    steps = [attempt.get("step_before", 0) for attempt in attempts]
    decision = decide([*codes, exit_code], [*steps, step], max_requeues=max_requeues, cancelled=cancelled)
    attempts[-1]["ended"] = {
        "time": _now(),
        "exit_code": exit_code,
        "step": step,
        "cause": cause,
        "action": decision.action,
        "reason": decision.reason,
    }
    return decision


def read_run(run_dir: Path) -> list[dict]:
    """run.json's attempts, oldest first, and after them those of Slurm's that a torn one has lost.

    What those were stands in their own folders; of one without it, no more is known than that it was.
    """
    attempts = run_record.read_attempts(run_dir, log.warning)
    known = {attempt["slurm"]["log"] for attempt in attempts if "log" in attempt.get("slurm", {})}
    folders = [folder for folder in (run_dir / "slurm").glob("job_*_attempt_*") if _FOLDER.fullmatch(folder.name)]
    for folder in sorted(folders, key=_number):
        log_file = str((folder / LOG).relative_to(run_dir))
        if log_file not in known:
            attempts.append(_read_own(folder, log_file, attempts))
    return attempts


def _number(folder: Path) -> tuple[float, int]:
    """Job and attempt, which Slurm counts up as they come."""
    job_id, number = _job_and_attempt(folder)
    return (float(job_id) if job_id.isdigit() else math.inf, number)


def _job_and_attempt(folder: Path) -> tuple[str, int]:
    match = _FOLDER.fullmatch(folder.name)
    assert match is not None, f"{folder} is no attempt's folder"
    return match[1], int(match[2])


def _read_own(folder: Path, log_file: str, before: list[dict]) -> dict:
    """What an attempt's own folder says of it; at the least which one it was, and after which step it began."""
    path = folder / ATTEMPT
    try:
        attempt = read_json(path)
        if run_record.is_attempt(attempt) and attempt.get("slurm", {}).get("log") == log_file:
            return attempt
        log.warning("%s: what became of this attempt is lost: it is no record of it", path)
    except (OSError, ValueError) as error:
        log.warning("%s: what became of this attempt is lost: %s", path, error)
    job_id, number = _job_and_attempt(folder)
    ended = {"time": "", "exit_code": None, "step": 0, "cause": "", "action": "requeue", "reason": "not known"}
    return {
        "slurm": {"job_id": job_id, "attempt": number, "log": log_file, "began": ""},
        "step_before": max((attempt.get("step_before", 0) for attempt in before), default=0),
        "ended": ended,
    }


def _write(run_dir: Path, attempts: list[dict], job_id: str) -> None:
    """Replaces run.json, and what the folders of this job's last two attempts say of them: no others have changed."""
    run_record.write_attempts(run_dir, attempts, log.warning)
    for attempt in attempts_of(job_id, attempts)[-2:]:
        folder = (run_dir / attempt["slurm"]["log"]).parent
        if folder.is_dir():
            write_json(folder / ATTEMPT, attempt, sync=True)


def attempts_of(job_id: str, attempts: list[dict]) -> list[dict]:
    """Those of run.json's attempts that belong to a job, oldest first."""
    return [attempt for attempt in attempts if attempt.get("slurm", {}).get("job_id") == job_id]


def newest_step(run_dir: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((step for step, _ in list_checkpoints(run_dir)), default=0)


def read_jobs(run_dir: Path) -> list[QueuedJob]:
    """The jobs queued for a run, in the order of their submission."""
    return _read_list(run_dir / "slurm/jobs.json", QueuedJob)


def add_jobs(run_dir: Path, jobs: list[QueuedJob]) -> None:
    """Enters jobs in the run folder."""
    (run_dir / "slurm").mkdir(parents=True, exist_ok=True)
    known = [*read_jobs(run_dir), *jobs]
    write_json(run_dir / "slurm/jobs.json", [vars(job) for job in known], sync=True)


def read_cancelled(run_dir: Path) -> list[str]:
    """Jobs that the user has cancelled."""
    return _read_list(run_dir / "slurm/cancelled.json", str)


def mark_cancelled(run_dir: Path, job_ids: list[str]) -> None:
    """From now on these jobs are not requeued."""
    write_json(run_dir / "slurm/cancelled.json", [*read_cancelled(run_dir), *job_ids], sync=True)


def _read_list(path: Path, kind: type[T]) -> list[T]:
    if not path.is_file():
        return []
    try:
        return read_record(list[kind], read_json(path))  # type: ignore[valid-type]
    except (OSError, ValueError) as error:
        fix = "delete it; jobs that are queued already are then not known"
        raise RunError(f"{path}: can't be read: {error}\n  fix: {fix}") from None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
