"""What compressed files hold, as a stream: gzip, bzip2, xz and Zstandard, of any number of streams each.

The libraries' own readers differ in what they take for a whole file: bz2's and lzma's pass over what follows a stream
and is none, zstandard's takes a frame that was cut off for a whole one. Read here, all are held to one rule: a file is
whole streams, one after another, with zeros between and after them at most.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from megatron_sky.errors import DataError, MissingDependency

ENDINGS = {".gz": ".gz", ".gzip": ".gz", ".bz2": ".bz2", ".xz": ".xz", ".zst": ".zst", ".zstd": ".zst"}
# Compressed bytes that are unpacked at once: in the worst case, a single byte repeated, they make some 64 MiB.
_UNPACKED_AT_ONCE = {".gz": 32 << 10, ".bz2": 2048, ".xz": 8192, ".zst": 2048}
_MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\0": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
_ZSTD_LARGEST_WINDOW = 1 << 31  # what --ultra --long=31 asks for, the format's libraries allow no more
_BUFFER_BYTES = 1 << 20


def compression_of(head: bytes) -> str:
    """The compression whose files begin as `head` does; empty for none."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:  # a frame of zstd that is passed over
        return ".zst"
    return next((compression for magic, compression in _MAGIC.items() if head.startswith(magic)), "")


def open_compressed(path: str | Path, compression: str) -> io.BufferedReader:
    """The content of a file; `compression` is one of `ENDINGS`' values.

    Raises:
        DataError: from `read`, where the file is damaged or cut off, or unpacking it needs more memory than there is.
        OSError: the file can't be opened.
    """
    return io.BufferedReader(_Unpacked(str(path), compression), _BUFFER_BYTES)


class _Stream(Protocol):
    """One compressed stream; all four libraries' have these."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


class _Unpacked(io.RawIOBase):
    def __init__(self, path: str, compression: str):
        self._path, self._compression = path, compression
        self._start, failures = _format(path, compression)
        self._failures: tuple[type[Exception], ...] = (MemoryError, *failures)
        self._file = open(path, "rb")  # noqa: SIM115
        self._num_streams = 0
        self._stream: _Stream | None = None
        self._packed = b""  # read already, of the next stream
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            packed = self._packed or self._file.read(_UNPACKED_AT_ONCE[self._compression])
            if not packed:
                if self._stream is not None:
                    raise self._broken("the file ends before its last stream does")
                return 0
            self._unpack(packed)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _unpack(self, packed: bytes) -> None:
        self._packed = b""
        if self._stream is None:
            packed = packed.lstrip(b"\0") if self._num_streams else packed
            if not packed:
                return
            self._stream = self._start()
            self._num_streams += 1
        try:
            self._ready = memoryview(self._stream.decompress(packed))
        except self._failures as error:
            raise self._broken(error) from error
        if self._stream.eof:
            self._packed, self._stream = self._stream.unused_data, None

    def _broken(self, what: object) -> DataError:
        if isinstance(what, MemoryError) or "memory" in str(what):
            return DataError(
                f"{self._path}: there is too little memory to unpack it ({what or 'MemoryError'})\n"
                "  fix: take a machine with more, or pack the file again with a smaller window"
            )
        return DataError(f"{self._path}: broken {self._compression} file ({what})\n  fix: fetch it again")

    def close(self) -> None:
        self._file.close()
        super().close()


def _format(path: str, compression: str) -> tuple[Callable[[], _Stream], tuple[type[Exception], ...]]:
    """What unpacks one stream of a format, and what it raises for what is none."""
    if compression == ".gz":
        return lambda: zlib.decompressobj(wbits=31), (zlib.error,)
    if compression == ".bz2":
        return bz2.BZ2Decompressor, (OSError, ValueError)
    if compression == ".xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), (lzma.LZMAError,)
    try:
        import zstandard
    except ImportError:
        raise MissingDependency("zstandard", f"reading {path}", "pip install 'megatron-sky[corpus]'") from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_LARGEST_WINDOW)
    return decompressor.decompressobj, (zstandard.ZstdError,)
