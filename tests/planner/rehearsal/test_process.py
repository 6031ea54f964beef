"""A rehearsal finds what would fail or stall on a GPU, names the line, and leaves the process that asked as it was."""

import os
import time
from multiprocessing import get_context

import psutil
import pytest

from megatron_sky.distributed.helpers import end_with
from megatron_sky.errors import ConfigError, RunError
from megatron_sky.planner.rehearsal import Request, process, rehearse, rehearse_all
from tests.planner.rehearsal.jobs import tiny
from tests.slow import slow_except


def reads_a_number() -> None:
    """A loss function that asks the GPU for its value, as a log line would."""
    from megatron_sky.trainer import step

    sum_loss = step._sum_loss

    def reading(mask, losses):
        losses.sum().item()
        return sum_loss(mask, losses)

    step._sum_loss = reading


def copies_to_the_cpu() -> None:
    from megatron_sky.trainer import step

    sum_loss = step._sum_loss
    step._sum_loss = lambda mask, losses: sum_loss(mask, losses.cpu())


def makes_a_tensor_of_numbers() -> None:
    """A weight of the loss: copied to the GPU, which is waited for, at each micro batch."""
    import torch

    from megatron_sky.trainer import step

    sum_loss = step._sum_loss
    step._sum_loss = lambda mask, losses: sum_loss(mask, losses * torch.tensor([0.5], device=losses.device))


def indexes_by_a_list() -> None:
    from megatron_sky.trainer import step

    sum_loss = step._sum_loss
    step._sum_loss = lambda mask, losses: sum_loss(mask[:, [0, 1]], losses[:, [0, 1]])


def copies_and_waits() -> None:
    from megatron_sky.trainer.step import StepRunner

    on_this_rank = StepRunner._on_this_rank

    def waiting(self, batch):
        return on_this_rank(self, batch) | {"loss_mask": batch.loss_mask.to(self.context.device)}

    StepRunner._on_this_rank = waiting


def leaves_a_tensor_on_the_cpu() -> None:
    """A mask that nobody moved: on a CPU alone nothing would be seen of it."""
    from megatron_sky.trainer.step import StepRunner

    on_this_rank = StepRunner._on_this_rank

    def forgetful(self, batch):
        return on_this_rank(self, batch) | {"loss_mask": batch.loss_mask}

    StepRunner._on_this_rank = forgetful


def has_a_shape_that_fits_one_layout() -> None:
    from megatron_sky.trainer.step import StepRunner

    on_this_rank = StepRunner._on_this_rank

    def whole(self, batch):
        return on_this_rank(self, batch) | {
            "loss_mask": batch.loss_mask[:, :64].to(self.context.device, non_blocking=True)
        }

    StepRunner._on_this_rank = whole


FAULTS = {
    reads_a_number: "operator _local_scalar_dense: reads a number of the GPU while it computes",
    copies_to_the_cpu: "operator _to_copy: copies from the GPU while it computes",
    makes_a_tensor_of_numbers: "operator tensor: makes a tensor on the GPU of numbers that the CPU has",
    indexes_by_a_list: "operator __getitem__: indexes a tensor on the GPU by numbers that the CPU has",
    copies_and_waits: "operator _to_copy: copies to the GPU without non_blocking=True while it computes",
    leaves_a_tensor_on_the_cpu: "operator mul: Tensor on device cpu is not on the expected device meta",
    has_a_shape_that_fits_one_layout: "operator mul: ",  # and torch's words, which change
}


def serve_with(fault, answers, parent: int, requests: list[Request]) -> None:
    fault()
    process._serve(answers, parent, requests)


@pytest.mark.parametrize("fault", slow_except(FAULTS, reads_a_number, leaves_a_tensor_on_the_cpu))
def test_a_fault_of_a_branch_for_gpus_is_found_and_its_line_named(fault):
    spawn = get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    child = spawn.Process(target=serve_with, args=(fault, there, os.getpid(), [Request(tiny(), 1, 0)]))
    child.start()
    there.close()
    told = here.recv()
    child.join()
    assert FAULTS[fault] in told
    assert "rank 0: the rehearsal fails at megatron_sky/trainer/step.py:" in told
    assert "\n  fix: " in told


def test_what_is_asked_must_be_a_job():
    with pytest.raises(ConfigError, match="must divide the number of ranks, 3"):
        rehearse(tiny("parallel.tp_size=2"), 3, 0)


def test_without_transformer_engine_its_extra_is_named(monkeypatch):
    monkeypatch.setattr(process, "installed", lambda name: None)
    for asked in ("model.backend=te", "precision.fp8=mxfp8"):  # the second suits no other backend
        with pytest.raises(ConfigError, match="needs transformer-engine and onnxscript to be rehearsed") as caught:
            rehearse(tiny(asked), 1, 0)
        assert 'fix: pip install "megatron-sky[te-rehearsal]"' in str(caught.value)


def test_what_of_the_extra_is_lacking_is_told(monkeypatch):
    monkeypatch.setattr(process, "installed", lambda name: None if name == "onnxscript" else "2.20")
    with pytest.raises(ConfigError, match="needs onnxscript to be rehearsed"):
        rehearse(tiny("model.backend=te"), 1, 0)


def test_an_open_choice_is_the_torch_backend_s_where_it_can(monkeypatch):
    monkeypatch.setattr(process, "installed", lambda name: "2.20")
    assert process.choose_backend(tiny()) == process.choose_backend(tiny("precision.fp8=delayed")) == "torch"
    assert process.choose_backend(tiny("precision.fp8=mxfp8")) == "te"
    with pytest.raises(ConfigError, match="needs the te backend, and the backend is torch"):
        process.choose_backend(tiny("model.backend=torch", "precision.fp8=mxfp8"))


def end_at_once(answers, parent, requests, capability) -> None:
    os._exit(3)


def test_a_process_that_ends_is_an_error(monkeypatch):
    monkeypatch.setattr(process, "_serve", end_at_once)
    with pytest.raises(RunError, match="rank 0: the process that rehearsed it ended with exit code 3"):
        rehearse_all([Request(tiny(), 1, 0)])


def sleep_for_long(answers, parent: int, requests: list[Request], capability: None) -> None:
    end_with(parent)
    time.sleep(600)


def ask_and_wait() -> None:
    process._serve = sleep_for_long
    rehearse_all([Request(tiny(), 1, 0)])


def test_a_rehearsal_ends_with_the_process_that_asks():
    spawn = get_context("spawn")
    asking = spawn.Process(target=ask_and_wait)
    asking.start()
    family = psutil.Process(asking.pid)
    rehearsing: list[psutil.Process] = []
    for _ in range(1200):
        rehearsing = [child for child in family.children() if "spawn_main" in " ".join(child.cmdline())]
        if rehearsing:
            break
        time.sleep(0.1)
    time.sleep(1)  # it may be between its start and its request to end with the other, which looks for that itself
    asking.kill()
    asking.join()
    gone, alive = psutil.wait_procs(rehearsing, timeout=60)
    assert gone and not alive


def test_the_process_that_asks_stays_as_it_was():
    import torch
    import torch.distributed as dist

    names = [(torch, "empty"), (torch.Tensor, "type"), (dist, "all_reduce"), (torch.nn.functional, "rms_norm")]
    before = [getattr(owner, name) for owner, name in names]
    rehearse(tiny(), 1, 0)
    assert [getattr(owner, name) for owner, name in names] == before
    assert not torch.empty(1).is_meta
