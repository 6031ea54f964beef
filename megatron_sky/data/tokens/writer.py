"""Writing token files: to temporary names, ending with two renames, so that a file under its final name is whole.

Lengths and document ends are spilled to disk, so that memory does not grow with the number of documents.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from megatron_sky.data.tokens.index_check import check_bounds
from megatron_sky.data.tokens.indexed import CODE_OF_DTYPE, IndexedTokens, IndexHeader, bin_path, chunks, idx_path
from megatron_sky.data.tokens.meta import Meta, meta_path
from megatron_sky.errors import DataError
from megatron_sky.files import InUse, hold, remove_leftovers
from megatron_sky.log import get_logger

log = get_logger(__name__)

PARTS = ("bin", "lengths", "bounds", "idx")  # of an `IndexedWriter`'s temporary files
_COPY_BYTES = 8 << 20
_PENDING_BYTES = 4 << 20


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
        describe: makes the pair's meta file, given the index under its temporary name. `.bin` has its name then, and
            `.idx` gets it once that file is there: who is killed before leaves no pair that looks whole.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: np.dtype | type,
        *,
        resume: WriterState | None = None,
        describe: Callable[[Path], Meta] | None = None,
    ):
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        assert self.dtype in CODE_OF_DTYPE, self.dtype
        self._keep, self._describe = resume is not None, describe
        self.meta: Meta | None = None
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
        if kind is not None:
            self._give_up()
            return
        try:
            self._finish()
        except BaseException as failure:
            self._give_up()
            if isinstance(failure, OSError):
                raise DataError(f"{self.prefix}.bin and .idx can't be written: {failure.strerror}") from failure
            raise

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
        """Append a whole pair, in its index's order; its number format may be a narrower one.

        Raises DataError where the index names what the pair's `.bin` file does not hold.
        """
        assert np.can_cast(source.dtype, self.dtype), (source.dtype, self.dtype)
        check_bounds(source)
        first = 0
        for lengths in chunks(source.lengths, source.num_sequences):
            for start, end in _byte_runs(source, source.pointers(first, len(lengths)), lengths):
                self._copy_tokens(source, start, end)
            self._files["lengths"].write(lengths.tobytes())
            first += len(lengths)
        for bounds in chunks(source.bounds, source.num_documents, first=1):
            self._files["bounds"].write((bounds + self.num_sequences).tobytes())
        self.num_tokens += source.num_tokens
        self.num_sequences += source.num_sequences
        self.num_documents += source.num_documents

    def _copy_tokens(self, source: IndexedTokens, start: int, end: int) -> None:
        for at in range(start, end, _COPY_BYTES):
            data = source.bytes_of(at, min(at + _COPY_BYTES, end))
            if source.dtype == self.dtype:
                self._files["bin"].write(data)
            else:
                self._files["bin"].write(np.frombuffer(data, source.dtype).astype(self.dtype).data)

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
        idx_path(self.prefix).unlink(missing_ok=True)  # of a pair that is replaced: it would not fit the new tokens
        os.replace(self._temporary("bin"), bin_path(self.prefix))
        try:
            self.meta = _put_index_in_place(self.prefix, self._describe)
        except BaseException:
            if not self._keep:
                bin_path(self.prefix).unlink()
            raise
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
        for part in PARTS:
            self._temporary(part).unlink(missing_ok=True)
        self._close()


def _byte_runs(source: IndexedTokens, pointers: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, end) in the `.bin` file of sequences that lie one after another there, in the order of the index."""
    if (lengths < 0).any() or (pointers % source.dtype.itemsize).any():
        raise DataError(
            f"{idx_path(source.prefix)} has a negative length, or a pointer into the middle of a token\n"
            "  fix: copy the pair again from its source, or make it again"
        )
    ends = pointers + lengths.astype(np.int64) * source.dtype.itemsize
    breaks = np.flatnonzero(pointers[1:] != ends[:-1])
    yield from zip(pointers[[0, *(breaks + 1)]].tolist(), ends[[*breaks, len(ends) - 1]].tolist(), strict=True)


def _put_index_in_place(prefix: str | Path, describe: Callable[[Path], Meta] | None) -> Meta | None:
    """The last step of a pair; its meta file, where it gets one."""
    meta = describe(_temporary(prefix, "idx")) if describe is not None else None
    if meta is not None:
        remove_leftovers(meta_path(prefix))
        meta.write(prefix)
    os.replace(_temporary(prefix, "idx"), idx_path(prefix))
    return meta


def is_cut_off(prefix: str | Path) -> bool:
    """Whether a writer was killed after `.bin` had got its name and before `.idx` had."""
    return _temporary(prefix, "idx").exists() and not idx_path(prefix).exists()


def finish_pair(
    prefix: str | Path, dtype: np.dtype, state: WriterState, describe: Callable[[Path], Meta] | None = None
) -> Meta | None:
    """Put a pair in place that a killed `IndexedWriter` was about to; it had written all of `state`.

    `.bin` gets its name once the index is on the disk as well, and before it: without `.bin.tmp`, what there is of
    `.idx.tmp` is whole. Returns the meta file, where `describe` is given and had to make one.

    Raises:
        DataError: the files are not what the state tells, or can't be written.
    """
    if _temporary(prefix, "bin").exists():
        with IndexedWriter(prefix, dtype, resume=state, describe=describe) as writer:
            pass
        return writer.meta
    meta = None
    with _alone(prefix):
        if _temporary(prefix, "idx").exists():
            meta = _put_index_in_place(prefix, describe)
        for part in PARTS:
            _temporary(prefix, part).unlink(missing_ok=True)
    with IndexedTokens(prefix, allow_empty=True) as pair:
        actual = WriterState(pair.num_tokens, pair.num_sequences, pair.num_documents)
    if actual != state:
        raise DataError(
            f"{bin_path(prefix)} and .idx are not what was written before the interruption\n"
            f"  fix: remove them and {prefix}.progress.json to begin again"
        )
    return meta


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
