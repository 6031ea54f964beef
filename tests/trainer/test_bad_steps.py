"""What becomes of a bad step: told from hardware by a second run, then as the recipe says, up to its limit."""

import math

import pytest

from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.trainer.anomaly import FINE, NONFINITE, SPIKE
from megatron_sky.trainer.bad_steps import BadStep, BadSteps, is_same
from megatron_sky.trainer.step import StepResult

GOOD, NAN = StepResult(2.0, 1.0), StepResult(math.nan, 1.0)


class Alone:
    """A context of one rank."""

    def agree(self, levels):
        return levels


class Elsewhere:
    """A context in which another rank finds its numbers not finite."""

    def agree(self, levels):
        return [NONFINITE for _ in levels]


@pytest.fixture
def policy():
    """`policy(reports, field=value)`: BadSteps of one rank."""

    def make(reports=None, context=None, **fields) -> BadSteps:
        return BadSteps(
            ResilienceConfig(**fields),
            context=context or Alone(),
            name_samples=lambda step, samples: f"step {step}: {samples}",
            report=lambda *told: None if reports is None else reports.append(told),
        )

    return make


def bad(result=NAN, verdict=NONFINITE, earlier=0) -> BadStep:
    return BadStep(7, result, verdict, [48, 49], earlier)


def test_a_second_run_that_is_fine_is_applied(policy):
    reports = []
    decision = policy(reports).decide(bad(), rerun=lambda: GOOD)
    assert decision.action == "apply" and decision.result is GOOD
    assert "passing hardware fault" in decision.cause and decision.suspects == "step 7: [48, 49]"
    assert reports == [(bad(), decision, "applied the second run")]


@pytest.mark.parametrize(
    ("again", "cause"), [(NAN, "it gave the same"), (StepResult(math.inf, 1.0), "run again it differed")]
)
def test_a_second_run_that_is_bad_leaves_it_to_the_recipe(policy, again, cause):
    decision = policy(on_nonfinite="skip").decide(bad(), rerun=lambda: again)
    assert decision.action == "skip" and cause in decision.cause


def test_no_second_run(policy):
    def rerun():
        raise AssertionError("resilience.rerun is off")

    decision = policy(rerun=False, on_nonfinite="rollback").decide(bad(), rerun=rerun)
    assert decision.action == "rollback" and "was not run again" in decision.cause


def test_spikes_have_their_own_policy(policy):
    spike = bad(StepResult(50.0, 1.0), SPIKE)
    fields = {"on_spike": "skip", "on_nonfinite": "stop", "rerun": False}
    assert policy(**fields).decide(spike, rerun=None).action == "skip"
    assert policy(**fields).decide(bad(), rerun=None).action == "stop"


def test_a_rank_whose_own_numbers_are_good_says_whose_are_bad(policy):
    decision = policy(context=Elsewhere()).decide(bad(GOOD), rerun=lambda: GOOD)
    assert decision.action == "stop" and decision.reason == "another rank found its numbers bad"


def test_too_many_stop_whatever_the_recipe_says(policy):
    steps = policy(on_nonfinite="rollback", max_bad_steps=2, rerun=False)
    assert steps.decide(bad(earlier=1), rerun=None).action == "rollback"
    last = bad(earlier=2)
    decision = steps.decide(last, rerun=None)
    assert decision.action == "stop"
    text = str(steps.stop_error(last, decision, last_good_step=4))
    assert text.startswith("step 7, the 3rd bad step of this run (resilience.max_bad_steps = 2): lm_loss = nan")
    assert "fix: the last checkpoint (step 4) is good" in text


def test_a_stop_without_a_checkpoint_does_not_promise_one(policy):
    steps = policy(rerun=False)
    text = str(steps.stop_error(bad(), steps.decide(bad(), rerun=None), last_good_step=None))
    assert "there is no checkpoint yet" in text and "step 7: lm_loss = nan is not finite" in text


def test_another_session_has_another_level(policy):
    steps = policy(on_spike="stop", spike_window=8)
    for _ in range(8):
        steps.accept(GOOD)
    assert steps.judge(StepResult(50.0, 1.0)) == SPIKE
    steps.enter_session()
    assert steps.judge(StepResult(50.0, 1.0)) == FINE


def test_same_numbers():
    assert is_same(NAN, StepResult(math.nan, 3.0)) and is_same(GOOD, StepResult(2.0, 1.0))
    assert is_same(StepResult(2.0, float("nan")), StepResult(2.0, float("nan")))
    assert not is_same(GOOD, StepResult(2.0, 1.1)) and not is_same(GOOD, NAN)
    assert not is_same(GOOD, StepResult(2.0, math.nan)) and not is_same(StepResult(2.0, None), GOOD)
