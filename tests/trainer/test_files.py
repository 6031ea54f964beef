"""What the loop asks of a run's data: batches read ahead and pinned for a GPU, a place to go on from, what was used."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_sky.checkpoint.description import CheckpointDescription
from megatron_sky.distributed import device
from megatron_sky.distributed.topology import Coordinates, Layout
from megatron_sky.trainer.files import RunFiles
from megatron_sky.trainer.preflight import preflight
from megatron_sky.trainer.state import TrainState


@pytest.fixture
def opened(recipe):
    """`opened("key=value", ...)`: (RunFiles of a lone rank, its data)."""

    def make(*overrides: str):
        config = recipe(*overrides)
        data = preflight(config, 1).raise_errors().data
        context = SimpleNamespace(
            rank=0, layout=Layout.of(config.parallel, 1), place=Coordinates(tp_rank=0, cp_rank=0, dp_rank=0, pp_rank=0)
        )
        run_dir = Path(config.train.run_dir)
        run_dir.mkdir(exist_ok=True)
        return RunFiles(data, settings=config.data, train=config.train, context=context, run_dir=run_dir), data

    return make


def take(batches, count: int) -> list:
    return [next(batches) for _ in range(count)]


def test_batches_come_in_the_plans_order_and_from_the_state_given(opened):
    files, data = opened("data.num_workers=2")
    with files:
        first = take(files.batches(TrainState()), 12)
        later = take(files.batches(TrainState(1, 8, 256)), 4)
    assert all(torch.equal(batch.tokens, data.read([number]).tokens) for number, batch in enumerate(first))
    assert all(torch.equal(a.tokens, b.tokens) for a, b in zip(first[8:], later, strict=True))


def test_samples_that_are_stepped_over_do_not_come(opened):
    files, data = opened()
    state = TrainState()
    state.skip([1, 2])
    with files:
        batches = take(files.batches(state), 3)
    assert [torch.equal(b.tokens, data.read([n]).tokens) for b, n in zip(batches, (0, 3, 4), strict=True)] == [True] * 3


def test_another_state_ends_the_threads_that_read_for_the_first(opened):
    files, _ = opened("data.num_workers=1")
    with files:
        take(files.batches(TrainState()), 1)
        take(files.batches(TrainState(1, 8, 256)), 1)
        assert sum(thread.name.startswith("data") for thread in threading.enumerate()) == 1
    assert not any(thread.name.startswith("data") for thread in threading.enumerate())


@pytest.mark.parametrize("document_mask", ["false", "true"])
def test_with_a_gpu_batches_are_pinned_where_they_are_read_ahead(document_mask, opened, monkeypatch):
    """A fake of page-locked memory: what is pinned is marked, and the thread that did it noted."""
    threads, pinned = set(), []

    def pin_memory(tensor):
        threads.add(threading.current_thread().name)
        pinned.append(tensor.clone())
        return pinned[-1]

    files, data = opened("data.num_workers=1", f"data.document_mask={document_mask}")
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    with files:
        batches = take(files.batches(TrainState()), 3)
    for number, batch in enumerate(batches):
        tensors = [value for value in vars(batch).values() if value is not None]
        assert len(tensors) == (6 if document_mask == "true" else 4)
        assert all(any(tensor is each for each in pinned) for tensor in tensors)
        assert torch.equal(batch.tokens, data.read([number]).tokens)
    assert all(name.startswith("data") for name in threads), threads


def test_without_a_gpu_nothing_is_pinned_or_copied(opened, monkeypatch):
    def refuse(tensor):
        raise AssertionError("nothing to pin for")

    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    files, _ = opened()
    with files:
        first, second = take(files.batches(TrainState()), 2)
    assert first.loss_mask is second.loss_mask, "what all batches share is not copied"


def test_usage_counts_what_was_stepped_over_too(opened):
    files, data = opened()
    state = TrainState(2, 16, 16 * 32)
    state.skip(list(range(8)))
    used = files.usage(state)
    assert [each["name"] for each in used] == ["en_web", "zh_web"]
    assert sum(each["tokens"] for each in used) == 24 * 32
    assert [each["tokens"] // 32 for each in used] == data.plan.consumed(24)


def test_the_texts_behind_samples_are_named_and_written(opened, recipe):
    files, _ = opened()
    words = files.name_samples(7, [0, 1, 2])
    assert words.count("documents") == 3
    assert (Path(recipe().train.run_dir) / "bad_steps/step_0000007.json").is_file()


def test_it_goes_on_where_a_checkpoint_stands(opened, recipe):
    files, data = opened()
    progress = TrainState(3, 24, 24 * 32, bad_steps=1, skipped=[(8, 16)])
    checkpoint = CheckpointDescription(Path("x"), recipe(), progress.to_dict(), data.plan.fingerprint(), "")
    assert files.continue_from(checkpoint) == progress
