"""The model that a run teaches further: looked at before the start, made native, known again, its new rows filled."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.checkpoint import shared_check, store
from megatron_sky.checkpoint import state as checkpoint_state
from megatron_sky.checkpoint.description import (
    AdapterBase,
    CheckpointDescription,
    check_same_base,
    check_same_model,
    read_description,
)
from megatron_sky.config.schema import FinetuneConfig, LoraConfig, ModelConfig
from megatron_sky.convert.adapters import identity_of
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import NATIVE, Source, open_source
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError
from megatron_sky.log import get_logger

if TYPE_CHECKING:
    import torch
    from megatron.core.transformer import MegatronModule

log = get_logger(__name__)
FOLDER = "base"  # in the run folder: a Hugging Face folder's weights as a native checkpoint


@dataclass(frozen=True)
class Base:
    """The model that a run begins with. `folder` is native; its first `num_tokens` rows of the embedding are trained.

    `is_beneath`: adapters are trained on it, and it stays as it is.
    """

    folder: Path
    identity: str
    num_tokens: int
    is_beneath: bool

    def load(self, chunks: "Sequence[MegatronModule]", *, num_tokens: int, context: ParallelContext) -> None:
        """Fills the weights of `chunks`, whose vocabulary has `num_tokens`. Collective."""
        checkpoint_state.load(self.folder, context=context, chunks=chunks)
        fill_new_rows(chunks, self.num_tokens, num_tokens, context)
        log.info("weights from %s", self.folder)

    @property
    def named(self) -> AdapterBase:
        """What checkpoints of adapters say of it."""
        return AdapterBase(str(self.folder.absolute()), self.identity, self.num_tokens)


def check_base(tuning: FinetuneConfig, model: ModelConfig) -> None:
    """Raises CheckpointError where the base is no checkpoint, holds adapters, or is another model than the recipe's.

    Its vocabulary may be smaller, as far as the rows go by which its embedding is padded (any, of a Hugging Face
    folder).
    """
    source = open_source(Path(tuning.base))
    if source.kind != NATIVE:
        check_same_model(_with_rows(source.model, model), model, source.folder)
        return
    saved = read_description(source.folder)
    if saved.adapter is not None:
        raise CheckpointError(
            f"{source.folder}: holds adapters alone\n"
            "  fix: give the model beneath them, or what `megatron-sky convert to-hf --merge` writes"
        )
    held = saved.config.model
    check_same_model(_with_rows(held, model, most=held.padded_vocab_size), model, source.folder)


def _with_rows(base: ModelConfig, model: ModelConfig, most: int | None = None) -> ModelConfig:
    """The base with the recipe's vocabulary, where that only adds tokens and its rows are enough."""
    if model.vocab_size < base.vocab_size or (most is not None and model.vocab_size > most):
        return base
    changes = {"vocab_size": model.vocab_size} | ({} if most else {"vocab_multiple": model.vocab_multiple})
    return base.model_copy(update=changes)


def prepare_base(
    tuning: FinetuneConfig, model: ModelConfig, run_dir: Path, *, is_begun: bool, context: ParallelContext
) -> Base:
    """The base as a native checkpoint that is whole: itself, or written into the run folder once. Collective.

    `is_begun`: the run has a checkpoint of its own, so that what was written is what it began with.
    """
    base = context.from_first_rank(lambda: _prepare(tuning, model, run_dir, is_begun))
    shared_check.verify(base.folder, context)
    return base


def _prepare(tuning: FinetuneConfig, model: ModelConfig, run_dir: Path, is_begun: bool) -> Base:
    source = open_source(Path(tuning.base))
    folder = source.folder
    if source.kind != NATIVE:
        folder = run_dir / FOLDER
        if not (is_begun and store.is_checkpoint(folder)):
            _write_native(source, model, folder)
    return Base(folder, identity_of(folder), source.model.vocab_size, tuning.lora is not None)


def _write_native(source: Source, model: ModelConfig, folder: Path) -> None:
    """With the rows of the recipe's embedding, whatever tokens are new."""
    if folder.exists():
        shutil.rmtree(folder)  # of a run that was never saved
    log.info("%s: written as a native checkpoint into %s", source.folder, folder)
    write_native(source, folder, vocab_multiple=model.padded_vocab_size)


def check_adapters(own: CheckpointDescription, base: Base | None, lora: LoraConfig | None) -> None:
    """Raises CheckpointError where a run's own checkpoint does not hold what the recipe trains, on this base."""
    if (own.adapter is not None) != (lora is not None):
        held = "adapters alone" if own.adapter is not None else "all weights"
        raise CheckpointError(
            f"{own.folder}: holds {held}, and finetune.lora asks for the other\n"
            "  fix: restore finetune.lora, or start a new run in another train.run_dir"
        )
    if own.adapter is None or lora is None or base is None:
        return
    check_same_base(own, base.identity, base.folder)
    saved = own.config.finetune.lora if own.config.finetune else None
    names = ("rank", "alpha", "targets")
    differing = [name for name in names if getattr(saved, name, None) != getattr(lora, name)]
    if differing:
        raise CheckpointError(
            f"{own.folder}: its adapters have another finetune.lora.{', '.join(differing)} than the recipe\n"
            "  fix: restore it, or start a new run in another train.run_dir"
        )


def fill_new_rows(chunks: "Sequence[MegatronModule]", first: int, end: int, context: ParallelContext) -> None:
    """Gives the tokens `first` to `end` the mean of the rows before them, in the embedding and the output layer.

    Rows by which an embedding is padded were never trained. Collective over the tensor-parallel ranks.
    """
    import torch

    if first >= end:
        return
    with torch.no_grad():
        for chunk in chunks:
            for name, weight in chunk.named_parameters():
                if name.endswith(("word_embeddings.weight", "output_layer.weight")):
                    _fill_rows(weight, first, end, context)


def _fill_rows(weight: "torch.Tensor", first: int, end: int, context: ParallelContext) -> None:
    import torch

    begin = context.place.tp_rank * len(weight)
    known = weight[: max(0, min(first - begin, len(weight)))].double().sum(0)
    if context.layout.tp_size > 1:
        torch.distributed.all_reduce(known, group=context.tp_group)
    low, high = (min(max(number - begin, 0), len(weight)) for number in (first, end))
    weight[low:high] = (known / first).to(weight.dtype)
