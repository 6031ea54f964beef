"""Token files in Megatron's layout: `<prefix>.bin` holds the tokens, `<prefix>.idx` where each document begins.

The bytes are those of megatron-core's `IndexedDataset`, both ways; docs/formats.md gives them one by one. What differs
is how they are handled:

- Writing goes to temporary names and ends with two renames, so that a file under its final name is whole. Lengths and
  document ends are spilled to disk, so that memory does not grow with the number of documents.
- Reading opens in constant time and memory, whatever the number of documents: header, sizes and the two ends of the
  index are checked, the rest is `verify`'s work. Tokens come through `pread`, not through a memory map: a file that
  shrinks under a running job is then a `DataError` with its name, where a map would kill the process with SIGBUS.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from megatron_sky.errors import DataError
from megatron_sky.files import InUse, hold
from megatron_sky.log import get_logger

log = get_logger(__name__)

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, number of sequences, number of document bounds

CODE_OF_DTYPE = {
    np.dtype("uint8"): 1,
    np.dtype("int8"): 2,
    np.dtype("int16"): 3,
    np.dtype("int32"): 4,
    np.dtype("int64"): 5,
    np.dtype("float64"): 6,
    np.dtype("float32"): 7,
    np.dtype("uint16"): 8,
}
DTYPE_OF_CODE = {code: dtype for dtype, code in CODE_OF_DTYPE.items()}
MAX_UINT16_VOCAB = 65_500  # Megatron's bound, kept so that the bytes are the same

_COPY_BYTES = 8 << 20
_PENDING_BYTES = 4 << 20
_PARTS = ("bin", "lengths", "bounds", "idx")  # of an `IndexedWriter`'s temporary files


def bin_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    return Path(f"{prefix}.idx")


def token_dtype(vocab_size: int) -> np.dtype:
    """The number format Megatron chooses for a vocabulary of this many tokens."""
    return np.dtype(np.uint16 if vocab_size < MAX_UINT16_VOCAB else np.int32)


@dataclass(frozen=True)
class IndexHeader:
    """The first 34 bytes of an `.idx` file, and where its three tables begin."""

    dtype: np.dtype
    num_sequences: int
    num_bounds: int

    @property
    def lengths_at(self) -> int:
        return HEADER.size

    @property
    def pointers_at(self) -> int:
        return self.lengths_at + 4 * self.num_sequences

    @property
    def bounds_at(self) -> int:
        return self.pointers_at + 8 * self.num_sequences

    @property
    def size(self) -> int:
        """Bytes of the whole file, without the modes of a multimodal one (one byte a sequence)."""
        return self.bounds_at + 8 * self.num_bounds

    def pack(self) -> bytes:
        return HEADER.pack(MAGIC, VERSION, CODE_OF_DTYPE[self.dtype], self.num_sequences, self.num_bounds)


def read_header(path: Path, size: int, head: bytes) -> IndexHeader:
    """Parse and check the first bytes `head` of the index file `path` of `size` bytes.

    Raises:
        DataError: the file is no index, of an unknown version or number format, or of a size its counts contradict.
    """
    fix = "make the pair again with `megatron-sky data tokenize`, or copy it again from its source"
    if len(head) < HEADER.size:
        what = "is empty" if not head else f"is cut short: {len(head)} bytes, the header alone has {HEADER.size}"
        raise DataError(f"{path} {what}\n  fix: {fix}")
    magic, version, code, num_sequences, num_bounds = HEADER.unpack(head[: HEADER.size])
    if magic != MAGIC:
        raise DataError(f"{path} is no Megatron index: it begins with {magic!r}, not {MAGIC!r}\n  fix: {fix}")
    if version != VERSION:
        raise DataError(f"{path} has index version {version}; only {VERSION} is known\n  fix: {fix}")
    if code not in DTYPE_OF_CODE:
        raise DataError(f"{path} names number format {code}; known are {sorted(DTYPE_OF_CODE)}\n  fix: {fix}")
    header = IndexHeader(DTYPE_OF_CODE[code], num_sequences, num_bounds)
    if size not in (header.size, header.size + num_sequences):
        raise DataError(
            f"{path} has {size:,} bytes, but its header tells of {num_sequences:,} sequences and {num_bounds:,} "
            f"document bounds, which take {header.size:,}\n  fix: {fix}"
        )
    return header


class IndexedTokens:
    """Read access to `<prefix>.bin/.idx`; opening takes constant time and memory.

    Args:
        prefix: path without an ending.
        allow_empty: take a pair with no token too (a shard may have none).

    Attributes:
        num_tokens: tokens in the flat stream, which is all documents one after another.
        num_documents, num_sequences: equal unless documents were split into sentences.

    Raises:
        DataError: a file is missing, empty, cut short, or the two contradict each other.
    """

    def __init__(self, prefix: str | Path, *, allow_empty: bool = False):
        self.prefix = str(prefix)
        self._bin = _open(bin_path(prefix))
        try:
            self._idx = _open(idx_path(prefix))
            self._load()
            if self.num_tokens == 0 and not allow_empty:
                raise DataError(
                    f"{bin_path(prefix)} holds no token\n  fix: leave it out of the recipe, or tokenize its text again"
                )
        except DataError:
            self.close()
            raise

    def _load(self) -> None:
        size = os.fstat(self._idx).st_size
        self.header = read_header(idx_path(self.prefix), size, os.pread(self._idx, HEADER.size, 0))
        self.dtype = self.header.dtype
        self.num_sequences = self.header.num_sequences
        self.num_documents = self.header.num_bounds - 1
        status = os.fstat(self._bin)
        self._state = (status.st_size, status.st_mtime_ns)
        self._check_ends(status.st_size)
        self.num_tokens = status.st_size // self.dtype.itemsize

    def _check_ends(self, size: int) -> None:
        header, path = self.header, idx_path(self.prefix)
        fix = "copy both files again from one run, or make them again; `megatron-sky data verify` tells more"
        if header.num_bounds == 0 or self.bounds(0, 1)[0] != 0:
            raise DataError(f"{path}: the document bounds must begin with 0\n  fix: {fix}")
        last = int(self.bounds(header.num_bounds - 1, 1)[0])
        if last != header.num_sequences:
            raise DataError(
                f"{path}: the last document ends at sequence {last:,}, but there are {header.num_sequences:,}\n"
                f"  fix: {fix}"
            )
        end = 0
        if header.num_sequences:
            final = header.num_sequences - 1
            end = int(self.pointers(final, 1)[0]) + int(self.lengths(final, 1)[0]) * self.dtype.itemsize
        if end != size:
            raise DataError(
                f"{bin_path(self.prefix)} has {size:,} bytes, but {path} describes {end:,}: the two don't belong "
                f"together or one is cut short\n  fix: {fix}"
            )

    def read(self, offset: int, length: int) -> np.ndarray:
        """Tokens `[offset, offset + length)` of the flat stream, as a read-only array of the file's dtype.

        Raises:
            DataError: the file has been changed or cut since it was opened, or the range leaves it.
        """
        if offset < 0 or length < 0 or offset + length > self.num_tokens:
            raise DataError(
                f"{bin_path(self.prefix)}: tokens {offset:,} to {offset + length:,} were asked for, it has "
                f"{self.num_tokens:,}"
            )
        width = self.dtype.itemsize
        data = os.pread(self._bin, length * width, offset * width)
        if len(data) != length * width:  # the end of the file, or more than the system gives in one call
            data = self._read_on(data, length * width, offset * width)
        self._check_unchanged()
        return np.frombuffer(data, dtype=self.dtype)

    def _read_on(self, data: bytes, size: int, at: int) -> bytes:
        parts = [data]
        got = len(data)
        while got < size and parts[-1]:
            parts.append(os.pread(self._bin, min(size - got, 1 << 30), at + got))
            got += len(parts[-1])
        if got < size:
            raise DataError(f"{bin_path(self.prefix)} has been cut short while in use: {at + got:,} bytes are left")
        return b"".join(parts)

    def _check_unchanged(self) -> None:
        status = os.fstat(self._bin)
        if (status.st_size, status.st_mtime_ns) != self._state:
            raise DataError(
                f"{bin_path(self.prefix)} was changed while in use: it had {self._state[0]:,} bytes when it was "
                f"opened, now {status.st_size:,}\n  fix: write new data under a new name; restore this file and resume"
            )

    def lengths(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Tokens in each sequence, int32; from sequence `first`, `count` of them (None: all that follow)."""
        return self._table(self.header.lengths_at, np.int32, self.num_sequences, first, count)

    def pointers(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Byte offset of each sequence in the `.bin` file, int64."""
        return self._table(self.header.pointers_at, np.int64, self.num_sequences, first, count)

    def bounds(self, first: int = 0, count: int | None = None) -> np.ndarray:
        """Document bounds, int64: document d is the sequences `[bounds[d], bounds[d + 1])`."""
        return self._table(self.header.bounds_at, np.int64, self.header.num_bounds, first, count)

    def _table(self, at: int, dtype: type, total: int, first: int, count: int | None) -> np.ndarray:
        count = total - first if count is None else count
        assert first >= 0 and first + count <= total, (first, count, total)
        width = np.dtype(dtype).itemsize
        out = bytearray(count * width)
        view, done = memoryview(out), 0
        while done < len(out):
            got = os.preadv(self._idx, [view[done : done + (1 << 30)]], at + first * width + done)
            if got == 0:
                raise DataError(f"{idx_path(self.prefix)} has been cut short while in use")
            done += got
        return np.frombuffer(out, dtype=dtype)

    def document(self, number: int) -> np.ndarray:
        """All tokens of one document."""
        first, last = self.bounds(number, 2).tolist()
        if first == last:
            return np.empty(0, self.dtype)
        offset = int(self.pointers(first, 1)[0]) // self.dtype.itemsize
        return self.read(offset, int(self.lengths(first, last - first).sum()))

    def document_offset(self, number: int) -> int:
        """The first token of a document in the flat stream; for the number after the last one, the stream's end."""
        first = int(self.bounds(number, 1)[0])
        if first == self.num_sequences:
            return self.num_tokens
        return int(self.pointers(first, 1)[0]) // self.dtype.itemsize

    def document_at(self, offset: int) -> int:
        """The number of the document that holds token `offset` of the flat stream; a search over the index."""
        sequence = self._last_at_most(self.pointers, self.num_sequences, offset * self.dtype.itemsize)
        return self._last_at_most(self.bounds, self.num_documents, sequence)

    def _last_at_most(self, table, total: int, value: int) -> int:
        low, high = 0, total
        while high - low > 1:
            middle = (low + high) // 2
            if int(table(middle, 1)[0]) <= value:
                low = middle
            else:
                high = middle
        return low

    def close(self) -> None:
        for name in ("_bin", "_idx"):
            handle = self.__dict__.pop(name, None)
            if handle is not None:
                os.close(handle)

    def __del__(self) -> None:
        self.close()

    def __enter__(self) -> "IndexedTokens":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist\n  fix: give the path prefix of the pair, without .bin or .idx; "
            "`megatron-sky data tokenize` makes such pairs"
        ) from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


