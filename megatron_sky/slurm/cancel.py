"""`slurm cancel`: the jobs that wait leave the queue, training saves and ends, and nothing is requeued.

Evaluation and release have nothing to save, so they are ended at once.
"""

import time
from collections.abc import Callable
from pathlib import Path

from megatron_sky.errors import RunError
from megatron_sky.slurm import queue
from megatron_sky.slurm.attempts import mark_cancelled, newest_step
from megatron_sky.slurm.submit import live_jobs

PAUSE_SECONDS = 1.0


def cancel_run(run_dir: Path, *, wait_seconds: float, say: Callable[[str], None]) -> None:
    """Stops all jobs of a run in order. Training that still runs after `wait_seconds` is ended without having saved."""
    jobs = {job.job_id: job for job in live_jobs(run_dir)}
    live = list(jobs)
    if not live:
        fix = f"look at megatron-sky slurm status {run_dir}"
        raise RunError(f"{run_dir}: no job of this run is queued or running\n  fix: {fix}")
    mark_cancelled(run_dir, live)
    say(f"jobs {', '.join(live)}: not requeued from now on")
    asked: set[str] = set()
    end = time.monotonic() + wait_seconds
    while states := [state for state in queue.find_jobs(live).values() if state.is_live]:
        queue.cancel([state.job_id for state in states if state.state == "PENDING"])
        for job in [jobs[state.job_id] for state in states if state.state == "RUNNING" and state.job_id not in asked]:
            asked.add(job.job_id)
            if job.kind == "train":
                queue.ask_to_leave(job.job_id)
                say(f"job {job.job_id}: asked to save and leave, waiting up to {wait_seconds:.0f} s")
            else:
                queue.cancel([job.job_id])
                say(f"job {job.job_id} ({job.name}): ended, it has nothing to save")
        if time.monotonic() > end:
            training = [state.job_id for state in states if jobs[state.job_id].kind == "train"]
            if training:
                say(f"jobs {', '.join(training)}: ended without having saved")
            queue.cancel([state.job_id for state in states])
            break
        time.sleep(PAUSE_SECONDS)
    say(f"stopped; the newest checkpoint is of step {newest_step(run_dir):,}")
