"""The run's progress: the only thing that changes besides weights and optimizer."""

from dataclasses import asdict, dataclass


@dataclass
class TrainState:
    """Counted since the run's first step. Tokens, not steps, are the run's clock: batch sizes may change."""

    step: int = 0
    consumed_samples: int = 0
    consumed_tokens: int = 0

    def advance(self, samples: int, seq_length: int) -> None:
        """One optimizer step over `samples` sequences is done."""
        self.step += 1
        self.consumed_samples += samples
        self.consumed_tokens += samples * seq_length

    def to_dict(self) -> dict:
        return asdict(self)
