"""A weight file being written past the page cache, and what goes to the disk compared with what was read."""

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import xxhash

from megatron_sky.convert.pieces import Piece
from megatron_sky.errors import CheckpointError
from megatron_sky.files import DirectWriter

_BLOCK = 1 << 20  # bytes hashed at once, which stay in the processor's cache until all is done with them


@dataclass(frozen=True)
class _Expected:
    """Bytes `begin` to before `end` of a file are of the tensor `name`, and have this hash."""

    begin: int
    end: int
    name: str
    xxh3: bytes


class WeightFile:
    """A weight file being written, compared on its way. Raises CheckpointError, for a full disk too.

    `write` appends; `write_piece` appends a piece, whose bytes are hashed again as they go to the disk: the hash must
    be the one that they had when they were read. A thread hashes and writes while the caller goes on, so that what is
    wrong is told by a later call.
    """

    def __init__(self, path: Path):
        self.path = path
        self._digest = xxhash.xxh3_128()
        self._seen = 0
        self._expected: deque[_Expected] = deque()
        self._of_piece = xxhash.xxh3_128()
        self._not_finite: dict[str, int] = {}
        try:
            self._file = DirectWriter(path, self._see, behind=True)
        except OSError as error:
            raise cant_write(path, error) from error

    def __enter__(self) -> "WeightFile":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._file.close()
        except (OSError, CheckpointError):
            if kind is None:  # else it is a failed file already, and why was told
                raise
        finally:
            del self._file  # and its memory, which would stay until the two are found to hold each other

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return self._file.tell()

    def write(self, data) -> int:
        """Appends bytes, or anything with a flat buffer."""
        try:
            return self._file.write(data)
        except OSError as error:
            raise cant_write(self.path, error) from error

    def write_piece(self, piece: Piece, data=None) -> int:
        """Appends a piece's bytes, `data` where another has them; returns where they begin."""
        begin = self.size
        if piece.bits.nbytes:
            self._expected.append(_Expected(begin, begin + piece.bits.nbytes, piece.name, piece.xxh3))
        if piece.not_finite:
            self._not_finite[piece.name] = self._not_finite.get(piece.name, 0) + piece.not_finite
        self.write(piece.bits.reshape(-1) if data is None else data)
        return begin

    def finish(self) -> dict:
        """Writes the rest and flushes to disk; the file's `size` and `xxh3`, and under `not_finite` each tensor that
        has such numbers with their count, if any has."""
        try:
            handle = self._file.fileno()
            os.fsync(handle)
            size = os.fstat(handle).st_size
        except OSError as error:
            raise cant_write(self.path, error) from error
        if size != self.size or self._expected:
            raise CheckpointError(f"{self.path}: has {size:,} bytes, {self.size:,} were written: the file is truncated")
        record = {"size": self.size, "xxh3": self._digest.hexdigest()}
        return record | ({"not_finite": self._not_finite} if self._not_finite else {})

    def _see(self, written: memoryview) -> None:
        for start in range(0, len(written), _BLOCK):
            block = written[start : start + _BLOCK]
            self._digest.update(block)
            while block:
                block = block[self._compare(block) :]

    def _compare(self, block: memoryview) -> int:
        """Of the bytes that come next, how many belong together: to one piece or to none."""
        if not self._expected:
            self._seen += len(block)
            return len(block)
        expected = self._expected[0]
        if self._seen < expected.begin:
            count = min(len(block), expected.begin - self._seen)
            self._seen += count
            return count
        count = min(len(block), expected.end - self._seen)
        self._of_piece.update(block[:count])
        self._seen += count
        if self._seen == expected.end:
            self._expected.popleft()
            if self._of_piece.digest() != expected.xxh3:
                raise CheckpointError(
                    f"{self.path}: {expected.name}: on its way to the disk, differs from what was read"
                )
            self._of_piece.reset()
        return count


def cant_write(path: Path, error: OSError) -> CheckpointError:
    """The error of a file that the system refuses to write."""
    return CheckpointError(f"{path}: can't be written: {error.strerror}\n  fix: free space or permissions there")
