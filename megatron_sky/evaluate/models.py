"""The models of an evaluation, each under a name of its own in the tables and files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.errors import ConfigError, Problem
from megatron_sky.evaluate.results import file_name
from megatron_sky.inference.checkpoints import Checkpoint, load_latest, open_checkpoint
from megatron_sky.records import more_than_once

if TYPE_CHECKING:
    from megatron_sky.distributed.context import ParallelContext
    from megatron_sky.inference.model import Model


def open_models(given: Sequence[str]) -> list[Checkpoint]:
    """The checkpoints that `PATH` or `NAME=PATH` arguments mean.

    Raises:
        CheckpointError: a path is neither a checkpoint, nor a run with one, nor a Hugging Face folder.
        ConfigError: two would have the same name.
    """
    opened = [_open(argument) for argument in given]
    if twice := more_than_once(file_name(model.name) for model in opened):
        raise ConfigError(
            Problem("CHECKPOINT", "two of them have this name", "give names: a=PATH b=PATH", ", ".join(twice))
        )
    return opened


def load_model(checkpoint: Checkpoint, parallel: "ParallelContext") -> tuple[Checkpoint, "Model"]:
    """`load_latest` of any kind of checkpoint: with adapters, transformers runs the model that they are merged into."""
    return load_latest(checkpoint, parallel, lambda newest: _load(newest, parallel))


def _load(checkpoint: Checkpoint, parallel: "ParallelContext") -> "Model":
    if not checkpoint.has_adapters:
        return checkpoint.load(parallel)
    from megatron_sky.generation.load import load_for_generation
    from megatron_sky.inference.hf_model import HfModel

    return HfModel(load_for_generation(checkpoint, parallel.device)[0], parallel)


def _open(argument: str) -> Checkpoint:
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        return open_checkpoint(Path(argument))
    return open_checkpoint(Path(path), name or None)
