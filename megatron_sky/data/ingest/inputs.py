"""Where the texts come from: files, folders and globs, as a list of pieces and a stream of blocks.

A piece is the unit of a shard: 16 MiB of a plain JSONL file, or a whole file that can't be entered in the middle.
A block is the unit of work: some MiB of lines or rows. Plain files are only named here and read by the workers; what is
compressed or columnar is opened here and handed over in blocks, so that memory does not grow with any file's size.
The list of pieces and the cut into blocks depend on the files alone: that is what resuming and sharding rest on.
"""

import glob
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_sky.errors import DataError, MissingDependency

BLOCK_BYTES = 16 << 20
MAX_DOCUMENT_BYTES = 64 << 20
_ROWS_AT_ONCE = 256
_ZSTD_BYTES = 2048  # compressed, at once: in the worst case, a single byte repeated, they make 64 MiB

# The ending decides what a file is; `.gz` and `.zst` may follow those of lines.
_KINDS = {".jsonl": "lines", ".json": "lines", ".ndjson": "lines", ".parquet": "rows", ".txt": "text", ".text": "text"}
_COMPRESSED = (".gz", ".zst")
# What `tokenize` writes beside a pair under a known ending, and how each begins.
_OWN_PRODUCTS = {
    ".meta.json": b'{\n "tokenizer": {',
    ".progress.json": b'{"fingerprint": "',
    ".rejects.jsonl": b'{"file": "',
}


