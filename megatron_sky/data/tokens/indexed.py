"""Token files in Megatron's layout: `<prefix>.bin` holds the tokens, `<prefix>.idx` where each document begins.

The bytes are those of megatron-core's `IndexedDataset`, both ways; docs/formats.md gives them one by one. What differs
is how they are handled:

- Writing (`writer.py`) goes to temporary names and ends with two renames, so that a file under its final name is whole.
- Reading opens in constant time and memory, whatever the number of documents: header, sizes and the two ends of the
  index are checked, the rest is `verify`'s work. Tokens come through `pread`, not through a memory map: a file that
  shrinks under a running job is then a `DataError` with its name, where a map would kill the process with SIGBUS.
"""

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_sky.errors import DataError
from megatron_sky.files import open_handle

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, number of sequences, number of document bounds

CODE_OF_DTYPE: dict[np.dtype, int] = {
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
_STARTS_AT_ONCE = 256  # documents whose begin is looked up together


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
        any_order: take a pair whose index leaves out, repeats or reorders what `.bin` holds, for `document` and the
            tables; its `num_tokens` is what the index describes, and it is no flat stream to `read`.

    Attributes:
        num_tokens: tokens in the flat stream, which is all documents one after another.
        num_documents, num_sequences: equal unless documents were split into sentences.

    Raises:
        DataError: a file is missing, empty, cut short, or the two contradict each other.
    """

    def __init__(
        self, prefix: str | Path, *, allow_empty: bool = False, any_order: bool = False, index: Path | None = None
    ):
        self.prefix = str(prefix)
        self._index_path = index or idx_path(prefix)
        self._any_order = any_order
        self._bin = _open(bin_path(prefix))
        try:
            self._idx = _open(self._index_path)
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
        self.header = read_header(self._index_path, size, os.pread(self._idx, HEADER.size, 0))
        self.dtype = self.header.dtype
        self.num_sequences = self.header.num_sequences
        self.num_documents = self.header.num_bounds - 1
        status = os.fstat(self._bin)
        self._state = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        self._check_ends(status.st_size)
        self.num_tokens = status.st_size // self.dtype.itemsize
        if self._any_order:
            self.num_tokens = sum(
                int(lengths.sum(dtype=np.int64)) for lengths in chunks(self.lengths, self.num_sequences)
            )

    def _check_ends(self, size: int) -> None:
        header, path = self.header, self._index_path
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
        if end > size or (end < size and not self._any_order):
            also = " or the index leaves documents out or reorders them" if end < size else ""
            merge = (
                f"; `megatron-sky data merge {self.prefix} --out NEW` writes what the index describes" if also else ""
            )
            raise DataError(
                f"{bin_path(self.prefix)} has {size:,} bytes, but {path} describes {end:,}: the two don't belong "
                f"together or one is cut short{also}\n  fix: {fix}{merge}"
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
        assert not self._any_order, "no flat stream"
        width = self.dtype.itemsize
        return np.frombuffer(self.bytes_of(offset * width, (offset + length) * width), dtype=self.dtype)

    def bytes_of(self, start: int, end: int) -> bytes:
        """Bytes `[start, end)` of the `.bin` file, as pointers name them; DataError where it has none such."""
        if not 0 <= start <= end <= self._state[0]:
            raise DataError(
                f"{self._index_path} names bytes {start:,} to {end:,} of {bin_path(self.prefix)}, which has "
                f"{self._state[0]:,}\n  fix: copy the pair again from its source, or make it again"
            )
        data = os.pread(self._bin, end - start, start)
        if len(data) != end - start:  # the end of the file, or more than the system gives in one call
            data = self._read_on(data, end - start, start)
        self._check_unchanged()
        return data

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
        if (status.st_size, status.st_mtime_ns, status.st_ctime_ns) != self._state:
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

    def _sequences(self, first: int, count: int) -> np.ndarray:
        """`bounds` to find sequences by: in order, and of sequences that there are; else DataError."""
        bounds = self.bounds(first, count)
        if bounds[0] < 0 or bounds[-1] > self.num_sequences or (np.diff(bounds) < 0).any():
            raise DataError(
                f"{idx_path(self.prefix)}: documents {first:,} to {first + count:,} begin at sequences that are not in "
                f"order, or not among its {self.num_sequences:,}\n  fix: copy the pair again from its source, or make "
                "it again"
            )
        return bounds

    def _table(self, at: int, dtype: type, total: int, first: int, count: int | None) -> np.ndarray:
        count = total - first if count is None else count
        assert first >= 0 and first + count <= total, (first, count, total)
        width = np.dtype(dtype).itemsize
        out = bytearray(count * width)
        view, done = memoryview(out), 0
        while done < len(out):
            got = os.preadv(self._idx, [view[done : done + (1 << 30)]], at + first * width + done)
            if got == 0:
                raise DataError(f"{self._index_path} has been cut short while in use")
            done += got
        return np.frombuffer(out, dtype=dtype)

    def document(self, number: int) -> np.ndarray:
        """All tokens of one document, by the pointers of its sequences."""
        first, last = self._sequences(number, 2).tolist()
        places = zip(
            self.pointers(first, last - first).tolist(), self.lengths(first, last - first).tolist(), strict=True
        )
        parts = [self.bytes_of(at, at + length * self.dtype.itemsize) for at, length in places]
        return np.frombuffer(b"".join(parts), dtype=self.dtype)

    def document_offset(self, number: int) -> int:
        """The first token of a document in the flat stream; for the number after the last one, the stream's end."""
        first = int(self._sequences(number, 1)[0])
        if first == self.num_sequences:
            return self.num_tokens
        return int(self.pointers(first, 1)[0]) // self.dtype.itemsize

    def document_starts(self, offset: int, length: int) -> np.ndarray:
        """Where documents begin in tokens `[offset, offset + length)` of the flat stream: bool `[length]`, the first
        token apart. By the index alone, so that an end-of-document id within a document begins nothing."""
        starts = np.zeros(length, dtype=bool)
        number, begins = self.document_at(offset) + 1, np.zeros(0, np.int64)
        while number < self.num_documents and not (begins >= length).any():
            firsts = self._sequences(number, min(_STARTS_AT_ONCE, self.num_documents - number))
            firsts = firsts[firsts < self.num_sequences]  # else it has no sequence, nor has any after it
            if not len(firsts):
                break
            pointers = self.pointers(int(firsts[0]), int(firsts[-1] - firsts[0]) + 1)
            begins = pointers[firsts - firsts[0]] // self.dtype.itemsize - offset
            starts[begins[(begins > 0) & (begins < length)]] = True
            number += len(firsts)
        return starts

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
        return open_handle(path)
    except FileNotFoundError:
        raise DataError(
            f"{path} does not exist\n  fix: give the path prefix of the pair, without .bin or .idx; "
            "`megatron-sky data tokenize` makes such pairs"
        ) from None
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}") from error


def chunks(
    table: Callable[[int, int], np.ndarray], total: int, first: int = 0, size: int = 1 << 20
) -> Iterator[np.ndarray]:
    """`table(first, count)` of an `IndexedTokens`, `total` entries from `first` on in pieces of `size`."""
    for start in range(0, total, size):
        yield table(first + start, min(size, total - start))
