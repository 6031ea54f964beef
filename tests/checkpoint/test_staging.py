"""Copies that a save is written from, and a fork that has not the rest of training's memory."""

import os
from typing import NamedTuple

import pytest
import torch

from megatron_sky.checkpoint import staging
from megatron_sky.checkpoint.staging import Staging, available_memory, left_out_of_forks


class Request(NamedTuple):
    async_fn: object
    async_fn_args: tuple
    preload_fn: object = None


class Ranks:
    """A context whose other ranks say what is given."""

    def __init__(self, *others: tuple):
        self.others = others

    def gather_objects(self, value):
        return [value, *self.others]


def buckets_of(*tensors: torch.Tensor) -> list:
    return [("folder/a", "a", ([("item", "object")], list(enumerate(tensors))))]


@pytest.fixture
def room(monkeypatch):
    monkeypatch.setattr(staging, "available_memory", lambda: (8 << 30, 8 << 30))
    monkeypatch.setattr(staging, "_step_bytes", lambda: 0)


def test_copies_keep_the_moment_and_share_what_was_shared(room):
    weight = torch.arange(6.0).view(2, 3)
    tensors = [
        weight,
        weight.view(-1),
        weight.t(),
        torch.ones(3, dtype=torch.bfloat16),
        torch.empty(0),
        torch.tensor(7),
    ]
    before = [tensor.clone() for tensor in tensors]
    request = Staging(Ranks()).staged(Request(print, (0, buckets_of(*tensors), None)))
    ((path, name, (objects, copies)),) = request.preload_fn()
    weight.fill_(-1)
    assert (path, name, objects) == ("folder/a", "a", [("item", "object")])
    for (_, copy), tensor in zip(copies, before, strict=True):
        assert torch.equal(copy, tensor) and copy.dtype == tensor.dtype
        assert copy.untyped_storage().nbytes() == copy.nbytes, "a tensor is written with all of its storage"
    assert copies[0][1].data_ptr() == copies[1][1].data_ptr()


def test_the_memory_is_kept_from_save_to_save(room):
    tensor, held = torch.zeros(1 << 18), Staging(Ranks())
    places = set()
    for value in (1.0, 2.0):
        tensor.fill_(value)
        ((_, _, (_, ((_, copy),))),) = held.staged(Request(print, (0, buckets_of(tensor), None))).preload_fn()
        assert bool((copy == value).all())
        places.add(copy.data_ptr())
    assert len(places) == 1


def test_where_memory_is_short_nothing_is_copied_and_that_is_told_once(monkeypatch, caplog):
    monkeypatch.setattr(staging, "available_memory", lambda: (1000, 8000))
    held, request = Staging(Ranks()), Request(print, (0, buckets_of(torch.zeros(500)), None))
    with caplog.at_level("INFO"):
        assert held.staged(request) is request and held.staged(request) is request
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "fix: more memory" in caplog.text


def test_all_ranks_of_a_machine_need_room_together(monkeypatch):
    monkeypatch.setattr(staging, "available_memory", lambda: (10_000, 20_000))
    monkeypatch.setattr(staging, "_step_bytes", lambda: 0)
    here, request = staging.socket.gethostname(), Request(print, (0, buckets_of(torch.zeros(1000)), None))
    assert Staging(Ranks(("elsewhere", True, 6000, 0))).staged(request).preload_fn is not None
    assert Staging(Ranks((here, True, 6000, 0))).staged(request) is request
    assert Staging(Ranks((here, False, 0, 0))).staged(request) is request, "a GPU's are copied to the host anyway"


def test_a_fork_has_not_what_is_left_out_and_has_what_is_asked_for():
    """By what the kernel says of the child's memory."""
    left, kept = torch.ones(1 << 20), torch.full((1 << 20,), 2.0)
    part = torch.from_numpy(kept.numpy()[100:200])
    ours, theirs = os.pipe()
    with left_out_of_forks([left, kept], but=[part]):
        if not (child := os.fork()):
            inside = [has_page(tensor.data_ptr() + (1 << 20)) for tensor in (left, kept)]
            os.write(theirs, bytes(inside))
            os._exit(0)
    os.waitpid(child, 0)
    assert list(os.read(ours, 2)) == [False, True]
    if not (child := os.fork()):
        os._exit(0 if left.sum() == 1 << 20 else 1)
    assert os.waitpid(child, 0)[1] == 0, "a later fork has it again"


def has_page(address: int) -> bool:
    with open("/proc/self/maps") as file:
        ranges = [line.split()[0].split("-") for line in file]
    return any(int(start, 16) <= address < int(end, 16) for start, end in ranges)


def test_a_control_groups_limit_counts(tmp_path):
    (tmp_path / "job").mkdir()
    for name, text in {"memory.max": "1000", "memory.current": "700", "memory.stat": "inactive_file 200\n"}.items():
        (tmp_path / "job" / name).write_text(text)
    (tmp_path / "membership").write_text("0::/job/step\n")
    assert list(staging._group_limits(tmp_path, tmp_path / "membership")) == [(1000, 500)]
    free, total = available_memory()
    assert 0 < free <= total
