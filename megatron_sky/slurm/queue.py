"""Slurm's own commands, each with a time limit, their failures told in words."""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.errors import RunError

CLIENT_SECONDS = 60
LIVE = ("PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING")
_FORMAT = "%F|%T|%r|%L|%N"


@dataclass(frozen=True)
class JobState:
    """One job as squeue shows it; of an array, its part that lives longest."""

    job_id: str
    state: str
    """Slurm's word, as RUNNING."""
    reason: str
    """Why it waits, or None."""
    time_left: str
    nodes: str

    @property
    def is_live(self) -> bool:
        return self.state in LIVE


def call(*command: str) -> str:
    """Standard output of a Slurm command. Raises RunError where it fails, is not there, or does not answer."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=CLIENT_SECONDS, check=False
        )
    except FileNotFoundError:
        fix = "run this on a machine of a Slurm cluster, as its login node"
        raise RunError(f"{command[0]}: is not installed here\n  fix: {fix}") from None
    except subprocess.TimeoutExpired:
        raise RunError(f"{command[0]}: gave no answer within {CLIENT_SECONDS} s\n  fix: is slurmctld up?") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise RunError(f"{' '.join(command)}: failed with exit code {done.returncode}: {said}")
    return done.stdout


def submit(script: Path, *, after: str | None = None) -> str:
    """Queues `script`, behind job `after` and only if that ends well; returns the job's number."""
    dependency = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    return call("sbatch", "--parsable", *dependency, str(script)).strip().partition(";")[0]


def find_jobs(job_ids: Sequence[str]) -> dict[str, JobState]:
    """The state of each job that Slurm still knows (an ended one for some minutes)."""
    if not job_ids:
        return {}
    lines = call("squeue", "--noheader", f"--user={os.getuid()}", "--states=all", f"--format={_FORMAT}").split("\n")
    return choose_states(lines, job_ids)


def choose_states(lines: Sequence[str], job_ids: Sequence[str]) -> dict[str, JobState]:
    """squeue's lines of `job_ids`, one a job: a live part of an array before an ended one, a failed before a whole."""
    states: dict[str, JobState] = {}
    for line in filter(None, map(str.strip, lines)):
        fields = line.split("|", 4)
        if len(fields) != 5:
            raise RunError(f"squeue: its line {line[:200]!r} is not of the form {_FORMAT}, which it was asked for")
        state = JobState(*fields)
        before = states.get(state.job_id)
        if state.job_id in job_ids and (before is None or _weight(state) > _weight(before)):
            states[state.job_id] = state
    return states


def _weight(state: JobState) -> tuple[bool, bool, bool]:
    return state.is_live, state.state == "RUNNING", state.state != "COMPLETED"


def cancel(job_ids: Sequence[str]) -> None:
    """Ends jobs, or takes them out of the queue, at once."""
    if job_ids:
        call("scancel", *job_ids)


def ask_to_leave(job_id: str) -> None:
    """Sends USR1 to the processes of a running job: they save and end by themselves."""
    call("scancel", "--signal=USR1", job_id)
