"""How a trained model is taught further: from whose weights, for how many epochs, all of them or adapters alone."""

from typing import Literal

from pydantic import Field, model_validator

from megatron_sky.config.sections.base import FilePath, Fraction, Positive, Section
from megatron_sky.records import more_than_once

LoraTarget = Literal["linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"]


class LoraConfig(Section):
    """Low-rank adapters (Hu et al. 2021): W x + (alpha / rank) B A x, of which A and B alone are trained."""

    rank: Positive = Field(16, description="Rows of A and columns of B.")
    alpha: float = Field(32.0, gt=0, description="The adapter's share is scaled by alpha / rank.")
    dropout: Fraction = Field(0.0, description="Dropout on what an adapter reads.")
    targets: tuple[LoraTarget, ...] = Field(
        ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
        description="The linears that get an adapter, in each layer, under megatron-core's names.",
    )

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @model_validator(mode="after")
    def _some_targets(self) -> "LoraConfig":
        if not self.targets:
            raise ValueError("targets names no linear, so that nothing would be trained")
        if twice := more_than_once(self.targets):
            raise ValueError(f"targets names more than once: {', '.join(twice)}")
        return self


class DpoConfig(Section):
    """Direct preference optimization (Rafailov et al. 2023) on pairs of a chosen and a rejected answer."""

    beta: float = Field(0.1, gt=0, description="How much a preference counts against staying near the base.")


class FinetuneConfig(Section):
    """Fine-tuning a trained model, whole or by adapters."""

    base: FilePath = Field(
        description="The model to begin with: a checkpoint of this program in any layout, a run folder, or a Hugging "
        "Face folder."
    )
    epochs: float | None = Field(
        None,
        gt=0,
        description="Passes over the packed samples of data.train; train.tokens is then reckoned from their number; "
        "null: train.tokens as given.",
    )
    keep_best: bool = Field(
        True, description="Save and keep the checkpoint with the lowest loss on the validation sets (their mean)."
    )
    lora: LoraConfig | None = Field(None, description="Train adapters alone; null: all weights.")
    dpo: DpoConfig | None = Field(
        None,
        description="Learn from the pairs of `data chat --pairs` which answer is preferred; null: learn the answers.",
    )
