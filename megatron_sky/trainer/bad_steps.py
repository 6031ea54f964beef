"""What becomes of a step whose numbers are bad: the recipe's policy, after the step was run again.

A step that is fine when run again, on the same batch with the same random numbers, met a passing fault of the hardware,
and the second result is used. One that gives the same again has bad data or a bad model behind it: then
`resilience.on_nonfinite` or `on_spike` decides. All ranks come to the same decision.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import RunError
from megatron_sky.trainer.anomaly import FINE, NONFINITE, AnomalyDetector
from megatron_sky.trainer.step import StepResult


@dataclass(frozen=True)
class BadStep:
    """A step that was judged and not applied: its number, its result here, and the samples (of the plan) it read.

    `verdict`: NONFINITE or SPIKE, the worst of all ranks' verdicts. `earlier`: bad steps of this run before it.
    """

    step: int
    result: StepResult
    verdict: int
    samples: list[int]
    earlier: int


@dataclass(frozen=True)
class Decision:
    """What is to be done, and why in words. `result`: of the second run, to be applied."""

    action: Literal["apply", "skip", "rollback", "stop"]
    reason: str
    cause: str
    suspects: str
    result: StepResult | None = None


class BadSteps:
    """Judges each step's numbers against the good steps before it, and decides what becomes of a bad one."""

    def __init__(
        self,
        config: ResilienceConfig,
        *,
        context: ParallelContext,
        name_samples: Callable[[int, list[int]], str],
        report: Callable[[BadStep, Decision, str], None],
    ):
        """`name_samples`: the texts behind a step's samples, in words. `report` is told of each bad step, with
        the policy that was followed."""
        self._config, self._context = config, context
        self._name_samples, self._report = name_samples, report
        self._detector = AnomalyDetector(config)

    def enter_session(self) -> None:
        """Another mixture has another level of loss: what was seen so far says nothing of it."""
        self._detector = AnomalyDetector(self._config)

    def judge(self, result: StepResult) -> int:
        """This rank's verdict: FINE, NONFINITE or SPIKE."""
        return self._detector.judge(result.lm_loss, result.grad_norm).kind

    def accept(self, result: StepResult) -> None:
        """These numbers were good: later ones are measured against them too."""
        assert result.grad_norm is not None, "an overflow is not applied"
        self._detector.accept(result.lm_loss, result.grad_norm)

    def decide(self, bad: BadStep, rerun: Callable[[], StepResult]) -> Decision:
        """What the recipe has done with a bad step; `rerun` computes it again. Collective."""
        reason = self._detector.judge(bad.result.lm_loss, bad.result.grad_norm).reason
        reason = reason or "another rank found its numbers bad"
        suspects = self._name_samples(bad.step, bad.samples)
        cause = "the step was not run again (resilience.rerun is off)"
        if self._config.rerun:
            again = rerun()
            if self._context.agree([self.judge(again)]) == [FINE]:
                cause = "run again it was fine: a passing hardware fault"
                decision = Decision("apply", reason, cause, suspects, again)
                self._report(bad, decision, "applied the second run")
                return decision
            same = is_same(again, bad.result)
            cause = "run again it gave the same: the data or the model" if same else "run again it differed"
        policy = self._config.on_nonfinite if bad.verdict == NONFINITE else self._config.on_spike
        assert policy != "ignore", "no spike is looked for then"
        too_many = bad.earlier >= self._config.max_bad_steps
        decision = Decision("stop" if too_many else policy, reason, cause, suspects)
        self._report(bad, decision, policy)
        return decision

    def stop_error(self, bad: BadStep, decision: Decision, last_good_step: int | None) -> RunError:
        """The error that ends the run."""
        many = ""
        if bad.earlier >= self._config.max_bad_steps:
            limit = self._config.max_bad_steps
            many = f", the {_ordinal(bad.earlier + 1)} bad step of this run (resilience.max_bad_steps = {limit})"
        good = "there is no checkpoint yet; start again"
        if last_good_step is not None:
            good = f"the last checkpoint (step {last_good_step}) is good; go on from it"
        return RunError(
            f"step {bad.step}{many}: {decision.reason}; {decision.cause}\n  its samples: {decision.suspects}\n"
            f"  fix: {good} with a lower schedule.lr, or set resilience.on_nonfinite or on_spike to skip or rollback"
        )


def is_same(one: StepResult, other: StepResult) -> bool:
    """Whether two runs of a step gave the same numbers, NaN being the same as NaN."""

    def same(number: float | None, again: float | None) -> bool:
        return number == again or (number != number and again != again)

    return same(one.lm_loss, other.lm_loss) and (math.isnan(one.lm_loss) or same(one.grad_norm, other.grad_norm))


def nowhere_to_roll_back(bad: BadStep, reason: str) -> RunError:
    """The error where a rollback finds no checkpoint."""
    return RunError(
        f"step {bad.step}: {reason}; there is no checkpoint to go back to\n"
        f"  fix: set checkpoint.interval, or resilience.on_nonfinite and on_spike to skip or stop"
    )


def _ordinal(number: int) -> str:
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
