"""A checkpoint's tensors, in megatron-core's torch_dist format: any layout reads what any other wrote.

Tensors go through megatron-core's dist_checkpointing under global names; what else a checkpoint holds is its
`description`. megatron-core's format holds pickles too; they are read as data and can't run anything (see `pickles`).
Random number generators have no state to save: every step seeds them (see `distributed.seeding`).
"""

import contextlib
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.checkpoint import adapters
from megatron_sky.checkpoint.fill import fill_from_files
from megatron_sky.checkpoint.reader import index, pickles
from megatron_sky.distributed import compat
from megatron_sky.distributed.context import ParallelContext
from megatron_sky.distributed.launch import is_lost_peer
from megatron_sky.errors import CheckpointError
from megatron_sky.versions import installed

if TYPE_CHECKING:
    from megatron.core.optimizer import MegatronOptimizer
    from megatron.core.transformer import MegatronModule

    from megatron_sky.model.backends.fp8_linear import Fp8Scaling

_EXTRA = "_extra_state"
_DAMAGED = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, TypeError, LookupError, AttributeError),
    *(AssertionError, ArithmeticError),
)


def load(
    folder: Path,
    *,
    context: ParallelContext,
    chunks: "Sequence[MegatronModule]",
    optimizer: "MegatronOptimizer | None" = None,
    fp8: "Fp8Scaling | None" = None,
    only_adapters: bool = False,
) -> None:
    """Fills `chunks`, and `optimizer` where one is given, from the checkpoint in `folder`, whatever its layout was.

    Without an optimizer only weights are read: those beneath adapters, or with `only_adapters` these alone. `fp8`: the
    model's Fp8Scaling; its history is taken over where the checkpoint has one that looks back as far, and begins anew
    otherwise. Collective.
    """
    import torch
    from megatron.core import dist_checkpointing

    from megatron_sky.checkpoint import optimizer_shards

    stored = index.read_index(folder / index.METADATA)  # what is refused is said at once; torch says that it has none
    if not only_adapters:
        adapters.check_holds_model(stored.tensors, folder)
    compat.read_index_by(index.as_torch)
    compat.read_objects_as_data()
    saved = _content_metadata(folder)
    if optimizer is not None and not saved.get("holds_optimizer"):
        raise CheckpointError(
            f"{folder}: was saved without its optimizer state, so a run can't be resumed from it\n"
            f"  fix: start a new run with checkpoint.init_from={folder}"
        )
    has_history = fp8 is not None and fp8.kind is not None and saved.get("fp8") == fp8.kind
    fill_from_files()
    held = fp8 if has_history else None
    state, _ = sharded_state(chunks, optimizer, context, loading=True, fp8=held, only_adapters=only_adapters)
    with _failures_told(folder):
        _ask_only_for_what_is_there(state, folder)
    with torch.no_grad():
        with _failures_told(folder):
            loaded = dist_checkpointing.load(state, str(folder), _load_strategy(context, folder))
        for name, chunk in [] if only_adapters else _named(chunks):
            _check_extra_states(loaded[name], folder)
            _fill(_bare(chunk), loaded[name])
        if only_adapters:
            adapters.fill_adapters(chunks, loaded[adapters.STATE])
        if optimizer is not None:
            _give_groups_their_rates(loaded["optimizer"], optimizer)
        if optimizer is not None and (inner := optimizer_shards.distributed_optimizer(optimizer)) is not None:
            optimizer_shards.load_state(inner, loaded["optimizer"])
        elif optimizer is not None:
            optimizer.load_state_dict(loaded["optimizer"])
        if fp8 is not None:
            fp8.restore(loaded["fp8"] if has_history else None)


def _give_groups_their_rates(state: dict, optimizer: "MegatronOptimizer") -> None:
    """Loaded groups of parameters get the recipe's highest and lowest rate in place of the saved ones.

    megatron-core 0.19 and newer find a group by these, and find none where the recipe's rate is another than the saved
    run's; the rate of a step comes from the schedule.
    """
    own: dict = next(iter(optimizer.param_groups), {})
    for group in state.get("optimizer", state)["param_groups"]:
        group.update({key: own[key] for key in ("max_lr", "min_lr") if key in own})


def _content_metadata(folder: Path) -> dict:
    """What `sharded_state` said of the checkpoint when it was saved."""
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.core import CheckpointingException

    with _failures_told(folder):
        try:
            metadata = dist_checkpointing.load_content_metadata(folder)
        except (CheckpointingException, AttributeError) as error:  # the latter where 0.16 makes its own message
            raise CheckpointError(
                f"{folder}: megatron-core {installed('megatron-core')} finds no {compat.COMMON_FILE} in it: {error}\n"
                f"  fix: a newer megatron-core wrote it; load it with that one and save it again"
            ) from None
    return metadata if isinstance(metadata, dict) else {}