@dataclass(frozen=True)
class Piece:
    """Bytes `[start, end)` of a file; `kind` is lines, rows or text, `compression` an ending or empty."""

    path: str
    kind: str
    compression: str
    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """Work for one call of the encoder.

    Attributes:
        path: the file, for messages.
        start, end: bytes of a plain file whose lines the worker reads itself; a line belongs to the block it begins in.
        lines: lines read already, or None.
        rows: one tuple of texts (one per key) for each row or file read already, or None.
        first_of_file: the block holds the file's first line.
    """

    path: str
    start: int = 0
    end: int = 0
    lines: bytes | None = None
    rows: list[tuple] | None = None
    first_of_file: bool = False


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The files that `inputs` (files, folders, globs) name, in order; a folder's or glob's in alphabetical order.

    What this program wrote beside a pair (meta file, progress, rejects) is no input, wherever it lies.

    Raises:
        DataError: an input names nothing, or a file of no known kind.
    """
    found: list[Path] = []
    for given in map(str, inputs):
        path = Path(given)
        if path.is_dir():
            named = sorted(each for each in path.rglob("*") if each.is_file() and _kind(each) is not None)
        elif path.is_file():
            named = [path]
        else:
            named = [Path(each) for each in sorted(glob.glob(given, recursive=True)) if Path(each).is_file()]
        named = [each for each in named if not _is_own_product(each)]
        if not named:
            raise DataError(
                f"{given} names no file\n  fix: give JSONL, Parquet or text files, folders of such, or a glob"
            )
        found += named
    for path in found:
        if _kind(path) is None:
            raise DataError(
                f"{path}: unknown kind of file\n  fix: known endings are {', '.join(_KINDS)}; JSONL may be compressed "
                f"({', '.join(_COMPRESSED)})"
            )
    return list(dict.fromkeys(found))


def cut_pieces(files: Sequence[Path]) -> list[Piece]:
    """All pieces of the files, in order."""
    pieces = []
    for path in files:
        kind, compression = _kind(path)
        size = path.stat().st_size
        step = BLOCK_BYTES if kind == "lines" and not compression else max(size, 1)
        pieces += [Piece(str(path), kind, compression, at, min(at + step, size)) for at in range(0, size, step)]
    return pieces


def pieces_of_shard(pieces: Sequence[Piece], index: int, count: int) -> list[Piece]:
    """The pieces of shard `index` of `count`: consecutive ones, about equal in bytes; all shards make up the whole."""
    assert 0 <= index < count, (index, count)
    total = sum(piece.end - piece.start for piece in pieces)
    chosen, done = [], 0
    for piece in pieces:
        size = piece.end - piece.start
        if (2 * done + size) * count // (2 * total) == index:
            chosen.append(piece)
        done += size
    return chosen


def blocks_of(piece: Piece, keys: Sequence[str], max_bytes: int = MAX_DOCUMENT_BYTES) -> Iterator[Block]:
    """The blocks of a piece; see `Block` for who reads them.

    Of a document longer than `max_bytes` no more than is needed to see that is kept in memory.
    """
    if piece.kind == "lines" and not piece.compression:
        yield Block(piece.path, piece.start, piece.end, first_of_file=piece.start == 0)
    elif piece.kind == "lines":
        for number, lines in enumerate(_line_blocks(piece, max_bytes)):
            yield Block(piece.path, lines=lines, first_of_file=number == 0)
    elif piece.kind == "rows":
        for rows in _row_blocks(piece.path, keys):
            yield Block(piece.path, rows=rows)
    else:
        with open(piece.path, "rb") as file:
            yield Block(piece.path, rows=[(file.read(max_bytes + 1),) * len(keys)])


def _kind(path: Path) -> tuple[str, str] | None:
    """(kind, compression) of a file by its name, or None."""
    compression = path.suffix if path.suffix in _COMPRESSED else ""
    kind = _KINDS.get(path.with_suffix("").suffix if compression else path.suffix)
    if kind is None or (compression and kind != "lines"):
        return None
    return kind, compression


def _is_own_product(path: Path) -> bool:
    """Whether the file says by its name and how it begins that this program wrote it; one that is gone by now did so by
    its name alone."""
    begins = next((begins for ending, begins in _OWN_PRODUCTS.items() if path.name.endswith(ending)), None)
    if begins is None:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(len(begins)) == begins
    except FileNotFoundError:
        return True


def _line_blocks(piece: Piece, max_bytes: int) -> Iterator[bytes]:
    """Whole lines, about BLOCK_BYTES at a time; a longer line makes a block of its own."""
    rest = b""
    try:
        with _decompressed(piece) as file:
            while data := file.read(BLOCK_BYTES):
                cut = data.rfind(b"\n") + 1
                if cut:
                    yield rest + data[:cut]
                    rest = data[cut:]
                else:
                    rest = (rest + data)[: max_bytes + 1]
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{piece.path}: broken {piece.compression} file ({error})\n  fix: fetch it again") from error
    if rest:
        yield rest


def _decompressed(piece: Piece) -> BinaryIO:
    if piece.compression == ".gz":
        return gzip.open(piece.path, "rb")
    try:
        import zstandard
    except ImportError:
        raise MissingDependency("zstandard", f"reading {piece.path}", "pip install 'megatron-sky[corpus]'") from None
    return io.BufferedReader(_ZstdReader(zstandard, piece.path), BLOCK_BYTES)


class _ZstdReader(io.RawIOBase):
    """Decompressed bytes of a file of any number of zstd frames.

    A frame that the file's end cuts off raises EOFError, as gzip does; what zstandard raises comes out as OSError.
    (zstandard's own stream reader takes a frame that was cut off for a whole one.)
    """

    def __init__(self, zstandard, path: str):
        self._failure = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._file = open(path, "rb")  # noqa: SIM115
        self._frame = None
        self._unread = b""  # compressed, of the next frame
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            data = self._unread or self._file.read(_ZSTD_BYTES)
            if not data:
                if self._frame is not None:
                    raise EOFError("the file ends before its last frame does")
                return 0
            self._decompress(data)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def _decompress(self, data: bytes) -> None:
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            self._ready = memoryview(self._frame.decompress(data))
        except self._failure as error:
            raise OSError(str(error)) from error
        self._unread = b""
        if self._frame.eof:
            self._frame, self._unread = None, self._frame.unused_data

    def close(self) -> None:
        self._file.close()
        super().close()


def _row_blocks(path: str, keys: Sequence[str]) -> Iterator[list[tuple]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingDependency("pyarrow", f"reading {path}", "pip install 'megatron-sky[corpus]'") from None
    try:
        with parquet.ParquetFile(path) as file:
            absent = [key for key in keys if key not in file.schema_arrow.names]
            if absent:
                raise DataError(
                    f"{path} has no column {absent[0]!r}\n  fix: name one of {', '.join(file.schema_arrow.names)}"
                )
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(keys)):
                yield list(zip(*(batch.column(key).to_pylist() for key in keys), strict=True))
    except arrow.ArrowException as error:
        raise DataError(f"{path}: broken Parquet file ({error})\n  fix: fetch it again") from error
