"""What is pickled in a checkpoint, proved to be data before it is read.

megatron-core's torch_dist format has two places for pickles: `.metadata`, the index of tensors, and the `_extra_state`
of Transformer Engine's modules, which they unpickle themselves. A pickle names what it calls, so a list of the names
that each may use decides; nothing of a pickle that names another is run. Objects beside the tensors are read by torch
as data alone (`compat.read_objects_as_data`).
"""

import io
import pickle
from pathlib import Path

from megatron_sky.distributed import compat
from megatron_sky.errors import CheckpointError

_DCP = "torch.distributed.checkpoint"
_INDEX_NAMES = {
    f"{_DCP}.metadata": "Metadata MetadataIndex TensorProperties TensorStorageMetadata ChunkStorageMetadata "
    "BytesStorageMetadata StorageMeta _MEM_FORMAT_ENCODING",
    f"{_DCP}.planner": "SavePlan WriteItem WriteItemType TensorWriteData BytesIOWriteData",
    f"{_DCP}.filesystem": "_StorageInfo _StoragePrefix",
    "megatron.core.dist_checkpointing.strategies.torch": "MCoreMetadata MCoreSavePlan",
    "torch": "Size float32 float16 bfloat16 float64 int64 int32 uint8 bool",
    "torch.serialization": "_get_layout",
    "collections": "OrderedDict",
    "pathlib": "PosixPath PurePosixPath",
    "pathlib._local": "PosixPath PurePosixPath",
}
# Of Transformer Engine's state of 8-bit scales: tensors, numbers and its recipe.
_EXTRA_STATE_NAMES = {
    "torch": "Size",
    "torch._utils": "_rebuild_tensor_v2",
    "torch._tensor": "_rebuild_from_type_v2",
    "transformer_engine.common.recipe": "DelayedScaling Float8CurrentScaling Float8BlockScaling MXFP8BlockScaling "
    "NVFP4BlockScaling Format _FormatHelper MMParams QParams",
    "megatron.core.extensions.transformer_engine": "TEDelayedScaling",
}
_STORAGES = {("torch.storage", "_load_from_bytes"), ("megatron.core.safe_globals", "safe_load_from_bytes")}
_UNREADABLE = (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, IndexError, TypeError)


def check_index(path: Path) -> None:
    """Raises CheckpointError where `path`, the index of tensors, names anything but what such an index is made of."""
    try:
        with open(path, "rb") as file:
            _IndexUnpickler(file).load()
    except (OSError, *_UNREADABLE) as error:
        raise CheckpointError(f"{path}: is not an index of tensors: {error}") from None


def check_extra_state(value: object, where: str) -> None:
    """Raises CheckpointError where a module's extra state, as bytes in a uint8 tensor, is more than scales.

    `where` names it. What is no such tensor is data already.
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.numel() == 0:
        return
    try:
        _ExtraStateReader(io.BytesIO(value.detach().cpu().numpy().tobytes())).load()
    except (CheckpointError, *_UNREADABLE) as error:
        raise CheckpointError(f"{where}: is no state of 8-bit scales: {error}") from None


def _refuse(module: str, name: str) -> None:
    raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs; it was not run")


class _IndexUnpickler(pickle.Unpickler):
    """Loads torch.distributed.checkpoint's `.metadata` and refuses every name outside a fixed list."""

    def find_class(self, module: str, name: str):
        if name not in _INDEX_NAMES.get(module, "").split():
            _refuse(module, name)
        return super().find_class(module, name)


class _ExtraStateReader(pickle.Unpickler):
    """Reads Transformer Engine's extra state with nothing behind its names, which need not be installed here."""

    def find_class(self, module: str, name: str):
        if (module, name) in _STORAGES:
            return _check_storage
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if name not in _EXTRA_STATE_NAMES.get(module, "").split():
            _refuse(module, name)
        return _Nothing


class _Nothing:
    """Stands for any object of an extra state."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state) -> None:
        pass


def _check_storage(content: bytes) -> None:
    """A tensor's numbers are a pickle of their own."""
    compat.read_as_data(io.BytesIO(content), "a tensor of it")
