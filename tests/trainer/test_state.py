"""Progress: stepping over samples changes which of the plan's samples are trained on, and nothing else."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.trainer.state import TrainState

skips = st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=6), max_size=5)


@given(skips)
def test_trained_samples_are_the_plan_without_the_skipped(ranges):
    state = TrainState()
    for numbers in ranges:
        state.skip(numbers)
    skipped = {number for numbers in ranges for number in numbers}
    wanted = [number for number in range(100) if number not in skipped][:30]
    assert state.plan_numbers(0, 30) == wanted
    assert state.plan_numbers(10, 20) == wanted[10:]


def test_the_state_survives_json():
    import json

    state = TrainState()
    state.advance(8, 32)
    state.skip([3, 4, 5])
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
    assert (state.step, state.consumed_samples, state.consumed_tokens) == (1, 8, 256)


def test_a_state_saved_before_there_were_skips():
    assert TrainState.from_dict({"step": 2, "consumed_samples": 16, "consumed_tokens": 512}).skipped == []
