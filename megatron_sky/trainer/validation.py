"""The loss on every named validation set, each by its own, equal in every layout."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from megatron_sky.config.schema import ModelConfig, ValidationConfig
from megatron_sky.data.loader import DocumentBounds, ValidationData
from megatron_sky.data.reference import token_ratio
from megatron_sky.data.tokens.sources import OpenSource
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import read_bytes
from megatron_sky.monitor.metrics import Preference
from megatron_sky.tokenizer.kinds import Tokenizer, load_tokenizer
from megatron_sky.trainer.batches import validation_requests
from megatron_sky.trainer.step import StepRunner


@dataclass(frozen=True)
class SetLoss:
    """The mean loss per token (nats) over `tokens` tokens, and the seconds it took.

    Of pairs of answers the mean loss per pair, their number, and their rewards.
    """

    lm_loss: float
    tokens: int
    seconds: float
    preference: Preference | None = None


@dataclass(frozen=True)
class Reference:
    """Another model's loss on a set, in nats per token."""

    model: str
    set: str
    lm_loss: float


def read_references(config: ValidationConfig) -> list[dict]:
    """The other models' losses that `validation.references` names, as plain values.

    Raises ConfigError where the file is missing, a column or number is, or none of its sets is the recipe's.
    """
    if config.references is None:
        return []
    fix = "give a CSV file with the columns model, domain and loss, as `eval loss` writes it"
    try:
        rows = list(csv.DictReader(io.StringIO(read_bytes(config.references).decode("utf-8-sig"), newline="")))
        references = [
            Reference(row["model"], row["domain"], float(row.get("normalised_loss") or row["loss"])) for row in rows
        ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        problem = Problem("validation.references", f"can't be read: {error}", fix, config.references)
        raise ConfigError(problem) from error
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            Problem("validation.references", f"lacks a column or a number: {error}", fix, config.references)
        ) from error
    names = [given.name for given in config.sets]
    if not any(record.set in names for record in references):
        raise ConfigError(
            Problem(
                "validation.references",
                f"names none of the validation sets ({', '.join(names) or 'there are none'})",
                "use the names of validation.sets in its column `domain`",
                config.references,
            )
        )
    return [asdict(record) for record in references if record.set in names]


class Validator:
    """Evaluates the sets, which are open already, whenever asked."""

    def __init__(
        self,
        config: ValidationConfig,
        sources: Mapping[str, OpenSource],
        *,
        runner: StepRunner,
        context: ParallelContext,
        model: ModelConfig,
        micro_batch_size: int,
        bounds: DocumentBounds,
    ):
        self.config = config
        self._runner = runner
        self._context = context
        self._micro_batch_size = config.micro_batch_size or micro_batch_size
        self._sets = {
            name: ValidationData(
                source,
                seq_length=model.seq_length,
                vocab_size=model.vocab_size,
                max_sequences=config.max_sequences,
                bounds=bounds,
            )
            for name, source in sources.items()
        }

    def token_ratios(self, own: Tokenizer) -> dict[str, float]:
        """Each set's own tokens / tokens of the reference tokenizer; empty where the recipe names none."""
        if self.config.reference_tokenizer is None:
            return {}
        reference = load_tokenizer(self.config.reference_tokenizer)
        return {
            name: token_ratio(data.file, own, reference, num_tokens=data.num_sequences * data.seq_length)
            for name, data in self._sets.items()
        }

    @property
    def sources(self) -> list[OpenSource]:
        return [data.source for data in self._sets.values()]

    def use_reference(self, values: Sequence[np.ndarray]) -> None:
        """Takes what the base says of the answers of each of `sources`, where they are pairs."""
        for data, own in zip(self._sets.values(), values, strict=True):
            data.use_reference(own)

    def due(self, step: int, tokens_before: int, tokens_after: int) -> bool:
        """Whether the interval has come round after `step`."""
        interval = self.config.interval
        return bool(self._sets) and interval is not None and interval.due(step, tokens_before, tokens_after)

    def evaluate(self, stops_now: Callable[[], bool]) -> dict[str, SetLoss]:
        """Every set's loss; no further set once `stops_now` (which all ranks answer alike). Collective."""
        losses: dict[str, SetLoss] = {}
        for name, data in self._sets.items():
            if losses and stops_now():
                break
            losses[name] = self._evaluate(data)
        return losses

    def _evaluate(self, data: ValidationData) -> SetLoss:
        start = time.perf_counter()
        requests = validation_requests(data.num_sequences, self._micro_batch_size, self._context)
        result = self._runner.evaluate(
            (data.read(request) for request in requests),
            num_microbatches=len(requests),
            micro_batch_size=self._micro_batch_size,
        )
        seconds = time.perf_counter() - start
        return SetLoss(result.loss_sum / result.count, result.count, seconds, result.preference)
