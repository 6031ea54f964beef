"""The reference of preference training: what the base says of every answer, computed once and kept beside the data."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_sky.config import Config
from megatron_sky.data.loader import DocumentBounds, TrainData, TrainingData, ValidationData
from megatron_sky.data.tokens.reference import read_reference, reference_path, write_reference
from megatron_sky.data.tokens.sources import OpenSource, fingerprint
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError
from megatron_sky.log import get_logger
from megatron_sky.trainer.batches import validation_requests
from megatron_sky.trainer.finetune import Base
from megatron_sky.trainer.step import StepRunner
from megatron_sky.trainer.validation import Validator

log = get_logger(__name__)


@dataclass(frozen=True)
class Reference:
    """Finds or computes the log-probabilities of pairs under `base`."""

    config: Config
    base: Base
    runner: StepRunner
    context: ParallelContext

    def of(self, sources: Iterable[OpenSource]) -> list[np.ndarray]:
        """Each source's, float32 `[samples]`. To compute one the model takes the base's weights. Collective.

        Raises CheckpointError where a file is damaged, or of another base.
        """
        opened = list(sources)
        stored = self.context.from_first_rank(lambda: [self._stored(source) for source in opened])
        if any(values is None for values in stored):
            model = self.runner.model
            self.base.load(model.chunks, num_tokens=self.config.model.vocab_size, context=self.context)
        return [
            self._computed(source) if values is None else values for source, values in zip(opened, stored, strict=True)
        ]

    def _key(self, source: OpenSource) -> dict[str, str]:
        """What the numbers follow from: the model, its tokens, and the pair."""
        model = self.config.model
        text = f"{self.base.identity} {model.vocab_size} {model.padded_vocab_size}"
        base = hashlib.sha256(text.encode()).hexdigest()
        return {"base": base, "pair": fingerprint(source.tokens.prefix)}

    def _stored(self, source: OpenSource) -> np.ndarray | None:
        return read_reference(source.tokens.prefix, source.tokens.num_documents, **self._key(source))

    def _computed(self, source: OpenSource) -> np.ndarray:
        """By all ranks in the run's own layout; written by the first."""
        config, context, tokens = self.config, self.context, source.tokens
        log.info("computing the reference of %s: %d answers", tokens.prefix, tokens.num_documents)
        data = ValidationData(
            source,
            seq_length=config.model.seq_length,
            vocab_size=config.model.vocab_size,
            bounds=DocumentBounds.of(config.data, pairs=True),
        )
        requests = validation_requests(data.num_sequences, config.train.micro_batch_size, context)
        parts = self.runner.answer_log_probabilities(
            (data.read(request) for request in requests),
            num_microbatches=len(requests),
            micro_batch_size=config.train.micro_batch_size,
        )
        own = {request[0]: part for request, part in zip(requests, parts, strict=False)}
        values = _in_order(context.gather_objects(own if context.place.tp_rank == 0 else {}))
        context.from_first_rank(lambda: self._write(source, values))
        return values

    def _write(self, source: OpenSource, values: np.ndarray) -> None:
        tokens = source.tokens
        if len(values) != tokens.num_documents or not np.isfinite(values).all():
            raise CheckpointError(
                f"{reference_path(tokens.prefix)}: the base gives no finite number for each of "
                f"{tokens.num_documents:,} answers\n  fix: look at finetune.base"
            )
        write_reference(tokens.prefix, values, **self._key(source))


def use_reference(reference: Reference, data: TrainingData, validator: Validator) -> None:
    """Gives a run's training data and validation sets what the base says of their answers. Collective."""
    assert isinstance(data, TrainData), "preflight refuses packed samples in another order"
    values = reference.of([*data.sources, *validator.sources])
    data.use_reference(values[: len(data.sources)])
    validator.use_reference(values[len(data.sources) :])


def _in_order(gathered: Sequence[dict[int, np.ndarray]]) -> np.ndarray:
    """The micro batches' answers in the order of their first rows."""
    parts = {first: part for own in gathered for first, part in own.items()}
    return np.concatenate([parts[first] for first in sorted(parts)])
