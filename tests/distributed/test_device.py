"""Which GPU a process gets, told on a machine without one."""

import os

import pytest
import torch

from megatron_sky.distributed import device
from megatron_sky.errors import NodeError


@pytest.fixture(autouse=True)
def outside_of_a_job(monkeypatch):
    for name in ("SLURM_STEP_ID", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def test_each_process_has_the_gpu_of_its_number():
    assert [device._gpu_of(rank, 8) for rank in range(8)] == list(range(8))


def test_more_processes_than_gpus_are_refused_with_the_fix():
    with pytest.raises(NodeError, match=r"local rank 1: there is no GPU for it(.|\n)*start at most 1"):
        device._gpu_of(1, 1)


def test_slurm_may_show_each_process_its_own_gpu_alone(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert device._gpu_of(3, 1) == 0
    with pytest.raises(NodeError):
        device._gpu_of(3, 2)
    monkeypatch.setenv("LOCAL_RANK", "3")  # torchrun under srun: its processes see the same GPUs
    with pytest.raises(NodeError):
        device._gpu_of(3, 1)


@pytest.mark.parametrize(("num_gpus", "left_out"), [(1, True), (2, False), (8, False)])
def test_too_few_gpus_are_left_out(num_gpus, left_out, monkeypatch):
    import torch

    monkeypatch.setattr(device, "_state", {"ready": False})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_gpus)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert device.leave_gpus_out_below(2) is left_out
    assert device.has_gpu() is not left_out
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("" if left_out else "0")


def test_threads_are_the_recipes_then_the_environments_then_a_share(monkeypatch):
    monkeypatch.setattr(device, "available_cores", lambda: 12)
    monkeypatch.setenv("OMP_NUM_THREADS", "any")
    assert device.choose_threads(3, 2) == 3
    assert device.choose_threads(0, 2) == torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert device.choose_threads(0, 2) == 6
    assert device.choose_threads(0, 100) == 1
