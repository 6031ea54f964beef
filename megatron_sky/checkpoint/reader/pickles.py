"""What is pickled in a checkpoint, read as data whatever version of Python and torch wrote it.

megatron-core's torch_dist format has two places for pickles: `.metadata`, the index of tensors, and the `_extra_state`
of Transformer Engine's modules, which they unpickle themselves. A pickle names what it calls, so a list of the names
that each may use decides; nothing of a pickle that names another is run. Objects beside the tensors are read by torch
as data alone (`compat.read_objects_as_data`).

Versions differ in what they pickle. Python 3.11.0 to 3.11.3 write a member of an Enum as `getattr(class, name)`, others
as `class(value)`. Python 3.13 calls its paths `pathlib._local`. torch 2.15 adds `strides` to TensorProperties.
"""

import functools
import io
import pickle
from enum import Enum
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from megatron_sky.distributed import compat
from megatron_sky.errors import CheckpointError

_DCP = "torch.distributed.checkpoint"
_RECIPE = "transformer_engine.common.recipe"
INDEX_CLASSES = {
    f"{_DCP}.metadata": "Metadata MetadataIndex TensorProperties TensorStorageMetadata ChunkStorageMetadata "
    "BytesStorageMetadata StorageMeta _MEM_FORMAT_ENCODING",
    f"{_DCP}.planner": "SavePlan WriteItem WriteItemType TensorWriteData BytesIOWriteData",
    f"{_DCP}.filesystem": "_StorageInfo _StoragePrefix",
    "megatron.core.dist_checkpointing.strategies.torch": "MCoreMetadata MCoreSavePlan",
    "torch.serialization": "_get_layout",
    "pathlib": "PosixPath PurePosixPath",
    "pathlib._local": "PosixPath PurePosixPath",
}
_INDEX_NAMES = INDEX_CLASSES | {
    "torch": "Size float32 float16 bfloat16 float64 int64 int32 uint8 bool",
    "collections": "OrderedDict",
}
# Of Transformer Engine's state of 8-bit scales: tensors, numbers and its recipe.
_EXTRA_STATE_NAMES = {
    "torch": "Size",
    "torch._utils": "_rebuild_tensor_v2",
    "torch._tensor": "_rebuild_from_type_v2",
    _RECIPE: "DelayedScaling Float8CurrentScaling Float8BlockScaling MXFP8BlockScaling "
    "NVFP4BlockScaling Format _FormatHelper MMParams QParams",
    "megatron.core.extensions.transformer_engine": "TEDelayedScaling",
}
# The Enums among all of these, and their members: fixed here, since a class can be changed by what is read.
_ENUMS = {
    (f"{_DCP}.metadata", "_MEM_FORMAT_ENCODING"): "TORCH_CONTIGUOUS_FORMAT TORCH_CHANNELS_LAST TORCH_PRESERVE_FORMAT",
    (f"{_DCP}.planner", "WriteItemType"): "TENSOR SHARD BYTE_IO",
    (_RECIPE, "Format"): "E2M1 E4M3 E5M2 HYBRID",
}
_GETATTR = {("builtins", "getattr"), ("__builtin__", "getattr")}  # the latter in protocols before 3, such as torch's
_PROPERTIES = {"dtype", "layout", "requires_grad", "memory_format", "pin_memory"}  # in the order of their state
_STORAGES = {("torch.storage", "_load_from_bytes"), ("megatron.core.safe_globals", "safe_load_from_bytes")}
_UNREADABLE = (pickle.UnpicklingError, EOFError, AttributeError, ImportError, ValueError, IndexError, TypeError)


def read_index(path: Path) -> object:
    """torch's Metadata in `path`, the index of tensors.

    Raises CheckpointError where the file names anything but what such an index is made of.
    """
    try:
        with open(path, "rb") as file:
            return _IndexUnpickler(file).load()
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


class EnumUnpickler(pickle.Unpickler):
    """Reads members of `_ENUMS` in either form; what other names stand for, `find_name` says, or refuses them."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._members: dict[type, list[str]] = {}

    def find_class(self, module: str, name: str):
        if (module, name) in _GETATTR:
            return self.member
        known = self.find_name(module, name)
        if (module, name) in _ENUMS:
            self._members[known] = _ENUMS[module, name].split()
        return known

    def find_name(self, module: str, name: str):
        """What `module.name` in the pickle stands for, for an Enum a class that stands for no other."""
        raise NotImplementedError

    def member(self, owner: object, name: object):
        """Stands for the builtin `getattr` in a pickle, and takes a member's name of a known Enum alone."""
        if not isinstance(owner, type) or name not in self._members.get(owner, ()):
            raise pickle.UnpicklingError(f"it asks {owner!r} for {name!r}, which is no Enum's member; it was not run")
        return getattr(owner, name) if issubclass(owner, Enum) else owner(name)


class _IndexUnpickler(EnumUnpickler):
    """Loads torch.distributed.checkpoint's `.metadata` and refuses every name outside a fixed list."""

    def find_name(self, module: str, name: str):
        if name not in _INDEX_NAMES.get(module, "").split():
            _refuse(module, name)
        if module.startswith("pathlib"):
            return PurePosixPath
        if name == "TensorProperties":
            return _properties_class()
        return super(EnumUnpickler, self).find_class(module, name)


@functools.cache
def _properties_class() -> type:
    """torch's TensorProperties, which takes the state that any version saved.

    Up to 2.14 torch can't take what 2.15 saves; and megatron-core hands all fields to torch.empty, which knows these.
    """
    from torch.distributed.checkpoint.metadata import TensorProperties

    class AnyProperties(TensorProperties):
        def __setstate__(self, state: tuple) -> None:
            super().__setstate__(state[: len(_PROPERTIES)])
            self.__class__ = TensorProperties
            for field in vars(self).keys() - _PROPERTIES:
                delattr(self, field)

    return AnyProperties


class _ExtraStateReader(EnumUnpickler):
    """Reads Transformer Engine's extra state with nothing behind its names, which need not be installed here."""

    def find_name(self, module: str, name: str):
        if (module, name) in _STORAGES:
            return _check_storage
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if name not in _EXTRA_STATE_NAMES.get(module, "").split():
            _refuse(module, name)
        return type(name, (_Nothing,), {})


class _Nothing:
    """Stands for any object of an extra state."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state) -> None:
        pass


def _check_storage(content: bytes) -> None:
    """A tensor's numbers are a pickle of their own."""
    compat.read_as_data(io.BytesIO(content), "a tensor of it")
