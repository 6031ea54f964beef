"""Which validation was the best."""

import json
from types import SimpleNamespace

from megatron_sky.trainer.best import FILE, Best
from megatron_sky.trainer.state import TrainState
from megatron_sky.trainer.validation import SetLoss


def losses(*values: float) -> dict[str, SetLoss]:
    return {str(number): SetLoss(value, 10, 0.1) for number, value in enumerate(values)}


def test_the_lowest_mean_is_noted(tmp_path):
    best, state = Best(tmp_path, SimpleNamespace(rank=0)), TrainState()
    best.note(state, losses(0.1))
    assert state.best_loss is None, "those of the base are no checkpoint's"
    for step, values in ((1, [3.0, 1.0]), (2, [2.5, 1.7]), (3, [float("nan")]), (4, [1.0]), (5, [])):
        state.advance(1, 10)
        assert state.step == step
        best.note(state, losses(*values))
    assert (state.best_loss, state.best_tokens) == (1.0, 40)
    assert json.loads((tmp_path / FILE).read_text()) == {"step": 4, "loss": 1.0, "checkpoint": "step_0000004"}
    assert TrainState.from_dict(state.to_dict()) == state
    assert "best_loss" not in TrainState().to_dict()
