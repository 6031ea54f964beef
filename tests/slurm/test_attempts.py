"""What a job enters in its run folder before and after an attempt, and what it decides by that."""

import json

import pytest

from megatron_sky.distributed import launch
from megatron_sky.errors import RunError
from megatron_sky.slurm import attempts
from megatron_sky.trainer import run_record


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
    run_record.describe(run_dir, recipe(), **facts)
    (attempt,) = told(folder)
    assert attempt["layout"] == "DP2" and attempt["slurm"]["job_id"] == "7"
    run_record.describe(run_dir, recipe(), **facts)  # a second start within one attempt is a start of its own
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    run_record.describe(run_dir, recipe(), **facts)
    assert [each.get("slurm", {}).get("job_id") for each in told(folder)] == ["7", None, None]


def test_not_in_a_job(recipe):
    with pytest.raises(RunError, match="SLURM_JOB_ID"):
        attempts.begin(recipe(), max_requeues=1, environ={})


# --- a torn run.json ---


def tear(folder, keep: float) -> None:
    path = folder.parents[1] / "run.json"
    path.write_text(path.read_text()[: int(len(path.read_text()) * keep)])


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_torn_history_is_told_kept_aside_and_still_counts(keep, start, caplog):
    """Two failures of a job that may be requeued once: the second ends it, whatever of run.json is left."""
    attempts.end(start(0), 1, max_requeues=1)
    folder = start(1, step=10)
    before, content = told(folder), None
    tear(folder, keep)
    content = (folder.parents[1] / "run.json").read_text()
    (folder.parents[1] / "checkpoints/step_0000020").mkdir()
    decision, _ = attempts.end(folder, 1, max_requeues=1)
    assert decision.action == "stop" and "failure 2 of this job" in decision.reason
    assert told(folder)[:1] == before[:1] and told(folder)[1]["step_before"] == 10
    assert (folder.parents[1] / "run.json.torn-1").read_text() == content
    assert "run.json: is torn" in caplog.text and "kept as run.json.torn-1" in caplog.text


def test_a_second_tear_is_kept_beside_the_first(start):
    folder = start(0)
    for number in (1, 2):
        tear(folder, 0.5)
        attempts.end(folder, 75, max_requeues=1)
        assert (folder.parents[1] / f"run.json.torn-{number}").is_file()


def test_an_attempt_that_left_nothing_but_its_folder_is_counted_as_taken_away(start, caplog):
    attempts.end(start(0), 75, max_requeues=1)
    folder = start(1, step=10)
    tear(folder, 0.0)
    (folder.parents[1] / "slurm/job_7_attempt_0/attempt.json").unlink()
    (folder.parents[1] / "checkpoints/step_0000020").mkdir()
    decision, _ = attempts.end(folder, 1, max_requeues=1)
    assert decision.action == "requeue" and "failure 1 of this job" in decision.reason
    first, second = told(folder)
    assert first["ended"]["exit_code"] is None and first["slurm"]["attempt"] == 0
    assert second["step_before"] == 10 and "what became of this attempt is lost" in caplog.text


def test_looking_at_a_run_moves_nothing(start, caplog):
    folder = start(0)
    tear(folder, 0.5)
    found = attempts.read_run(folder.parents[1])
    assert [each["slurm"]["attempt"] for each in found] == [0]
    assert not (folder.parents[1] / "run.json.torn-1").exists() and "is torn" in caplog.text
