"""Every pickle of a checkpoint, read as data whatever version of Python and torch wrote it. No code of a file runs.

A pickle is a program that names what it calls. Here a list of the names that each kind of file may use decides, and
nothing is imported by a file's wish: a tensor becomes a `TensorRef` (where its bytes are), containers stay containers,
any other name stands for an inert object or is refused. So no torch is needed. The kinds of files:

    .metadata              torch_dist's index of tensors: `INDEX_NAMES` alone (read by `index`)
    torch.save archives    chunks of tensors, Hugging Face's .bin files: tensors and containers
    Megatron-LM's files    tolerantly: whatever objects its training program has put there become `Inert`
    extra states           of Transformer Engine's modules, which unpickle them themselves: checked before they do

Versions differ in what they pickle. Python 3.11.0 to 3.11.3 write a member of an Enum as `getattr(class, name)`, others
as `class(value)`. Python 3.13 calls its paths `pathlib._local`. torch 2.15 adds `strides` to TensorProperties.
"""

import collections
import io
import math
import pickle
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from megatron_sky.checkpoint.reader.lazy import FORMAT_OF_TORCH
from megatron_sky.distributed import compat
from megatron_sky.errors import CheckpointError

_DCP = "torch.distributed.checkpoint"
_RECIPE = "transformer_engine.common.recipe"
# What a .metadata may name beside tensors and containers: module -> classes.
INDEX_NAMES = {
    f"{_DCP}.metadata": "Metadata MetadataIndex TensorProperties TensorStorageMetadata ChunkStorageMetadata "
    "BytesStorageMetadata StorageMeta _MEM_FORMAT_ENCODING",
    f"{_DCP}.planner": "SavePlan WriteItem WriteItemType TensorWriteData BytesIOWriteData",
    f"{_DCP}.filesystem": "_StorageInfo _StoragePrefix",
    "megatron.core.dist_checkpointing.strategies.torch": "MCoreMetadata MCoreSavePlan",
    "torch.serialization": "_get_layout",
    "pathlib": "PosixPath PurePosixPath",
    "pathlib._local": "PosixPath PurePosixPath",
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
_LOADED_STORAGES = {("torch.storage", "_load_from_bytes"), ("megatron.core.safe_globals", "safe_load_from_bytes")}
_STORAGES = {"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16"} | {
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"},
    **{"ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8"},
}
_DTYPE = re.compile(r"(bool|half|(b?float|u?int|complex)\d\w*)")


class Plain:
    """Any object of a pickle as data: `args` it was made of; its fields as attributes, or its `state` where it saved
    another thing than fields. It does nothing."""

    args: tuple = ()
    state: object = None

    def __init__(self, *args: object):
        self.args = args

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(name): value for name, value in state.items()})
        else:
            self.state = state

    def __hash__(self) -> int:
        return id(self)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # a field: of any kind, until who asks for it has checked


class Inert(Plain):
    """What a name outside the list becomes where it is tolerated: it takes any arguments and items."""

    def __init__(self, *args: object, **_: object):
        super().__init__(*args)

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __call__(self, *_: object, **__: object) -> "Inert":
        return self

    def append(self, item: object) -> None:
        """Accepts a list-like object's items."""

    def extend(self, items: object) -> None:
        """Accepts a list-like object's items."""

    def __setitem__(self, key: object, value: object) -> None:
        """Accepts a dict-like object's items."""


class Settings(Inert):
    """An argparse.Namespace as it was pickled: `state` is the dict of its values."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor as its pickle describes it: its storage's record, and the view on it (counts of elements).

    `shape` and `stride` are whole numbers, none negative, of equal count, and so is `storage_offset`. Whether the view
    lies inside the storage is `torch_files`' to check, which knows the storage's size.
    """

    record: str
    dtype: str
    storage_offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for size, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and step != expected:
                return False
            expected *= size
        return True

    @property
    def num_needed(self) -> int:
        """Elements that the storage must have: up to the view's last, and as many as the view has, which steps of 0
        would repeat."""
        volume = math.prod(self.shape)
        last = self.storage_offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True)) + 1
        return max(last, volume) if volume else 0


@dataclass(frozen=True)
class _StorageRef:
    record: str
    dtype: str


@dataclass(frozen=True)
class DtypeName:
    """A torch dtype: `name` is safetensors' name of it, or torch's own where safetensors has none."""

    name: str


def counts(values: object, what: str) -> tuple[int, ...]:
    """`values`, a tuple or list of whole numbers, none negative, as a tuple; else ValueError names `what`."""
    if not isinstance(values, tuple | list) or any(type(value) is not int or value < 0 for value in values):
        raise ValueError(f"{what} = {str(values)[:80]}: must be whole numbers, none negative")
    return tuple(values)


def _rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> TensorRef:
    if not isinstance(storage, _StorageRef):
        raise pickle.UnpicklingError("a tensor without a storage")
    shape, steps = counts(size, "a tensor's shape"), counts(stride, "a tensor's strides")
    if len(shape) != len(steps):
        raise ValueError(f"a tensor's shape {shape} and strides {steps} are of different lengths")
    (start,) = counts((offset,), "a tensor's offset")
    return TensorRef(storage.record, storage.dtype, start, shape, steps)


