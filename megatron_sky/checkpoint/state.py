"""Saving and loading in megatron-core's torch_dist format: any layout reads what any other wrote.

Tensors go through megatron-core's dist_checkpointing under global names; everything else (progress, recipe, data
position) is JSON and YAML beside them, so that it can be read without torch and nothing is unpickled. Random number
generators have no state to save: every step seeds them (see `distributed.seeding`).
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint import store
from megatron_sky.config import Config, dump_config, load_config
from megatron_sky.config.schema import ModelConfig
from megatron_sky.distributed import compat
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.errors import CheckpointError, SkyError

TRAIN_STATE = "train_state.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.model"

# The fields of a model that its weights are bound to; dropout, backend and the like may change on resume.
_SHAPE = [
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


@dataclass(frozen=True)
class Saved:
    """A checkpoint's own description: its recipe and its progress (train_state.json: `progress`, `data`, `layout`)."""

    folder: Path
    config: Config
    progress: dict
    data: dict
    layout: str


def read_saved(folder: Path) -> Saved:
    """The description of the checkpoint in `folder`, read without torch."""
    path = folder / TRAIN_STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        progress, data, layout = state["progress"], state["data"], state["layout"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None
    return Saved(folder, load_config([folder / CONFIG]), progress, data, layout)


def check_same_model(saved: ModelConfig, wanted: ModelConfig, folder: Path) -> None:
    """Raises CheckpointError listing every field in which the checkpoint's model is not the recipe's."""
    names = [*_SHAPE, "seq_length"] if wanted.position_embedding == "learned_absolute" else _SHAPE
    differing = [
        f"  model.{name}: {getattr(saved, name)!r} in the checkpoint, {getattr(wanted, name)!r} in the recipe"
        for name in names
        if getattr(saved, name) != getattr(wanted, name)
    ]
    if differing:
        raise CheckpointError(
            f"{folder}: holds another model than the recipe's:\n" + "\n".join(differing) + "\n"
            "  mend: give the recipe the checkpoint's shape, or start a new run in another train.run_dir"
        )


def save(
    run_dir: Path,
    *,
    config: Config,
    context: ParallelContext,
    chunks: list,
    optimizer,
    progress: dict,
    data: dict,
) -> Path:
    """Writes `<run_dir>/checkpoints/step_N` from all ranks and returns it. Collective.

    `progress` is TrainState as a dict, `data` the sampling plan's fingerprint. Raises CheckpointError when it can't be
    written; then no folder under the final name exists.
    """
    from megatron.core import dist_checkpointing

    final = store.folder_of(run_dir, progress["step"])
    temporary = final.with_name(final.name + ".tmp")
    _on_rank_zero(context, lambda: _fresh_folder(temporary), temporary)
    state, metadata = _sharded_state(chunks, optimizer, context, loading=False)
    compat.save_in_this_process()
    try:
        dist_checkpointing.save(state, str(temporary), _save_strategy(context), content_metadata=metadata)
    except OSError as error:
        raise CheckpointError(f"{temporary}: can't be written: {error}\n  mend: free space or permissions") from error
    described = {"progress": progress, "data": data, "layout": str(context.layout)}
    _on_rank_zero(context, lambda: _describe(temporary, config, described), temporary)
    names = store.files_of(temporary)[context.rank :: context.world_size]
    records = {
        name: record
        for part in context.gather_objects(store.hash_files(temporary, names))
        for name, record in part.items()
    }
    _on_rank_zero(context, lambda: store.finish(temporary, final, progress["step"], records), final)
    return final


def load(folder: Path, *, context: ParallelContext, chunks: list, optimizer=None) -> None:
    """Fills `chunks`, and `optimizer` where one is given, from the checkpoint in `folder`, whatever its layout was.

    Without an optimizer only weights are read. Collective.
    """
    import torch
    from megatron.core import dist_checkpointing

    saved = dist_checkpointing.load_content_metadata(str(folder)) or {}
    if optimizer is not None and not saved.get("holds_optimizer"):
        raise CheckpointError(
            f"{folder}: was saved without its optimizer state, so a run can't be resumed from it\n"
            f"  mend: start a new run with checkpoint.init_from={folder}"
        )
    state, _ = _sharded_state(chunks, optimizer, context, loading=True)
    with torch.no_grad():
        loaded = dist_checkpointing.load(state, str(folder), _load_strategy(context, folder))
        for name, chunk in _named(chunks):
            _bare(chunk).load_state_dict(loaded[name], strict=True)
        if optimizer is not None:
            optimizer.load_state_dict(loaded["optimizer"])


def _sharded_state(chunks: list, optimizer, context: ParallelContext, loading: bool) -> tuple[dict, dict]:
    """(what to save or to fill, the plain description of how it is laid out)."""
    metadata = {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "holds_optimizer": optimizer is not None,
    }
    with_group = metadata | {"dp_cp_group": context.dp_cp_group}
    state = {name: _bare(chunk).sharded_state_dict(metadata=with_group) for name, chunk in _named(chunks)}
    if optimizer is not None:
        weights = state if len(chunks) > 1 else state["model"]
        state["optimizer"] = optimizer.sharded_state_dict(weights, is_loading=loading, metadata=with_group)
    return state, metadata


def _named(chunks: list) -> list[tuple[str, object]]:
    """megatron-core's names of a rank's model chunks in a checkpoint's state."""
    if len(chunks) == 1:
        return [("model", chunks[0])]
    return [(f"model{number}", chunk) for number, chunk in enumerate(chunks)]


def _bare(chunk):
    """The model inside the DDP wrapper, if any (a Float16Module's sharded state is its module's)."""
    from megatron.core.distributed import DistributedDataParallel

    return chunk.module if isinstance(chunk, DistributedDataParallel) else chunk


def _save_strategy(context: ParallelContext):
    """Data-parallel ranks write equal shares of what they hold in common."""
    from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

    return FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy("torch_dist"), context.dp_cp_group)


def _load_strategy(context: ParallelContext, folder: Path):
    """Data-parallel ranks read equal shares and exchange them."""
    from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

    return FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(folder)), context.dp_cp_group)


def _fresh_folder(temporary: Path) -> None:
    if temporary.exists():
        shutil.rmtree(temporary)  # left by a save that did not end
    temporary.mkdir(parents=True)


def _describe(folder: Path, config: Config, described: dict) -> None:
    (folder / TRAIN_STATE).write_text(json.dumps(described, indent=1), encoding="utf-8")
    (folder / CONFIG).write_text(dump_config(config), encoding="utf-8")
    if config.tokenizer.path is not None:
        shutil.copyfile(config.tokenizer.path, folder / TOKENIZER)


def _on_rank_zero(context: ParallelContext, action, path: Path) -> None:
    """Runs `action` on rank 0 while the others wait; its failure is every rank's failure, told once."""
    failure = None
    if context.rank == 0:
        try:
            action()
        except OSError as error:
            failure = f"{path}: can't be written: {error}\n  mend: free space or permissions there"
        except SkyError as error:
            failure = str(error)
    failures = [each for each in context.gather_objects(failure) if each]
    if failures:
        raise CheckpointError(failures[0])
