"""Tensors of a checkpoint that are read into the memory that they are meant for."""

import pytest
import torch
from torch.distributed import checkpoint as dcp

from megatron_sky.checkpoint import fill
from megatron_sky.errors import CheckpointError


@pytest.fixture
def reading(monkeypatch):
    """torch's reader in this way while the test runs; returns which tensors were filled, and which torch read."""
    filled, original = {}, fill._fill

    def noted(folder, stored, item, planner):
        filled[item.storage_index.fqn] = original(folder, stored, item, planner)
        return filled[item.storage_index.fqn]

    monkeypatch.setattr(fill, "_fill", noted)
    monkeypatch.setattr(dcp.FileSystemReader, "read_data", dcp.FileSystemReader.read_data)
    fill.fill_from_files()
    return filled


def test_whole_tensors_are_filled_and_others_are_read_by_torch(reading, tmp_path):
    stored = {
        "matrix": torch.randn(7, 5),
        "bf16": torch.randn(3, 2, dtype=torch.bfloat16),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "other_format": torch.randn(4),
        "across": torch.randn(4, 6),
        "object": {"a": 1},
    }
    dcp.save(dict(stored), checkpoint_id=tmp_path, no_dist=True)
    wanted = {name: torch.zeros_like(value) for name, value in stored.items() if torch.is_tensor(value)}
    wanted["other_format"] = torch.zeros(4, dtype=torch.float64)
    wanted["across"] = torch.zeros(6, 4).t()
    wanted["object"] = {"a": 0}
    dcp.load(wanted, checkpoint_id=tmp_path, no_dist=True)
    assert wanted["object"] == {"a": 1}
    for name, value in stored.items():
        if torch.is_tensor(value):
            assert torch.equal(wanted[name], value.to(wanted[name].dtype)), name
    assert {name for name, is_filled in reading.items() if not is_filled} == {"other_format", "across", "object.a"}
    assert {"matrix", "bf16", "scalar"} <= reading.keys()


def test_a_file_that_is_cut_off_is_named(reading, tmp_path):
    dcp.save({"matrix": torch.randn(100, 50)}, checkpoint_id=tmp_path, no_dist=True)
    (file,) = tmp_path.glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-500])
    with pytest.raises(dcp.api.CheckpointException) as raised:
        dcp.load({"matrix": torch.zeros(100, 50)}, checkpoint_id=tmp_path, no_dist=True)
    (cause, _) = raised.value.failures[0]
    assert isinstance(cause, CheckpointError) and file.name in str(cause) and "truncated" in str(cause)
