"""Whether a job goes on: the decision alone, over every kind of ending."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.errors import NodeError
from megatron_sky.slurm.policy import FRUITLESS_LIMIT, LASTING, decide

NODE = NodeError.exit_code
CODES = st.sampled_from([None, 0, 1, NODE, 75, 86, 137, *LASTING])


def act(codes, steps, **options) -> str:
    return decide(codes, steps, **{"max_requeues": 3} | options).action


def test_the_budget_is_met():
    assert act([75, 0], [0, 10, 20]) == "done"


@pytest.mark.parametrize("code", sorted(LASTING))
def test_what_comes_again_is_not_tried_again(code):
    decision = decide([code], [0, 10], max_requeues=3)
    assert decision.action == "stop" and f"exit code {code}" in decision.reason


@pytest.mark.parametrize("code", [None, 1, NODE, 75, 86, 137])
def test_what_may_pass_is_tried_again(code):
    assert act([code], [0, 10]) == "requeue"
    assert act([code], [0, 0]) == "requeue"  # one attempt that never came to a checkpoint is no proof


@pytest.mark.parametrize("code", [None, 1, 75, 86, 137])
def test_two_attempts_without_a_checkpoint_are_the_end(code):
    decision = decide([75, code, code], [0, 10, 10, 10], max_requeues=3)
    assert decision.action == "stop" and "no progress" in decision.reason and "step 10" in decision.reason
    assert act([75, code, code], [0, 10, 10, 11]) == "requeue"


def test_crashes_are_counted_and_other_endings_are_not():
    assert act([1, 75, 137, None, 86], [0, 1, 2, 3, 4, 5]) == "requeue"
    assert act([1, 75, 137, None, 86, 1], [0, 1, 2, 3, 4, 5, 6]) == "stop"
    assert act([1, 75], [0, 1, 2], max_requeues=0) == "requeue"
    assert act([1], [0, 1], max_requeues=0) == "stop"


def test_a_node_that_fails_the_start_is_no_lack_of_progress():
    assert act([NODE] * 3, [0] * 4) == "requeue"
    assert act([NODE] * 4, [0] * 5) == "stop"
    assert act([NODE, NODE, 75], [0, 0, 0, 0]) == "requeue"
    assert act([75, NODE, 75], [0, 0, 0, 0]) == "stop"


def test_a_cancelled_job_stays_away():
    assert act([75], [0, 10], cancelled=True) == "stop"
    assert act([0], [0, 10], cancelled=True) == "done"


@given(codes=st.lists(CODES, min_size=1, max_size=12), data=st.data(), max_requeues=st.integers(0, 5))
def test_no_history_goes_on_for_ever_without_progress_or_beyond_its_crashes(codes, data, max_requeues):
    growth = data.draw(st.lists(st.integers(0, 2), min_size=len(codes), max_size=len(codes)))
    steps = [sum(growth[:count]) for count in range(len(codes) + 1)]
    decision = decide(codes, steps, max_requeues=max_requeues)
    assert decision.reason
    if decision.action == "requeue":
        assert codes[-1] not in (0, *LASTING)
        gains = [gain for code, gain in zip(codes, growth, strict=True) if code != NODE]
        assert codes[-1] == NODE or len(gains) < FRUITLESS_LIMIT or sum(gains[-FRUITLESS_LIMIT:]) > 0
        crashed = codes[-1] not in (None, 75)
        assert not crashed or sum(code not in (None, 0, 75) for code in codes) <= max_requeues