@contextlib.contextmanager
def _failures_told(folder: Path) -> Iterator[None]:
    """What can go wrong while torch and megatron-core read a damaged checkpoint, as CheckpointError.

    An exception with a rank of its own (a lost peer, memory that is full) is none of that.
    """
    import torch
    from megatron.core.dist_checkpointing.core import CheckpointingException
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values() if not isinstance(cause, MemoryError)]
        refused = [cause for cause in causes if isinstance(cause, CheckpointError)]
        if not causes:
            raise
        raise _unreadable(folder, (refused or causes)[0]) from None
    except (CheckpointingException, *_DAMAGED) as error:
        raise _unreadable(folder, error) from error
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error) or is_lost_peer(str(error)):
            raise
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: BaseException) -> CheckpointError:
    """Without the advice that torch gives with a pickle that it refuses: to run it."""
    if isinstance(error, CheckpointError):
        return CheckpointError(f"{folder}: {error}")
    text = str(error).partition("\n")[0]
    if isinstance(error, pickle.UnpicklingError) or not text:
        text = "it holds what no checkpoint needs; it was not run" if text else type(error).__name__
    return CheckpointError(f"{folder}: can't be loaded: {text}\n  fix: restore the checkpoint from a copy")


def _check_extra_states(state: dict, folder: Path) -> None:
    """Modules unpickle their extra state themselves."""
    for name, value in state.items():
        if name.endswith(_EXTRA):
            pickles.check_extra_state(value, f"{folder}: {name}")


def _ask_only_for_what_is_there(state: dict, folder: Path) -> None:
    """Drops the `_extra_state` entries that the other backend's checkpoint lacks."""
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

    there = {entry.key for entry in load_sharded_metadata(str(folder)).values()}
    for part in state.values():
        for name in [name for name in part if name.endswith(_EXTRA) and part[name].key not in there]:
            del part[name]


def _fill(chunk, state: dict) -> None:
    """Strictly, but for the `_extra_state` entries that were dropped, which a module takes empty."""
    own = chunk.state_dict()
    missing = [name for name in own if name.endswith(_EXTRA) and name not in state]
    kept = {name: own[name] for name in own.keys() - adapters.without_adapters(own).keys()}
    chunk.load_state_dict(kept | state | dict.fromkeys(missing), strict=True)


def sharded_state(
    chunks: "Sequence[MegatronModule]",
    optimizer: "MegatronOptimizer | None",
    context: ParallelContext,
    loading: bool,
    fp8: "Fp8Scaling | None" = None,
    only_adapters: bool = False,
) -> tuple[dict, dict]:
    """(what to save or to fill, the plain description of how it is laid out): weights without adapters, or these."""
    from megatron_sky.checkpoint import optimizer_shards

    metadata = content_metadata(holds_optimizer=optimizer is not None, fp8=None if fp8 is None else fp8.kind)
    with_group = metadata | {"dp_cp_group": context.dp_cp_group}
    if only_adapters:
        state = {adapters.STATE: adapters.sharded_adapters(chunks, context)}
    else:
        whole = {name: _bare(chunk).sharded_state_dict(metadata=with_group) for name, chunk in _named(chunks)}
        state = {name: adapters.without_adapters(part) for name, part in whole.items()}
    if optimizer is not None:
        weights = state if len(state) > 1 else next(iter(state.values()))
        inner = optimizer_shards.distributed_optimizer(optimizer)
        if inner is not None:
            state["optimizer"] = optimizer_shards.sharded_state(inner, weights, loading=loading)
        else:
            state["optimizer"] = optimizer.sharded_state_dict(weights, is_loading=loading, metadata=with_group)
    if fp8 is not None and fp8.kind is not None:
        state["fp8"] = _sharded_history(fp8, context)
    return state, metadata


def content_metadata(*, holds_optimizer: bool, fp8: dict | None = None) -> dict:
    """How a checkpoint's content is laid out, as megatron-core saves and asks for it."""
    return {
        "distrib_optim_sharding_type": "fully_reshardable",
        "distrib_optim_fully_reshardable_mem_efficient": False,
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
        "holds_optimizer": holds_optimizer,
        "fp8": fp8,
    }


def _sharded_history(fp8: "Fp8Scaling", context: ParallelContext) -> dict:
    """The amax history as one tensor `[layer, linear, operand, step]`, of which a rank holds its stage's layers."""
    from megatron.core.dist_checkpointing.mapping import ShardedTensor

    copies = (0, context.place.tp_rank, context.dp_cp_group.rank())
    return {
        str(number): ShardedTensor.from_rank_offsets(
            "fp8.amax_history", history, (0, number, fp8.num_layers), replica_id=copies, prepend_axis_num=1
        )
        for number, history in fp8.history_by_layer().items()
    }


def _named(chunks: "Sequence[MegatronModule]") -> "list[tuple[str, MegatronModule]]":
    """megatron-core's names of a rank's model chunks in a checkpoint's state."""
    if len(chunks) == 1:
        return [("model", chunks[0])]
    return [(f"model{number}", chunk) for number, chunk in enumerate(chunks)]


def _bare(chunk: "MegatronModule") -> "MegatronModule":
    """The model inside the DDP wrapper, if any (a Float16Module's sharded state is its module's)."""
    from megatron.core.distributed import DistributedDataParallel

    return chunk.module if isinstance(chunk, DistributedDataParallel) else chunk


def save_strategy(context: ParallelContext):
    """Data-parallel ranks write equal shares of what they hold in common."""
    from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelSaveStrategyWrapper

    return FullyParallelSaveStrategyWrapper(get_default_save_sharded_strategy("torch_dist"), context.dp_cp_group)


def _load_strategy(context: ParallelContext, folder: Path):
    """Data-parallel ranks read equal shares and exchange them."""
    from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
    from megatron.core.dist_checkpointing.strategies.fully_parallel import FullyParallelLoadStrategyWrapper

    return FullyParallelLoadStrategyWrapper(get_default_load_sharded_strategy(str(folder)), context.dp_cp_group)
