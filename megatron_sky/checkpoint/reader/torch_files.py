"""Reading torch's files without running what they say.

A pickle is a program. torch's files hold one that names the tensors, and their bytes beside it. `read_pickle` runs such
a program with a fixed list of harmless names: a tensor becomes a `TensorRef` (where its bytes are), containers stay
containers, and any other name is either refused or, where the caller has no use for it (a training script's settings),
becomes an `Inert` object that only remembers its name. Nothing is imported by a file's wish, so no code of it can run,
and no torch is needed. `TorchArchive` is the zip container of torch.save, which may lie inside a larger file.
"""

import collections
import io
import pickle
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader.lazy import ITEM_SIZE, LazyTensor, bits_dtype, read_into
from megatron_sky.checkpoint.reader.pickles import EnumUnpickler
from megatron_sky.errors import CheckpointError

_DTYPES = {"float32": "F32", "float64": "F64", "float16": "F16", "half": "F16", "bfloat16": "BF16"}
_STORAGES = {"FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16"} | {
    **{"LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8"},
    **{"ByteStorage": "U8", "BoolStorage": "BOOL"},
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then lengths of name and extra field


class Inert:
    """What a name outside the list becomes: it takes any arguments and state, and does nothing."""

    def __init__(self, *args, **kwargs):
        self.args = args

    def __setstate__(self, state):
        self.state = state

    def __call__(self, *args, **kwargs):
        return self

    def append(self, item):
        """Accepts a list-like object's items."""

    def extend(self, items):
        """Accepts a list-like object's items."""

    def __setitem__(self, key, value):
        """Accepts a dict-like object's items."""


class Settings(Inert):
    """An argparse.Namespace as it was pickled: `state` is the dict of its values."""

    state: dict = {}  # noqa: RUF012 (replaced, never changed)


@dataclass(frozen=True)
class TensorRef:
    """A tensor as its pickle describes it: its storage's record, and the view on it (counts of elements)."""

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


@dataclass(frozen=True)
class _StorageRef:
    record: str
    dtype: str


@dataclass(frozen=True)
class DtypeName:
    """A torch dtype: `name` is safetensors' name of it, or torch's own where it isn't one that weights have."""

    name: str


def _rebuild_tensor(storage, offset, size, stride, *_):
    if not isinstance(storage, _StorageRef):
        raise pickle.UnpicklingError("a tensor without a storage")
    return TensorRef(storage.record, storage.dtype, offset, tuple(size), tuple(stride))


_COMMON = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("argparse", "Namespace"): Settings,
}


