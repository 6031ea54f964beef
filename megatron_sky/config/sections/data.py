"""What is read: the tokenizer, the training mixture and the validation sets."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from megatron_sky.config.sections.base import FilePath, PairPrefix, Positive, Section, check_unique
from megatron_sky.config.units import IntervalField


class TokenizerConfig(Section):
    """The tokenizer that made the data files; needed to generate text and to check the data against."""

    path: FilePath | None = Field(
        None,
        description="SentencePiece .model, Hugging Face tokenizer.json or tiktoken .tiktoken file, or a folder that "
        "holds one.",
    )


class Ramp(Section):
    """A weight that moves in a straight line over the run's token budget."""

    start: float = Field(ge=0, description="Weight at the first token.")
    end: float = Field(ge=0, description="Weight at the last token of train.tokens.")


class SourceConfig(Section):
    """One training source of the mixture."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$", description="Name in logs and reports.")
    path: PairPrefix = Field(description="Path prefix of the .bin and .idx files, without the ending.")
    weight: Annotated[float, Field(ge=0)] | Ramp = Field(
        1.0, description="Share of the mixture (weights are normalised to sum to 1), constant or a ramp."
    )


class MegatronOrder(Section):
    """sampling: megatron only: what else of Megatron-LM's arguments decides its order."""

    split: str | None = Field(
        None,
        description="--split: parts of every source's documents for training, validation and test, as 969,30,1; "
        "training takes the first. null: all documents.",
    )
    weights: Literal["given", "sizes"] = Field(
        "given",
        description="sizes: as --data-path without weights, a source weighs its number of sequences, and none is used "
        "twice; given: the weights that stand at the sources.",
    )
    num_samples: Positive | None = Field(
        None,
        description="Samples for which Megatron-LM built its order: --train-samples, or --train-iters times "
        "--global-batch-size; null: those of the run.",
    )
    surplus: float = Field(
        0.005, ge=0, lt=1, description="--mid-level-dataset-surplus: what is built of a source beyond its share."
    )
    cache: str | None = Field(
        None,
        description="--data-cache-path, a folder that is read and never written: index files in it of the same source, "
        "samples, seed and sequence length are taken, others are built. Does not change the order.",
    )

    @field_validator("split")
    @classmethod
    def _one_to_three_parts(cls, split: str | None) -> str | None:
        if split is None:
            return None
        number = r"\s*(\d+\.?\d*|\.\d+)\s*"
        if not re.fullmatch(f"{number}([,/]{number}){{0,2}}", split, re.ASCII):
            raise ValueError("must be one to three numbers with commas between them, as 969,30,1")
        if float(re.split("[,/]", split)[0]) == 0:
            raise ValueError("leaves no document for training: its first part must be above 0")
        return split


class DataConfig(Section):
    """The training mixture."""

    train: tuple[SourceConfig, ...] = Field((), description="Training sources with their weights.")
    max_epochs: float = Field(
        5.0,
        gt=0,
        description="A source that the plan would repeat more often than this stops the run before it starts.",
    )
    seed: int = Field(1234, ge=0, description="Seed of the order of the samples.")
    num_workers: int = Field(1, ge=0, description="Threads that read batches ahead; the result does not depend on it.")
    prefetch_batches: Positive = Field(4, description="Micro batches read ahead of the step that needs them.")
    document_mask: bool = Field(
        False,
        description="Attention within a document only, positions from 0 in each; off in the Skywork report. In "
        "validation too.",
    )
    mask_document_ends: bool = Field(
        False, description="No loss where the next token belongs to the next document. In validation too."
    )
    sampling: Literal["plan", "megatron"] = Field(
        "plan",
        description="plan: order by arithmetic, nothing built; megatron: the order of megatron-core's GPTDataset and "
        "BlendedDataset, for a run that must reproduce one.",
    )
    megatron: MegatronOrder = Field(MegatronOrder(), description="What else decides the order of sampling: megatron.")

    allow_changed_files: bool = Field(
        False,
        description="Go on with a run although a source's files hold other tokens than when its checkpoint was saved.",
    )

    @model_validator(mode="after")
    def _unique_names(self) -> "DataConfig":
        check_unique("source names", (source.name for source in self.train))
        return self


class ValidationSet(Section):
    """A named held-out set; its loss is reported on its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]+$", description="Name in logs and reports.")
    path: PairPrefix = Field(description="Path prefix of the .bin and .idx files, without the ending.")


class ValidationConfig(Section):
    """Losses on named held-out sets, each one distribution."""

    sets: tuple[ValidationSet, ...] = Field((), description="The sets.")
    interval: IntervalField | None = Field(None, description="How often, beside the run's start and end; null: never.")
    at_start: bool = Field(True, description="Also before the first step.")
    micro_batch_size: Positive | None = Field(
        None, description="Sequences per forward pass of one rank; null: train.micro_batch_size."
    )
    max_sequences: Positive | None = Field(
        None, description="Use this many sequences from the start of each set; null: all of them."
    )
    reference_tokenizer: FilePath | None = Field(
        None,
        description="Tokenizer file of the model to compare with: each loss is also given per token of this tokenizer "
        "(normalised loss); null: not given.",
    )
    references: FilePath | None = Field(
        None,
        description="CSV file of other models' losses on the sets, drawn as lines into the same pictures; its columns: "
        "model, domain, loss (nats per token), or normalised_loss (as `eval loss` writes them); null: none.",
    )

    @model_validator(mode="after")
    def _unique_names(self) -> "ValidationConfig":
        check_unique("validation set names", (one_set.name for one_set in self.sets))
        return self
