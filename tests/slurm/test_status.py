"""Where a run stands, in lines: from its folder, and from what Slurm says of its jobs."""

import json

import pytest

from megatron_sky.config import dump_config
from megatron_sky.errors import RunError
from megatron_sky.slurm import queue
from megatron_sky.slurm.attempts import QueuedJob, add_jobs
from megatron_sky.slurm.queue import JobState
from megatron_sky.slurm.status import status_lines
from tests.report.conftest import write_run  # noqa: F401


@pytest.fixture
def slurm(monkeypatch):
    """`slurm(state...)`: what squeue would show."""

    def shows(*states: JobState) -> None:
        monkeypatch.setattr(queue, "find_jobs", lambda ids: {state.job_id: state for state in states})

    shows()
    return shows


def test_a_folder_that_is_no_runs(slurm, tmp_path):
    with pytest.raises(RunError, match="holds neither a run nor jobs of one"):
        status_lines(tmp_path)


def test_a_run_and_what_is_left_of_it(slurm, tmp_path, recipe, write_run):  # noqa: F811
    write_run(tmp_path, losses=(4.0, 3.0, 2.5))
    lines = status_lines(tmp_path)
    assert "step 3, 3,000 tokens, loss 2.5000" in lines[0] and "left" not in lines[1]
    (tmp_path / "config.yaml").write_text(dump_config(recipe()))
    lines = status_lines(tmp_path)
    assert "3,000 tokens of 10.24k (29.3%)" in lines[0] and lines[1].endswith(" left")
    assert lines[2] == "saved    no checkpoint yet" and len(lines) == 3


def test_jobs(slurm, tmp_path):
    add_jobs(tmp_path, [QueuedJob(str(n), "train", f"run-{n}", "s.sbatch") for n in (1, 2, 3)])
    slurm(JobState("1", "RUNNING", "None", "1:00:00", "node[1-2]"), JobState("2", "PENDING", "Dependency", "-", ""))
    lines = status_lines(tmp_path)
    assert lines[0].endswith("no step yet")
    assert lines[-3:] == [
        "job 1    run-1: RUNNING on node[1-2], 1:00:00 of its time left",
        "job 2    run-2: PENDING (Dependency)",
        "job 3    run-3: ended, no longer known to Slurm",
    ]


def test_what_became_of_the_last_attempt(slurm, tmp_path):
    add_jobs(tmp_path, [QueuedJob("1", "train", "run", "s.sbatch")])
    ended = {"time": "", "exit_code": 1, "step": 5, "cause": "", "action": "requeue", "reason": "rank 3 crashed"}
    attempts = [
        {
            "slurm": {"job_id": "1", "attempt": n, "log": f"slurm/job_1_attempt_{n}/log"},
            "step_before": 0,
            "ended": ended,
        }
        for n in range(2)
    ]
    (tmp_path / "run.json").write_text(json.dumps({"attempts": attempts}))
    lines = status_lines(tmp_path)
    assert "last attempt: rank 3 crashed" in lines[-2] and lines[-1].endswith("slurm/job_1_attempt_1/log")
