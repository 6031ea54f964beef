"""Whether a job goes on after an attempt: one pure decision, taken when an attempt ends and when the next one begins.

An attempt is one start of the job by Slurm. Its exit code is 0 (the budget is met), 75 (asked to leave, saved), 69 (a
node failed its start), the code of an error that the same start would meet again (recipe, data, checkpoint, run folder,
missing package), anything else for a crash or a hang, or None where it ended without a word: Slurm took the job away,
as when a node fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from megatron_sky.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    LeftEarly,
    MissingDependency,
    NodeError,
    RunError,
)

LASTING = {
    ConfigError.exit_code: "the recipe",
    DataError.exit_code: "a data or tokenizer file",
    CheckpointError.exit_code: "a checkpoint",
    RunError.exit_code: "the run folder or the numbers of the run",
    MissingDependency.exit_code: "a missing package",
}
FRUITLESS_LIMIT = 2


@dataclass(frozen=True)
class Decision:
    """What becomes of the job, and why in words."""

    action: Literal["done", "requeue", "stop"]
    reason: str


def decide(
    exit_codes: Sequence[int | None], steps: Sequence[int], *, max_requeues: int, cancelled: bool = False
) -> Decision:
    """What follows the last of a job's attempts.

    Args:
        exit_codes: of every attempt, oldest first.
        steps: the newest checkpoint's step before each attempt, and now: one more than attempts.
        max_requeues: crashes, hangs and failed starts after which the job is started again, in all.
        cancelled: the user asked the job to stop.
    """
    assert len(steps) == len(exit_codes) + 1 > 1, "one step before each attempt, and one now"
    code, step = exit_codes[-1], steps[-1]
    if code == 0:
        return Decision("done", f"the token budget is met (step {step})")
    if cancelled:
        return Decision("stop", f"cancelled at step {step}")
    if code in LASTING:
        return Decision("stop", f"exit code {code}: {LASTING[code]} is at fault, which another attempt would meet too")
    if code != NodeError.exit_code and _ended_where_they_began(exit_codes, steps):
        return Decision(
            "stop",
            f"no progress: {FRUITLESS_LIMIT} attempts in a row ended at step {step}, where they began; look at their "
            f"logs, and let checkpoint.interval be shorter than what an attempt lives",
        )
    if code is None:
        return Decision("requeue", f"Slurm took the job away (a node failed, or a preemption) at step {step}")
    if code == LeftEarly.exit_code:
        return Decision("requeue", f"left early and saved at step {step}")
    failures = sum(exit_code not in (None, 0, LeftEarly.exit_code) for exit_code in exit_codes)
    if failures > max_requeues:
        return Decision("stop", f"exit code {code}: failure {failures} of this job, which may requeue {max_requeues}")
    return Decision("requeue", f"exit code {code}: failure {failures} of this job; it goes on from step {step}")


def _ended_where_they_began(exit_codes: Sequence[int | None], steps: Sequence[int]) -> bool:
    """Whether the last attempts gained nothing. Those that a node kept from starting say nothing of the run."""
    gains = [
        after - before
        for code, before, after in zip(exit_codes, steps[:-1], steps[1:], strict=True)
        if code != NodeError.exit_code
    ]
    return len(gains) >= FRUITLESS_LIMIT and not any(gains[-FRUITLESS_LIMIT:])