class _Unpickler(EnumUnpickler):
    def __init__(self, data: bytes, names: dict, tolerant: bool):
        super().__init__(io.BytesIO(data))
        self._names = _COMMON | names
        self._tolerant = tolerant

    def member(self, owner: object, name: object):
        if self._tolerant and isinstance(owner, type) and issubclass(owner, Inert):
            return owner(name)
        return super().member(owner, name)

    def find_name(self, module: str, name: str):
        if (module, name) in self._names:
            return self._names[module, name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and (name in _DTYPES or name.rstrip("0123456789") in ("int", "uint", "float", "bool")):
            return DtypeName(_DTYPES.get(name, name))
        if self._tolerant:
            return type(f"Inert_{name}".replace(".", "_"), (Inert,), {})
        raise pickle.UnpicklingError(f"it names {module}.{name}, which has no place in such a file")

    def persistent_load(self, pid):
        kind, storage, key, *_ = pid
        if kind != "storage" or not isinstance(key, str):
            raise pickle.UnpicklingError(f"an unknown reference {kind!r}")
        return _StorageRef(f"data/{key}", storage if isinstance(storage, str) else "unknown")


def read_pickle(data: bytes, place: str, *, names: dict | None = None, tolerant: bool = False) -> object:
    """Runs the pickle `data` with the listed `names` ((module, name) -> stand-in) beside containers and tensors.

    `tolerant` turns other names into `Inert` objects; else they, and anything malformed, raise CheckpointError.
    """
    try:
        return _Unpickler(data, names or {}, tolerant).load()
    except Exception as error:  # a damaged pickle can fail in any way; all mean that this file can't be read
        raise CheckpointError(
            f"{place}: is refused or damaged: {error}\n  fix: only plain tensors and settings are read; restore the "
            "file from where it was made"
        ) from error


class _Slice(io.RawIOBase):
    """`length` bytes of a file from `start` on, as a file of their own."""

    def __init__(self, path: Path, start: int, length: int):
        self._file = open(path, "rb")  # noqa: SIM115 (closed with this object)
        self._start, self._length, self._position = start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        wanted = max(0, min(len(buffer), self._length - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(wanted)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class _Record:
    """Where a stored member's bytes lie in the file, and their checksum (0: none was made)."""

    offset: int
    size: int
    crc32: int


class TorchArchive:
    """The zip container of torch.save in `path`, or in `length` bytes of it from `start` on.

    Raises CheckpointError when it is none, truncated, or of torch's format before version 1.6.
    """

    def __init__(self, path: Path, start: int = 0, length: int | None = None):
        self.path = path
        try:
            size = path.stat().st_size
            length = size - start if length is None else length
            if start + length > size:
                raise CheckpointError(
                    f"{path}: has {size:,} bytes, but {start + length:,} are described: the file is truncated"
                )
            with _Slice(path, start, length) as part:
                self._records = dict(_list_records(part, start))
                self._pickle = self._read_bytes("data.pkl")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: is missing") from None
        except (OSError, zipfile.BadZipFile, struct.error) as error:
            raise CheckpointError(
                f"{path}: is no archive of torch.save, or truncated: {error}\n  fix: restore it from a copy; a file "
                "of torch before 1.6 must be saved again with a newer torch"
            ) from error

    def content(self, *, names: dict | None = None, tolerant: bool = False) -> object:
        """What was saved, with a TensorRef in place of every tensor (see `read_pickle`)."""
        return read_pickle(self._pickle, str(self.path), names=names, tolerant=tolerant)

    def tensor(self, ref: TensorRef, name: str) -> LazyTensor:
        """The tensor that `ref` describes. Raises CheckpointError when its bytes are not all there."""
        place = f"{self.path}: {name}"
        record = self._records.get(ref.record)
        if record is None or ref.dtype not in ITEM_SIZE:
            what = "has no bytes in the file" if record is None else f"is of type {ref.dtype}, which isn't read"
            raise CheckpointError(f"{place}: {what}")
        item = ITEM_SIZE[ref.dtype]
        last = ref.storage_offset + sum((s - 1) * t for s, t in zip(ref.shape, ref.stride, strict=True) if s) + 1
        if last * item > record.size:
            raise CheckpointError(f"{place}: needs {last * item:,} bytes, its storage has {record.size:,}")
        return LazyTensor(ref.dtype, ref.shape, lambda: self._load(ref, record, name), place)

    def tensor_into(self, ref: TensorRef, name: str, target: np.ndarray) -> None:
        """Reads the tensor that `ref` describes into `target`, of its shape: at once where memory lies as the file."""
        tensor = self.tensor(ref, name)
        record = self._records[ref.record]
        if not (ref.is_contiguous and target.flags.c_contiguous and target.nbytes == record.size):
            target[...] = tensor.load()
            return
        read_into(self.path, record.offset, target, f"tensor {name}")
        self._check(target, record, name)

    def data_offset(self, ref: TensorRef) -> int:
        """Where in the file the bytes of the storage of `ref` begin."""
        return self._records[ref.record].offset

    def _load(self, ref: TensorRef, record: _Record, name: str) -> np.ndarray:
        bits = bits_dtype(ref.dtype)
        if ref.is_contiguous:
            target = np.empty(ref.shape, bits)
            read_into(self.path, record.offset + ref.storage_offset * bits.itemsize, target, f"tensor {name}")
            if target.nbytes == record.size:
                self._check(target, record, name)
            return target
        whole = np.empty(record.size // bits.itemsize, bits)
        read_into(self.path, record.offset, whole, f"tensor {name}")
        steps = tuple(step * bits.itemsize for step in ref.stride)
        view = np.lib.stride_tricks.as_strided(whole[ref.storage_offset :], ref.shape, steps, writeable=False)
        return np.ascontiguousarray(view)

    def _check(self, target: np.ndarray, record: _Record, name: str) -> None:
        if record.crc32 and zlib.crc32(memoryview(target.reshape(-1)).cast("B")) != record.crc32:
            raise CheckpointError(f"{self.path}: {name}: its bytes are not what was saved (CRC-32 differs)")

    def _read_bytes(self, name: str) -> bytes:
        record = self._records.get(name)
        if record is None:
            raise CheckpointError(f"{self.path}: is no archive of torch.save: it has no {name}")
        target = np.empty(record.size, np.uint8)
        read_into(self.path, record.offset, target, name)
        return target.tobytes()


def _list_records(part: _Slice, start: int):
    """(name without the archive's own prefix, record) of every stored member."""
    with zipfile.ZipFile(part) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{info.filename} is compressed")
            part.seek(info.header_offset)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(part.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise zipfile.BadZipFile(f"{info.filename} has no header")
            offset = start + info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            yield info.filename.partition("/")[2], _Record(offset, info.file_size, info.CRC)


def settings_of(content: object) -> dict | None:
    """The values of the argparse.Namespace saved under `args`, plain values only; None where there is none."""
    args = content.get("args") if isinstance(content, dict) else None
    if not isinstance(args, Settings) or not isinstance(args.state, dict):
        return None
    return {str(name): value for name, value in args.state.items() if not isinstance(value, Inert | type)}
