"""The zip container of torch.save, which may lie inside a larger file: where a tensor's bytes are, and their reading.

What its pickle says (`pickles`) is compared with the bytes that are there before anything is allocated.
"""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.checkpoint.reader.lazy import ITEM_SIZE, LazyTensor, bits_dtype, read_into
from megatron_sky.checkpoint.reader.pickles import Inert, Settings, TensorRef, read_pickle
from megatron_sky.errors import CheckpointError
from megatron_sky.files import open_regular

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then lengths of name and extra field


class _Slice(io.RawIOBase):
    """`length` bytes of a file from `start` on, as a file of their own."""

    def __init__(self, path: Path, start: int, length: int):
        self._file = open_regular(path)  # closed with this object
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
                self._records = _list_records(part, start, start + length)
                self._pickle = self._read_bytes("data.pkl")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: is missing") from None
        except (OSError, zipfile.BadZipFile, struct.error, ValueError, NotImplementedError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: is no archive of torch.save, or truncated: {error}\n  fix: restore it from a copy; a file "
                "of torch before 1.6 must be saved again with a newer torch"
            ) from error

    def content(self, *, tolerant: bool = False) -> object:
        """What was saved, with a TensorRef in place of every tensor (see `read_pickle`)."""
        return read_pickle(self._pickle, str(self.path), tolerant=tolerant)

    def tensor(self, ref: TensorRef, name: str) -> LazyTensor:
        """The tensor that `ref` describes. Raises CheckpointError when its bytes are not all there."""
        place = f"{self.path}: {name}"
        record = self._records.get(ref.record)
        if record is None or ref.dtype not in ITEM_SIZE:
            what = "has no bytes in the file" if record is None else f"is of type {ref.dtype}, which isn't read"
            raise CheckpointError(f"{place}: {what}")
        needed = ref.num_needed * ITEM_SIZE[ref.dtype]
        if needed > record.size:
            raise CheckpointError(f"{place}: needs {needed:,} bytes, its storage has {record.size:,}")
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
        if record.crc32 and zlib.crc32(target.reshape(-1).data.cast("B")) != record.crc32:
            raise CheckpointError(f"{self.path}: {name}: its bytes are not what was saved (CRC-32 differs)")

    def _read_bytes(self, name: str) -> bytes:
        record = self._records.get(name)
        if record is None:
            raise CheckpointError(f"{self.path}: is no archive of torch.save: it has no {name}")
        target = np.empty(record.size, np.uint8)
        read_into(self.path, record.offset, target, name)
        return target.tobytes()


def _list_records(part: _Slice, start: int, end: int) -> dict[str, _Record]:
    """Name without the archive's own prefix -> record of every stored member, whose bytes are all there."""
    records: dict[str, _Record] = {}
    with zipfile.ZipFile(part) as archive:
        for info in archive.infolist():
            if info.compress_type != zipfile.ZIP_STORED:
                raise zipfile.BadZipFile(f"{info.filename} is compressed")
            part.seek(info.header_offset)
            signature, name_length, extra_length = _LOCAL_HEADER.unpack(part.read(_LOCAL_HEADER.size))
            if signature != b"PK\x03\x04":
                raise zipfile.BadZipFile(f"{info.filename} has no header")
            offset = start + info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            if offset + info.file_size > end:
                raise zipfile.BadZipFile(
                    f"{info.filename} is said to have {info.file_size:,} bytes, more than there are"
                )
            name = info.filename.partition("/")[2]
            if name in records:
                raise zipfile.BadZipFile(f"{info.filename} is in it twice")
            records[name] = _Record(offset, info.file_size, info.CRC)
    return records


def settings_of(content: object) -> dict | None:
    """The values of the argparse.Namespace saved under `args`, plain values only; None where there is none."""
    args = content.get("args") if isinstance(content, dict) else None
    if not isinstance(args, Settings) or not isinstance(args.state, dict):
        return None
    return {str(name): value for name, value in args.state.items() if not isinstance(value, Inert | type)}