def _rebuild_tensor_of(storage, offset, size, stride, _grad, _hooks, dtype, *_: object) -> TensorRef:
    """Of a format that has no storage class of its own."""
    ref = _rebuild_tensor(storage, offset, size, stride)
    name = dtype.name if isinstance(dtype, DtypeName) else "unknown"
    return TensorRef(ref.record, name, ref.storage_offset, ref.shape, ref.stride)


def _rebuild_typed(function: object, _type: object, arguments: object, _attributes: object) -> TensorRef:
    """Of a tensor that has attributes in Python, as megatron-core's fp32 masters have; they are passed over."""
    if function not in (_rebuild_tensor, _rebuild_tensor_of) or not isinstance(arguments, tuple):
        raise pickle.UnpicklingError(f"{str(function)[:80]} makes no tensor; it was not run")
    return _rebuild_tensor(*arguments) if function is _rebuild_tensor else _rebuild_tensor_of(*arguments)


_TENSORS = {
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_typed,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_of,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("argparse", "Namespace"): Settings,
}


class _EnumUnpickler(pickle.Unpickler):
    """Reads members of `_ENUMS` in either form; what other names stand for, `find_name` says, or refuses them."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self._members: dict[object, list[str]] = {}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) in _GETATTR:
            return self.member
        known = self.find_name(module, name)
        if (module, name) in _ENUMS:
            self._members[known] = _ENUMS[module, name].split()
        return known

    def find_name(self, module: str, name: str) -> object:
        """What `module.name` in the pickle stands for; for an Enum, a class that stands for no other."""
        raise NotImplementedError

    def member(self, owner: object, name: object) -> object:
        """Stands for the builtin `getattr` in a pickle, and takes a member's name of a known Enum alone."""
        if not isinstance(owner, type) or name not in self._members.get(owner, ()):
            raise pickle.UnpicklingError(f"it asks {owner!r} for {name!r}, which is no Enum's member; it was not run")
        return owner(name)


class _TensorUnpickler(_EnumUnpickler):
    """Reads tensors, containers, and the `names` that a kind of file has beside them."""

    def __init__(self, data: bytes, names: dict[tuple[str, str], type], tolerant: bool):
        super().__init__(io.BytesIO(data))
        self._names = _TENSORS | names
        self._tolerant = tolerant

    def member(self, owner: object, name: object) -> object:
        if self._tolerant and isinstance(owner, type) and issubclass(owner, Inert):
            return owner(name)
        return super().member(owner, name)

    def find_name(self, module: str, name: str) -> object:
        if (module, name) in self._names:
            return self._names[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and _DTYPE.fullmatch(name):
            return DtypeName(FORMAT_OF_TORCH.get(name, name))
        if self._tolerant:
            return type(f"Inert_{name}".replace(".", "_"), (Inert,), {})
        raise _refusal(module, name)

    def persistent_load(self, pid: object) -> _StorageRef:
        if not isinstance(pid, tuple) or len(pid) < 3 or pid[0] != "storage" or not isinstance(pid[2], str):
            raise pickle.UnpicklingError(f"an unknown reference {str(pid)[:80]}")
        return _StorageRef(f"data/{pid[2]}", pid[1] if isinstance(pid[1], str) else "unknown")


def read_pickle(data: bytes, place: str, *, names: dict | None = None, tolerant: bool = False) -> object:
    """What the pickle `data` holds: containers, tensors, and the listed `names` ((module, name) -> stand-in).

    `tolerant` turns other names into `Inert` objects; else they, and anything malformed, raise CheckpointError.
    """
    try:
        return _TensorUnpickler(data, names or {}, tolerant).load()
    except Exception as error:  # a damaged pickle can fail in any way; all mean that this file can't be read
        raise CheckpointError(
            f"{place}: is refused or damaged: {error}\n  fix: only plain tensors and settings are read; restore the "
            "file from where it was made"
        ) from error


def check_extra_state(value: object, where: str) -> None:
    """Raises CheckpointError where a module's extra state, as bytes in a uint8 tensor, is more than scales.

    `where` names it. What is no such tensor is data already.
    """
    import torch

    if not isinstance(value, torch.Tensor) or value.numel() == 0:
        return
    try:
        _ExtraStateUnpickler(io.BytesIO(value.detach().cpu().numpy().tobytes())).load()
    except Exception as error:  # as in `read_pickle`
        raise CheckpointError(f"{where}: is no state of 8-bit scales: {error}") from None


class _ExtraStateUnpickler(_EnumUnpickler):
    """Reads Transformer Engine's extra state with nothing behind its names, which need not be installed here."""

    def find_name(self, module: str, name: str) -> object:
        if (module, name) in _LOADED_STORAGES:
            return _check_storage
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if name not in _EXTRA_STATE_NAMES.get(module, "").split():
            raise _refusal(module, name)
        return type(name, (Inert,), {})


def _check_storage(content: bytes) -> None:
    """A tensor's numbers are a pickle of their own."""
    compat.read_as_data(io.BytesIO(content), "a tensor of it")


def _refusal(module: str, name: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs; it was not run")
