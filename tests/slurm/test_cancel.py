"""Cancelling: what waits leaves, training saves, what has nothing to save is ended."""

import json

import pytest

from megatron_sky.errors import RunError
from megatron_sky.slurm import cancel, queue
from megatron_sky.slurm.attempts import QueuedJob, add_jobs
from megatron_sky.slurm.queue import JobState


class Cluster:
    """Jobs that end when they are asked to (but for those in `deaf`), or cancelled."""

    def __init__(self, monkeypatch, **states: str):
        self.states, self.asked, self.cancelled, self.deaf = states, [], [], set()
        monkeypatch.setattr(queue, "find_jobs", self.find)
        monkeypatch.setattr(queue, "cancel", self.cancel)
        monkeypatch.setattr(queue, "ask_to_leave", self.ask)
        monkeypatch.setattr(cancel, "PAUSE_SECONDS", 0.0)

    def find(self, ids):
        return {name: JobState(name, self.states[name], "", "", "") for name in ids if name in self.states}

    def cancel(self, ids) -> None:
        self.cancelled += ids
        for name in ids:
            self.states.pop(name)

    def ask(self, name: str) -> None:
        self.asked.append(name)
        if name not in self.deaf:
            self.states.pop(name)


def run(tmp_path, *, wait: float = 10.0) -> list[str]:
    said: list[str] = []
    kinds = {"a": "train", "b": "train", "c": "evaluate"}
    add_jobs(tmp_path, [QueuedJob(name, kind, f"job-{name}", "s") for name, kind in kinds.items()])
    cancel.cancel_run(tmp_path, wait_seconds=wait, say=said.append)
    return said


def test_each_in_its_way(tmp_path, monkeypatch):
    cluster = Cluster(monkeypatch, a="RUNNING", b="PENDING", c="RUNNING")
    said = run(tmp_path)
    assert cluster.asked == ["a"] and sorted(cluster.cancelled) == ["b", "c"] and not cluster.states
    assert json.loads((tmp_path / "slurm/cancelled.json").read_text()) == ["a", "b", "c"]
    assert said[0] == "jobs a, b, c: not requeued from now on" and said[-1].startswith("stopped; ")
    assert "job a: asked to save and leave, waiting up to 10 s" in said


def test_training_that_does_not_leave_is_ended_in_the_end(tmp_path, monkeypatch):
    cluster = Cluster(monkeypatch, a="RUNNING")
    cluster.deaf = {"a"}
    said = run(tmp_path, wait=0.0)
    assert cluster.asked == ["a"] and cluster.cancelled == ["a"], "asked once, then ended"
    assert "jobs a: ended without having saved" in said


def test_no_job_is_left(tmp_path, monkeypatch):
    Cluster(monkeypatch)
    with pytest.raises(RunError, match="no job of this run is queued or running"):
        run(tmp_path)
    assert not (tmp_path / "slurm/cancelled.json").exists()
