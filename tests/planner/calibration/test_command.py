"""`plan --calibrate` from measurements to a file that `--gpu` takes; measuring itself is tried in `test_rank.py`."""

import pytest

from megatron_sky.errors import RunError
from megatron_sky.planner import hardware
from megatron_sky.planner.calibration import command
from tests.planner.machine import table


def test_what_is_measured_is_written_and_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "rank_numbers", lambda: [1, 2])
    monkeypatch.setattr(command, "measure_together", lambda ranks, seconds, say: table(ranks))
    lines: list[str] = []
    path = tmp_path / "new" / "machine.yaml"
    command.calibrate(path, say=lines.append)
    gpu = hardware.find_gpu(str(path))
    assert gpu.shared and gpu.measured is not None and [rates.ranks for rates in gpu.measured.tables] == [1, 2]
    assert gpu.measured.at(2).threads == 1 and gpu.memory_gib > 0
    assert any("GFLOP/s in fp32" in line for line in lines) and str(path) in lines[-1]


def test_as_many_ranks_as_cores_at_most(monkeypatch):
    monkeypatch.setattr(command.device, "available_cores", lambda: 12)
    assert command.rank_numbers() == [1, 2, 6, 12]
    monkeypatch.setattr(command.device, "available_cores", lambda: 1)
    assert command.rank_numbers() == [1]


def test_a_rank_that_fails_is_named(monkeypatch):
    class Answers:
        def get(self, timeout):
            return ("failed", 1, "ValueError: no")

    with pytest.raises(RunError, match="rank 1 of 2: ValueError: no"):
        command._wait([None, None], Answers(), 1.0, print)


def test_a_known_gpu_lends_what_cannot_be_measured():
    gpu = command._known_gpu("NVIDIA A800-SXM4-80GB")
    assert gpu is not None and gpu.name == "a800" and command._known_gpu("Radeon") is None
