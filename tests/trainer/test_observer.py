"""What rank 0 tells of a run, and that the others tell nothing."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_sky.checkpoint.saver import SaveOutcome
from megatron_sky.monitor.metrics import Metrics, read_metrics
from megatron_sky.trainer.anomaly import SPIKE
from megatron_sky.trainer.bad_steps import BadStep, Decision
from megatron_sky.trainer.observer import Observer
from megatron_sky.trainer.resume import Remaining
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.step import StepResult
from megatron_sky.trainer.stragglers import Slow
from megatron_sky.trainer.validation import SetLoss


@pytest.fixture
def observed(recipe, tmp_path):
    """`observed(tell, rank=0)`: the metrics that `tell(observer, state)` leaves; None where there are none."""

    def observe(tell, rank: int = 0) -> Metrics | None:
        context = SimpleNamespace(rank=rank, world_size=4, layout="TP1 x PP1 x CP1 x DP4")
        state = TrainState(step=2, consumed_samples=16, consumed_tokens=512)
        remaining, ratios = Remaining(steps=3, end_token=1280), {"web": 1.5}
        with Observer(
            recipe(), context=context, state=state, remaining=remaining, run_dir=tmp_path, token_ratios=ratios
        ) as observer:
            tell(observer, state)
        return read_metrics(tmp_path) if (tmp_path / "metrics.jsonl").is_file() else None

    return observe


def step(observer: Observer, state: TrainState, grad_norm: float | None = 1.5) -> None:
    state.advance(8, 32)
    result = StepResult(3.25, grad_norm)
    observer.step(state, result, updated=grad_norm is not None, lr=1e-3, batch_size=8, tokens=256, seconds=0.5)


def test_a_step_is_a_record(observed):
    (record,) = observed(step).train
    assert (record.step, record.consumed_tokens, record.lm_loss, record.grad_norm) == (3, 768, 3.25, 1.5)
    assert (record.step_seconds, record.tokens_per_second, record.global_batch_size) == (0.5, 512.0, 8)
    assert record.tokens_per_second_per_gpu == 128.0


def test_an_overflow_is_told_and_its_norm_is_none(observed, caplog):
    (record,) = observed(lambda observer, state: step(observer, state, None)).train
    assert math.isnan(record.grad_norm) and "step 3: gradients overflowed fp16" in caplog.text


@pytest.mark.parametrize(("resumed", "name"), [(False, "start"), (True, "resume")])
def test_the_beginning(resumed, name, observed):
    (event,) = observed(lambda observer, state: observer.run_started(2, is_resumed=resumed)).events
    assert event.event == name and event.fields == {"step": 2, "layout": "TP1 x PP1 x CP1 x DP4", "world_size": 4}


def test_losses_of_sets_with_and_without_a_reference_tokenizer(observed, caplog):
    caplog.set_level("INFO")

    def tell(observer, state) -> None:
        step(observer, state)
        observer.validation(state, {"web": SetLoss(2.0, 100, 0.25), "code": SetLoss(4.0, 100, 0.25)})

    records = {record.set: record for record in observed(tell).validation}
    assert records["web"].normalised_loss == 3.0 and records["code"].normalised_loss is None
    assert "50.0% of the time so far" in caplog.text


def test_saves_bad_steps_and_slow_ranks(observed, caplog):
    def tell(observer, state) -> None:
        observer.save_ended(SaveOutcome(2, Path("x/step_0000002"), 1.5))
        observer.save_ended(SaveOutcome(3, Path("x/step_0000003"), 0.0, "no space"))
        bad = BadStep(3, StepResult(9.0, 1.0), SPIKE, [1, 2], earlier=0)
        observer.bad_step(bad, Decision("skip", "a spike", "the data", "web 1"), "skip")
        observer.slow_ranks([Slow(rank, f"node{rank}", 2.0, 1.0) for rank in range(6)])

    events = observed(tell).events
    assert [event.event for event in events[:3]] == ["checkpoint", "checkpoint_failed", "bad_step"]
    assert events[0].fields["path"] == "checkpoints/step_0000002" and events[1].fields["reason"] == "no space"
    assert [event.fields["rank"] for event in events[3:]] == [0, 1, 2, 3], "the slowest few"
    assert "training goes on: no space" in caplog.text and "rank 0 on node0 is slow: 2.00 s" in caplog.text


def test_other_ranks_tell_nothing(observed, caplog):
    def tell(observer, state) -> None:
        step(observer, state, None)
        observer.run_started(0, is_resumed=False)
        observer.validation(state, {"web": SetLoss(2.0, 100, 0.25)})
        observer.save_ended(SaveOutcome(3, Path("x"), 0.0, "no space"))
        observer.warn("a warning")

    assert observed(tell, rank=1) is None and caplog.text == ""
