"""What a checkpoint says of itself beside its tensors: recipe, progress, data position and tokenizer. No torch.

All of it is plain JSON and YAML, so that anything can read it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from megatron_sky import __version__
from megatron_sky.checkpoint.store import MANIFEST, TRAIN_STATE
from megatron_sky.config import Config, dump_config, load_config
from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import CheckpointError, ConfigError
from megatron_sky.files import read_json
from megatron_sky.records import read_record
from megatron_sky.tokenizer import files as tokenizer_files

CONFIG = "config.yaml"
CONVERTED = "converted from"
"""What the layout of a checkpoint begins with that no training here saved."""
_WRITER = "megatron_sky"  # the version that saved a checkpoint, in train_state.json

# The fields of a model that its weights are bound to; dropout, backend and the like may change on resume.
SHAPE_FIELDS = [
    "vocab_size",
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "num_layers",
    "num_attention_heads",
    "query_groups",
    "head_size",
    "position_embedding",
    "rotary_base",
    "rope_scaling",
    "normalization",
    "norm_epsilon",
    "activation",
    "add_bias_linear",
    "tie_embeddings",
]


_Count = Annotated[int, Field(strict=True, ge=0, lt=1 << 63)]


@dataclass(frozen=True)
class _Progress:
    """What of train_state.json's `progress` is read: older ones have less, the field is kept as it is."""

    step: _Count = 0
    consumed_samples: _Count = 0
    consumed_tokens: _Count = 0
    bad_steps: _Count = 0
    validated_step: Annotated[int, Field(strict=True, ge=-1)] = -1
    skipped: tuple[tuple[_Count, _Count], ...] = ()
    session: str | None = None


@dataclass(frozen=True)
class AdapterBase:
    """What a checkpoint of adapters says of the model beneath: its folder, and the hash by which it is known again.

    `num_tokens`: rows of its embedding that are trained; those of further tokens are their mean.
    """

    path: str
    identity: str
    num_tokens: int


@dataclass(frozen=True)
class _State:
    """train_state.json."""

    progress: dict
    data: dict
    layout: str
    sources: dict = field(default_factory=dict)
    adapter: AdapterBase | None = None


@dataclass(frozen=True)
class CheckpointDescription:
    """A checkpoint's recipe, and its train_state.json: progress, data position and layout.

    `sources`: by the name of a training source, the fingerprint of its files; empty in older checkpoints. `adapter`:
    the model beneath where it holds adapters alone.
    """

    folder: Path
    config: Config
    progress: dict
    data: dict
    layout: str
    sources: dict = field(default_factory=dict)
    adapter: AdapterBase | None = None

    @property
    def is_converted(self) -> bool:
        """Whether another program trained it: its recipe holds its model, and no more of how it was trained."""
        return self.layout.startswith(CONVERTED)

    @property
    def model(self) -> ModelConfig:
        """The model as any machine runs it: where Transformer Engine is missing, torch computes from the same names.

        What else of a recipe a machine may lack (8-bit products, fused kernels, overlaps) is training's alone.
        """
        backend = "auto" if self.config.model.backend == "te" else self.config.model.backend
        return self.config.model.model_copy(update={"backend": backend})


def read_description(folder: Path) -> CheckpointDescription:
    """The description of the checkpoint in `folder`. Raises CheckpointError naming the file."""
    path = folder / TRAIN_STATE
    try:
        content = read_json(path)
        state = read_record(_State, content)
        read_record(_Progress, state.progress)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}\n  fix: restore the folder from a copy") from None
    recipe = _recipe(folder / CONFIG, str(content.get(_WRITER, "of an unknown version")))
    return CheckpointDescription(folder, recipe, state.progress, state.data, state.layout, state.sources, state.adapter)


def _recipe(path: Path, writer: str) -> Config:
    """The recipe saved by megatron_sky `writer`, whose fields this version may not have any more."""
    try:
        return load_config([path], keep_unset=True)
    except ConfigError as error:
        problems = "\n".join(f"  {problem}" for problem in error.problems)
        raise CheckpointError(
            f"{path}: was saved by megatron_sky {writer}, and megatron_sky {__version__} can't read it:\n{problems}\n"
            f"  fix: load the checkpoint with the version that saved it; or give those fields in {path} the names and "
            f"values that this version has, and take {CONFIG} out of {MANIFEST} beside it"
        ) from None


def check_same_model(saved: ModelConfig, recipe: ModelConfig, folder: Path) -> None:
    """Raises CheckpointError listing every field in which the model of the checkpoint `folder` is not the recipe's."""
    names = [*SHAPE_FIELDS, "seq_length"] if recipe.position_embedding == "learned_absolute" else SHAPE_FIELDS
    differing = [
        f"  model.{name}: {getattr(saved, name)!r} in the checkpoint, {getattr(recipe, name)!r} in the recipe"
        for name in names
        if getattr(saved, name) != getattr(recipe, name)
    ]
    if differing:
        raise CheckpointError(
            f"{folder}: holds another model than the recipe's:\n" + "\n".join(differing) + "\n"
            "  fix: give the recipe the checkpoint's shape, or start a new run in another train.run_dir"
        )


def check_same_base(held: CheckpointDescription, identity: str, folder: Path) -> None:
    """Raises CheckpointError where the model in `folder` is not the one beneath the adapters that are `held`."""
    assert held.adapter is not None, "it holds adapters"
    if held.adapter.identity != identity:
        raise CheckpointError(
            f"{held.folder}: its adapters belong to the model {held.adapter.path} ({held.adapter.identity[:12]}), and "
            f"{folder} is another ({identity[:12]})\n  fix: give the model that they were trained on"
        )


def train_state(described: dict) -> str:
    """The text of train_state.json: `progress`, `data` and `layout` of `described`, and the version that writes it."""
    return json.dumps(described | {_WRITER: __version__}, indent=1)


def write_description(folder: Path, config: Config, described: dict, tokenizer: Mapping[str, bytes]) -> None:
    """Writes into `folder` what a checkpoint says of itself besides its tensors; `tokenizer`: its files by name."""
    (folder / TRAIN_STATE).write_text(train_state(described), encoding="utf-8")
    (folder / CONFIG).write_text(dump_config(config), encoding="utf-8")
    for name, content in tokenizer.items():
        (folder / name).write_bytes(content)


def tokenizer_in(folder: Path) -> Path:
    """The file of the checkpoint's tokenizer. Raises CheckpointError where it has none."""
    path = tokenizer_files.find(folder)
    if path is None:
        raise CheckpointError(
            f"{folder}: holds no tokenizer, so texts and its tokens can't become each other\n"
            f"  fix: set tokenizer.path in the recipe of the run, or copy the tokenizer's file there"
        )
    return path
