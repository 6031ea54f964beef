"""The models of an evaluation, each under a name of its own in the tables and files."""

from collections.abc import Sequence
from pathlib import Path

from megatron_sky.errors import ConfigError, Problem
from megatron_sky.evaluate.results import file_name
from megatron_sky.inference.checkpoints import Checkpoint, open_checkpoint
from megatron_sky.records import more_than_once


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


def _open(argument: str) -> Checkpoint:
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        return open_checkpoint(Path(argument))
    return open_checkpoint(Path(path), name or None)
