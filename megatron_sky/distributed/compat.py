"""What differs between megatron-core 0.16 and 0.19, in one place.

Everything else calls megatron-core through its names, which both versions share.
"""

import contextlib
import inspect
import io
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_sky.errors import CheckpointError, RunError

if TYPE_CHECKING:
    import torch
    from megatron.core.optimizer import MegatronOptimizer
    from torch.distributed.checkpoint.metadata import Metadata

COMMON_FILE = "common.pt"


def call(function: Callable, /, *args, **kwargs):
    """Calls `function` without the keyword arguments its version does not know."""
    known = inspect.signature(function).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in known.values()):
        kwargs = {name: value for name, value in kwargs.items() if name in known}
    return function(*args, **kwargs)


def batch_on_this_cp_rank(batch: dict, cp_group) -> dict:
    """megatron-core's slice of `batch` along the sequence for this context-parallel rank (two chunks, zigzag).

    Without a group 0.16 takes the context-parallel one, and 0.19 all ranks.
    """
    from megatron.core.utils import get_batch_on_this_cp_rank

    return call(get_batch_on_this_cp_rank, batch, is_hybrid_cp=False, cp_group=cp_group)


def mlp_submodules(layer_spec):
    """The linears' places within a layer spec's feed-forward part, a ModuleSpec in 0.16 and a partial in 0.19."""
    mlp = layer_spec.submodules.mlp
    return mlp.submodules if hasattr(mlp, "submodules") else mlp.keywords["submodules"]


def replace_members(owner, **members) -> None:
    """Puts `members` in the place of a foreign module's or class's own, which all tested versions have.

    Raises RunError where there is none of that name: what was asked of it goes elsewhere then, past ours.
    """
    for name, member in members.items():
        if not hasattr(owner, name):
            package = getattr(owner, "__module__", owner.__name__).partition(".")[0]
            raise RunError(
                f"{package}: {owner.__name__} has no {name} in the installed version, which this program replaces\n"
                "  fix: install tested versions, which `megatron-sky doctor` names"
            )
        setattr(owner, name, member)


def gradients_of_norm(optimizer: "MegatronOptimizer") -> "list[torch.Tensor]":
    """The gradients of this rank that count in the norm over all of them; 0.19 calls the method another name."""
    names = ("get_grads_for_grad_norm", "get_main_grads_for_grad_norm")
    return next(getattr(optimizer, name) for name in names if hasattr(optimizer, name))()


def write_views_in_place() -> None:
    """Lets megatron-core hand a CPU tensor that is a part of a larger one to its writers without a copy.

    It copies such parts while training waits, since a tensor is written with all of its storage. The same memory under
    a storage of its own size is as good: the writers are forked, and a fork's memory is a snapshot.
    """
    from megatron.core.dist_checkpointing.strategies.torch import MCoreSavePlanner

    if "resolve_data" in vars(MCoreSavePlanner):
        return
    inherited = MCoreSavePlanner.resolve_data

    def resolve_data(self, write_item):
        return _with_own_storage(inherited(self, write_item))

    replace_members(MCoreSavePlanner, resolve_data=resolve_data)


def _with_own_storage(data):
    import torch

    if not isinstance(data, torch.Tensor) or data.device.type != "cpu" or not data.is_contiguous() or data.dim() == 0:
        return data
    numbers = data.detach().view(torch.uint8).numpy()  # numpy has no bf16
    return torch.from_numpy(numbers).view(data.dtype)


def read_index_by(read: "Callable[[Path], Metadata]") -> None:
    """Lets torch's reader of checkpoints take the index of tensors from `read(path)`.

    It would run whatever program that file is, and can't read what another version of Python or torch wrote.
    """
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.metadata import StorageMeta

    def read_metadata(self):  # without torch's **kwargs it asks for no index of a rank's own, which nobody writes here
        metadata = read(Path(self.path) / ".metadata")
        metadata.storage_meta = getattr(metadata, "storage_meta", None) or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata

    replace_members(FileSystemReader, read_metadata=read_metadata)


def read_objects_as_data() -> None:
    """Lets torch's reader of checkpoints take what is no tensor for data; it would run whatever such an object names.

    Raises CheckpointError, within torch's CheckpointException, naming the object.
    """
    import torch
    from torch.distributed.checkpoint import DefaultLoadPlanner

    if getattr(DefaultLoadPlanner.load_bytes, "data_alone", False):
        return
    inherited = DefaultLoadPlanner.load_bytes

    def load_bytes(self, read_item, value):
        harmless = io.BytesIO()
        torch.save(read_as_data(value, read_item.storage_index.fqn), harmless)
        harmless.seek(0)
        return inherited(self, read_item, harmless)

    vars(load_bytes)["data_alone"] = True
    replace_members(DefaultLoadPlanner, load_bytes=load_bytes)


def read_as_data(saved, name: str):
    """What torch.save wrote into the file `saved`: tensors, numbers, texts, containers.

    Raises CheckpointError, with `name` for the object, where it is anything else.
    """
    import torch

    try:
        return torch.load(saved, weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f"names {named.group(1)}, which no checkpoint needs" if named else "can't be read as data"
        raise CheckpointError(f"{name}: {what}; it was not run\n  fix: do not use this checkpoint") from None


@contextlib.contextmanager
def failures_of_first_rank() -> Iterator[list[Exception]]:
    """What rank 0 alone writes of a checkpoint is noted where it fails (the disk is full) instead of raised.

    The other ranks meet rank 0 in a barrier or broadcast after each of these writes: raised, it would leave them there.
    torch.save gives a RuntimeError for a write that fails.
    """
    from megatron.core.dist_checkpointing import serialization
    from megatron.core.dist_checkpointing.strategies import common
    from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync

    failures: list[Exception] = []

    def noted(function: Callable) -> Callable:
        def call(*args, **kwargs):
            try:
                return function(*args, **kwargs)
            except (OSError, RuntimeError) as error:
                failures.append(error)

        return call

    places = [(serialization, "save_config"), (FileSystemWriterAsync, "finish")]
    if hasattr(common, "TorchCommonSaveStrategy"):  # 0.19 writes no such file
        places.append((common.TorchCommonSaveStrategy, "save_common"))
    originals = [(owner, name, getattr(owner, name)) for owner, name in places]
    for owner, name, function in originals:
        setattr(owner, name, noted(function))
    try:
        yield failures
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def write_common_file(state: dict, folder: Path) -> None:
    """Writes what is no tensor of a state that was just saved where 0.16 looks for it; 0.19 puts it among the tensors.

    With the file both versions read the checkpoint. One rank's task.
    """
    from megatron.core.dist_checkpointing.utils import extract_nonpersistent, extract_sharded_base

    path = folder / COMMON_FILE
    if not path.exists():
        import torch

        _, common = extract_sharded_base(extract_nonpersistent(state)[1])
        torch.save(common, path)
