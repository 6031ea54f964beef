"""The figures of a model on documents, as the report defines them. Arithmetic alone: no torch. Formulas in
docs/evaluation.md.

For document d: S its loss summed over its scored tokens (nats), T these tokens, R the reference tokenizer's, B bytes.

    loss              sum S / sum T                 nats per own token, as training reports it
    normalised_loss   sum S / sum R                 = loss x (own tokens / reference tokens)
    document_loss     mean over documents of S / R
    perplexity        exp(document_loss)
    bits_per_byte     sum S / (ln 2 x sum B)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DocumentLoss:
    """One document under one model. `reference_tokens` are counted as `tokens` are: the scored ones."""

    domain: str
    document: int
    sha256: str
    characters: int
    bytes: int
    tokens: int
    reference_tokens: int
    loss_sum: float

    @property
    def normalised_loss(self) -> float:
        return self.loss_sum / self.reference_tokens


@dataclass(frozen=True)
class LossFigures:
    """A domain's figures, or those of all domains together."""

    documents: int
    characters: int
    bytes: int
    tokens: int
    reference_tokens: int
    loss_sum: float
    loss: float
    normalised_loss: float
    document_loss: float
    perplexity: float
    bits_per_byte: float


def figures_of(documents: Sequence[DocumentLoss]) -> LossFigures:
    """The figures of documents, each of which has a token. Summed exactly, so that their order plays no part."""
    assert documents, "a domain without documents is refused before"
    loss_sum = math.fsum(document.loss_sum for document in documents)
    tokens = sum(document.tokens for document in documents)
    reference_tokens = sum(document.reference_tokens for document in documents)
    num_bytes = sum(document.bytes for document in documents)
    document_loss = math.fsum(document.normalised_loss for document in documents) / len(documents)
    return LossFigures(
        documents=len(documents),
        characters=sum(document.characters for document in documents),
        bytes=num_bytes,
        tokens=tokens,
        reference_tokens=reference_tokens,
        loss_sum=loss_sum,
        loss=loss_sum / tokens,
        normalised_loss=loss_sum / reference_tokens,
        document_loss=document_loss,
        perplexity=perplexity_of(document_loss),
        bits_per_byte=loss_sum / (math.log(2) * num_bytes),
    )


def perplexity_of(loss: float) -> float:
    """exp(loss); infinite where that is beyond a float."""
    return math.exp(loss) if loss < 709 else math.inf
