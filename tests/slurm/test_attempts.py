"""What a job enters in its run folder before and after an attempt, and what it decides by that."""

import json

import pytest

from megatron_sky.distributed import launch
from megatron_sky.errors import RunError
from megatron_sky.slurm import attempts
from megatron_sky.trainer import run_folder


@pytest.fixture
def start(recipe):
    """`start(attempt, step)`: the folder of an attempt of job 7, with a checkpoint of `step` there."""

    def begin(number: int, step: int = 0, job: str = "7"):
        config = recipe()
        from pathlib import Path

        if step:
            (Path(config.train.run_dir) / f"checkpoints/step_{step:07d}").mkdir(parents=True, exist_ok=True)
        environ = {"SLURM_JOB_ID": job} | ({"SLURM_RESTART_COUNT": str(number)} if number else {})
        return attempts.begin(config, max_requeues=1, environ=environ)

    return begin


def told(folder) -> list[dict]:
    return json.loads((folder.parents[1] / "run.json").read_text())["attempts"]


def test_an_attempt_from_begin_to_end(start):
    folder = start(0)
    assert folder.name == "job_7_attempt_0" and (folder / "causes").is_dir()
    (folder.parents[1] / "checkpoints/step_0000005").mkdir(parents=True)
    decision, cause = attempts.end(folder, 75, max_requeues=1)
    assert decision.action == "requeue" and cause == ""
    (attempt,) = told(folder)
    assert attempt["slurm"] | {"began": ""} == {
        "job_id": "7",
        "attempt": 0,
        "log": "slurm/job_7_attempt_0/log.txt",
        "began": "",
    }
    assert attempt["step_before"] == 0 and attempt["ended"]["step"] == 5 and attempt["ended"]["exit_code"] == 75
    assert [job.job_id for job in attempts.read_jobs(folder.parents[1])] == ["7"]


def test_the_ranks_causes_count_more_than_the_steps_exit_code(start, monkeypatch):
    folder = start(0)
    monkeypatch.setenv(launch.ERROR_DIR, str(folder / "causes"))
    monkeypatch.setattr(launch.os, "_exit", lambda code: None)
    launch.leave_with(3, "tokens/web.bin: is damaged", 3)
    launch.leave_with(0, "gloo: Connection closed by peer", 1)
    decision, cause = attempts.end(folder, 143, max_requeues=1)
    assert decision.action == "stop" and cause == "rank 3: tokens/web.bin: is damaged"
    assert told(folder)[0]["ended"]["exit_code"] == 3
    assert not (folder / "causes").exists()


def test_a_start_after_a_failed_node_says_so(start):
    start(0)
    folder = start(1, step=10)
    first, second = told(folder)
    assert first["ended"]["exit_code"] is None and "node failed" in first["ended"]["reason"]
    assert second["step_before"] == 10 and "ended" not in second


def test_nodes_that_fail_before_any_checkpoint_end_the_job(start):
    folder = start(0)
    start(1)
    with pytest.raises(RunError, match="no progress"):
        start(2)
    assert len(told(folder)) == 2 and told(folder)[-1]["ended"]["action"] == "stop"
    assert start(0, job="8").name == "job_8_attempt_0"  # another job begins afresh


def test_a_job_that_was_stopped_may_be_requeued_by_hand(start):
    attempts.end(start(0), 2, max_requeues=1)
    assert start(1).name == "job_7_attempt_1"


def test_cancelled(start):
    folder = start(0)
    attempts.mark_cancelled(folder.parents[1], ["7"])
    assert attempts.end(folder, 75, max_requeues=1)[0].reason == "cancelled at step 0"


def test_the_trainer_completes_the_entry_that_the_job_began(start, recipe, monkeypatch):
    folder = start(0)
    run_dir = folder.parents[1]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    facts = {"layout": "DP2", "hosts": ["n1"], "device": "CPU", "resumed_from": None}
    run_folder.describe(run_dir, recipe(), **facts)
    (attempt,) = told(folder)
    assert attempt["layout"] == "DP2" and attempt["slurm"]["job_id"] == "7"
    run_folder.describe(run_dir, recipe(), **facts)  # a second start within one attempt is a start of its own
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    run_folder.describe(run_dir, recipe(), **facts)
    assert [each.get("slurm", {}).get("job_id") for each in told(folder)] == ["7", None, None]


def test_not_in_a_job(recipe):
    with pytest.raises(RunError, match="SLURM_JOB_ID"):
        attempts.begin(recipe(), max_requeues=1, environ={})
