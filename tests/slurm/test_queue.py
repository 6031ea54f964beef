"""Slurm's commands and their answers."""

import pytest

from megatron_sky.errors import RunError
from megatron_sky.slurm import queue


def test_of_an_array_the_part_that_lives_counts():
    lines = [
        "5|COMPLETED|None|0:00|n1",
        "5|RUNNING|None|1:00|n2",
        "5|PENDING|Resources|10:00|",
        "6|FAILED|NonZeroExitCode|0:00|n1",
        "6|COMPLETED|None|0:00|n1",
        "7|RUNNING|None|1:00|n2",
    ]
    found = queue.choose_states(lines, ["5", "6"])
    assert {job: state.state for job, state in found.items()} == {"5": "RUNNING", "6": "FAILED"}
    assert found["5"].is_live and not found["6"].is_live


def test_a_reason_with_bars_and_blanks():
    (state,) = queue.choose_states(["5|PENDING|Nodes required for job are DOWN|1:00|"], ["5"]).values()
    assert state.reason == "Nodes required for job are DOWN" and state.nodes == ""


def test_without_slurm(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RunError, match="sbatch: is not installed here"):
        queue.submit(tmp_path / "x.sbatch")


def test_a_command_that_fails():
    with pytest.raises(RunError, match="failed with exit code 3: no such thing"):
        queue.call("sh", "-c", "echo no such thing >&2; exit 3")


def test_a_command_that_hangs(monkeypatch):
    monkeypatch.setattr(queue, "CLIENT_SECONDS", 0.2)
    with pytest.raises(RunError, match="gave no answer"):
        queue.call("sleep", "5")
