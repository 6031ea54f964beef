"""The run's progress: the only thing that changes besides weights and optimizer."""

from collections.abc import Iterable
from dataclasses import dataclass, field

SampleRange = tuple[int, int]  # [first, one past the last)


@dataclass
class TrainState:
    """Counted since the run's first step. Tokens, not steps, are the run's clock: batch sizes may change.

    `consumed_samples` numbers the samples that were trained on; `skipped` are ranges of the plan's samples that were
    stepped over, so that the n-th trained sample is the plan's number `plan_number(n)`. `session` is the one that was
    trained last, None before the first step; `validated_step` the step of the last validation, -1 before there is one.
    `best_loss`: the lowest mean loss of a validation, where the run keeps the best checkpoint; `best_tokens`: consumed
    then.
    """

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0
    bad_steps: int = 0
    skipped: list[SampleRange] = field(default_factory=list)
    session: str | None = None
    validated_step: int = -1
    best_loss: float | None = None
    best_tokens: int | None = None

    @classmethod
    def from_dict(cls, saved: dict) -> "TrainState":
        """The state that `to_dict` described."""
        return cls(**{**saved, "skipped": [tuple(span) for span in saved.get("skipped", [])]})

    def to_dict(self) -> dict:
        best = {} if self.best_loss is None else {"best_loss": self.best_loss, "best_tokens": self.best_tokens}
        return best | {
            "step": self.step,
            "consumed_samples": self.consumed_samples,
            "consumed_tokens": self.consumed_tokens,
            "bad_steps": self.bad_steps,
            "skipped": [list(span) for span in self.skipped],
            "session": self.session,
            "validated_step": self.validated_step,
        }

    def advance(self, samples: int, seq_length: int) -> None:
        """One optimizer step over `samples` sequences is done."""
        self.step += 1
        self.consumed_samples += samples
        self.consumed_tokens += samples * seq_length

    def plan_numbers(self, first: int, count: int) -> list[int]:
        """The plan's numbers of the trained samples `first` to `first + count`."""
        return [plan_number(number, self.skipped) for number in range(first, first + count)]

    def skip(self, numbers: list[int]) -> None:
        """These numbers of the plan will not be trained on."""
        merged: list[SampleRange] = []
        for start, stop in sorted([*self.skipped, *((number, number + 1) for number in numbers)]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        self.skipped = merged


def plan_number(number: int, skipped: Iterable[SampleRange]) -> int:
    """The plan's number of trained sample `number`, when the sorted ranges `skipped` are stepped over."""
    for start, stop in skipped:
        if number < start:
            break
        number += stop - start
    return number
