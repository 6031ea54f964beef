"""A weight file being written, and read back meanwhile."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from megatron_sky.checkpoint.reader.lazy import count_not_finite, read_into, same_bytes
from megatron_sky.errors import CheckpointError

_BLOCK = 1 << 20  # bytes read back at once, which stay in the processor's cache until they are compared


@dataclass(frozen=True)
class Expected:
    """What must stand in a file from `begin` on: `array`'s bytes, numbers of the format `dtype`. `what` names it."""

    begin: int
    array: np.ndarray
    dtype: str
    what: str


class WeightFile:
    """A weight file being written, and read back meanwhile. Raises CheckpointError, for a full disk too.

    `write` appends. `verify_written` hands what was appended since the last call to a thread that reads it back from
    the file, hashes it and compares it, while the next tensor is read and written. One tensor at most waits for that.
    Another thread has the disk write all the while, so that little is left to flush at the end.
    """

    def __init__(self, path: Path):
        self.path = path
        self.size = 0
        self._verified = 0
        self._digest = xxhash.xxh3_128()
        self._not_finite: dict[str, int] = {}
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._verification: Future | None = None
        self._flusher = ThreadPoolExecutor(max_workers=1)
        self._flush: Future | None = None
        try:
            self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 (closed by __exit__)
        except OSError as error:
            raise cant_write(path, error) from error

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)
        self._flusher.shutdown(cancel_futures=True)
        self._file.close()

    def write(self, data) -> int:
        """Appends bytes, or anything with a flat buffer."""
        view = memoryview(data).cast("B")
        length = len(view)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise cant_write(self.path, error) from error
        self.size += length
        return length

    def flush(self) -> None:
        """Nothing is buffered here (torch.save asks)."""

    def verify_written(self, expected: list[Expected]) -> None:
        """Has everything appended so far read back, and compared where `expected` says what it must be."""
        self._wait()
        begin, self._verified = self._verified, self.size
        self._verification = self._thread.submit(self._read_back, begin, self.size, expected)
        if self._flush is None or self._flush.done():
            self._flush = self._flusher.submit(self._to_disk)

    def finish(self) -> dict:
        """Verifies the rest and flushes to disk; the file's `size` and `xxh3`, and under `not_finite` each tensor that
        has such numbers with their count, if any has."""
        self.verify_written([])
        self._wait()
        self._to_disk()
        record = {"size": self.size, "xxh3": self._digest.hexdigest()}
        return record | ({"not_finite": self._not_finite} if self._not_finite else {})

    def _wait(self) -> None:
        if self._verification is not None:
            self._verification.result()
            self._verification = None

    def _to_disk(self) -> None:
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cant_write(self.path, error) from error

    def _read_back(self, begin: int, end: int, expected: list[Expected]) -> None:
        for piece in expected:
            self._hash(begin, piece.begin, None)
            self._hash(piece.begin, piece.begin + piece.array.nbytes, piece)
            begin = piece.begin + piece.array.nbytes
        self._hash(begin, end, None)

    def _hash(self, begin: int, end: int, expected: Expected | None) -> None:
        block = np.empty(_BLOCK, np.uint8)
        for start in range(begin, end, _BLOCK):
            part = block[: min(_BLOCK, end - start)]
            read_into(self.path, start, part, "what was just written")
            self._digest.update(part.data)
            if expected is not None:
                self._compare(part, start - begin, expected)

    def _compare(self, part: np.ndarray, start: int, expected: Expected) -> None:
        """Bytes that were read back with those of `expected` from `start` on."""
        meant = expected.array.reshape(-1).view(np.uint8)[start : start + len(part)]
        if not same_bytes(part, meant):
            raise CheckpointError(f"{self.path}: {expected.what}: read back, differs from what was written")
        if count := count_not_finite(part.view(expected.array.dtype), expected.dtype):
            self._not_finite[expected.what] = self._not_finite.get(expected.what, 0) + count


def cant_write(path: Path, error: OSError) -> CheckpointError:
    """The error of a file that the system refuses to write."""
    return CheckpointError(f"{path}: can't be written: {error.strerror}\n  fix: free space or permissions there")