@dataclass(frozen=True)
class WriterState:
    """How far a writer has come; what lies beyond it in its temporary files is cut off when it goes on."""

    num_tokens: int = 0
    num_sequences: int = 0
    num_documents: int = 0


class IndexedWriter:
    """Writes `<prefix>.bin/.idx`; use it in a `with` block.

    The files appear under their names when the block ends; a block that raises leaves nothing behind, unless it is to
    be gone on with.

    Args:
        prefix: path without an ending; the folder must exist.
        dtype: number format of a token, see `token_dtype`.
        resume: go on from this state of an earlier writer, and leave the temporary files when the block raises.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype | type, *, resume: WriterState | None = None):
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        assert self.dtype in CODE_OF_DTYPE, self.dtype
        self._keep = resume is not None
        start = resume or WriterState()
        self.num_tokens = start.num_tokens
        self.num_sequences = start.num_sequences
        self.num_documents = start.num_documents

    def __enter__(self) -> "IndexedWriter":
        self._files: dict[str, BinaryIO] = {}
        self._lock = ExitStack()
        sizes = {
            "bin": self.num_tokens * self.dtype.itemsize,
            "lengths": 4 * self.num_sequences,
            "bounds": 8 * (self.num_documents + 1) if self.num_documents else 0,
        }
        try:
            self._lock.enter_context(_alone(self.prefix))
            for part, size in sizes.items():
                file = self._files[part] = self._open(part)
                if file.seek(0, os.SEEK_END) < size:
                    raise DataError(f"{self._temporary(part)} is shorter than it was left; remove it to begin again")
                file.truncate(size)
                file.seek(size)
        except OSError as error:
            self._discard()
            raise DataError(f"{self._temporary('bin')} can't be written: {error.strerror}") from error
        except DataError:
            self._close()
            raise
        if not self.num_documents:
            self._files["bounds"].write(np.int64(0).tobytes())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._finish()
            except OSError as failure:
                self._give_up()
                raise DataError(f"{self.prefix}.bin and .idx can't be written: {failure.strerror}") from failure
            except BaseException:
                self._give_up()
                raise
        else:
            self._give_up()

    def save_state(self) -> WriterState:
        """Bring all that was written to the disk; a later writer can go on from what is returned."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        return WriterState(self.num_tokens, self.num_sequences, self.num_documents)

    def _give_up(self) -> None:
        if self._keep:
            self._close()
        else:
            self._discard()

    def _open(self, part: str) -> BinaryIO:
        """A temporary file with what an earlier writer left in it."""
        number = os.open(self._temporary(part), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return open(number, "rb+", buffering=_PENDING_BYTES)

    def add_document(self, tokens: np.ndarray, lengths: Sequence[int] | None = None) -> None:
        """Append one document.

        Args:
            tokens: its tokens, one-dimensional; they must fit the dtype.
            lengths: tokens of each of its sequences (sentences), where it has several.
        """
        lengths = [len(tokens)] if lengths is None else lengths
        assert sum(lengths) == len(tokens), (sum(lengths), len(tokens))
        self.add_documents(tokens, np.asarray(lengths), np.array([len(lengths)]))

    def add_documents(self, tokens: np.ndarray, lengths: np.ndarray, sequences: np.ndarray | None = None) -> None:
        """Append many documents.

        Args:
            tokens: all their tokens in a row.
            lengths: tokens of each sequence.
            sequences: sequences of each document; None: one each.
        """
        first = self.num_sequences
        sequences = np.ones(len(lengths), np.int64) if sequences is None else sequences
        self._write_tokens(tokens, lengths)
        self.num_documents += len(sequences)
        self._files["bounds"].write((first + np.cumsum(sequences)).astype(np.int64).tobytes())

    def _write_tokens(self, tokens: np.ndarray, lengths: Sequence[int] | np.ndarray) -> None:
        self._files["bin"].write(np.ascontiguousarray(tokens, dtype=self.dtype).data)
        self._files["lengths"].write(np.asarray(lengths, dtype=np.int32).tobytes())
        self.num_tokens += len(tokens)
        self.num_sequences += len(lengths)

    def add_pair(self, source: IndexedTokens) -> None:
        """Append a whole pair; its tokens are copied as bytes."""
        assert source.dtype == self.dtype, (source.dtype, self.dtype)
        with open(bin_path(source.prefix), "rb") as tokens:
            copy_bytes(tokens, self._files["bin"])
        for lengths in chunks(source.lengths, source.num_sequences):
            self._files["lengths"].write(lengths.tobytes())
        for bounds in chunks(source.bounds, source.num_documents, first=1):
            self._files["bounds"].write((bounds + self.num_sequences).tobytes())
        self.num_tokens += source.num_tokens
        self.num_sequences += source.num_sequences
        self.num_documents += source.num_documents

    def _temporary(self, part: str) -> Path:
        return _temporary(self.prefix, part)

    def _finish(self) -> None:
        with open(self._temporary("idx"), "wb", buffering=_PENDING_BYTES) as index:
            self._files["idx"] = index
            self._write_index(index)
            index.flush()
            os.fsync(index.fileno())
        tokens = self._files["bin"]
        tokens.flush()
        os.fsync(tokens.fileno())
        for file in self._files.values():
            file.close()
        os.replace(self._temporary("bin"), bin_path(self.prefix))
        os.replace(self._temporary("idx"), idx_path(self.prefix))
        self._discard()

    def _write_index(self, index: BinaryIO) -> None:
        lengths, bounds = self._files["lengths"], self._files["bounds"]
        index.write(IndexHeader(self.dtype, self.num_sequences, self.num_documents + 1).pack())
        lengths.seek(0)
        copy_bytes(lengths, index)
        lengths.seek(0)
        pointer = 0
        while block := lengths.read(_COPY_BYTES):
            ends = np.cumsum(np.frombuffer(block, np.int32).astype(np.int64)) * self.dtype.itemsize + pointer
            index.write(np.concatenate([[pointer], ends[:-1]]).astype(np.int64).tobytes())
            pointer = int(ends[-1])
        bounds.seek(0)
        copy_bytes(bounds, index)

    def _close(self) -> None:
        for file in self._files.values():
            with suppress(OSError):  # a full disk fails the last flush again; the first failure is under way already
                file.close()
        self._lock.close()

    def _discard(self) -> None:
        for part in _PARTS:
            self._temporary(part).unlink(missing_ok=True)
        self._close()


def finish_pair(prefix: str | Path, dtype: np.dtype, state: WriterState) -> None:
    """Put a pair in place that a killed `IndexedWriter` was about to; it had written all of `state`.

    `.bin` gets its name once the index is on the disk as well, and before it: without `.bin.tmp`, what there is of
    `.idx.tmp` is whole.

    Raises:
        DataError: the files are not what the state tells, or can't be written.
    """
    if _temporary(prefix, "bin").exists():
        with IndexedWriter(prefix, dtype, resume=state):
            return
    with _alone(prefix):
        if _temporary(prefix, "idx").exists():
            os.replace(_temporary(prefix, "idx"), idx_path(prefix))
        for part in _PARTS:
            _temporary(prefix, part).unlink(missing_ok=True)
    with IndexedTokens(prefix, allow_empty=True) as pair:
        found = WriterState(pair.num_tokens, pair.num_sequences, pair.num_documents)
    if found != state:
        raise DataError(
            f"{bin_path(prefix)} and .idx are not what was written before the interruption\n"
            f"  fix: remove them and {prefix}.progress.json to begin again"
        )


@contextmanager
def _alone(prefix: str | Path) -> Iterator[None]:
    """Holds a pair's name for this process alone. Raises DataError where another one writes under it."""
    with ExitStack() as stack:
        try:
            stack.enter_context(hold(f"{prefix}.lock", log.warning, remove=True))
        except InUse:
            raise DataError(
                f"{prefix}: another process is writing these files\n  fix: wait for it, or choose another name"
            ) from None
        yield


def _temporary(prefix: str | Path, part: str) -> Path:
    return Path(f"{prefix}.{part}.tmp")


def copy_bytes(source: BinaryIO, target: BinaryIO) -> None:
    """Copy what is left of `source` to `target`, in pieces."""
    while block := source.read(_COPY_BYTES):
        target.write(block)


def chunks(table, total: int, first: int = 0, size: int = 1 << 20) -> Iterator[np.ndarray]:
    """`table(first, count)` of an `IndexedTokens`, `total` entries from `first` on in pieces of `size`."""
    for start in range(0, total, size):
        yield table(first + start, min(size, total - start))
