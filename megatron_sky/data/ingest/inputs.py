"""The input's files as a list of pieces and a stream of blocks; `input_files` says which files.

A piece is the unit of a shard: 16 MiB of a plain JSONL file, or a whole file that can't be entered in the middle.
A block is the unit of resuming: some MiB of lines or rows, of plain files handed over in parts. Those files are only
named here and read by the workers; what is compressed or columnar is opened here and handed over in whole blocks, so
that memory does not grow with any file's size.
The list of pieces and the cut into blocks depend on the files alone: that is what resuming and sharding rest on.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from megatron_sky.data.ingest.compressed import open_compressed
from megatron_sky.data.ingest.input_files import kind_of
from megatron_sky.errors import DataError, MissingDependency

if TYPE_CHECKING:
    from pyarrow import Array, DataType, Scalar
    from pyarrow.parquet import FileMetaData

BLOCK_BYTES = 16 << 20
PART_BYTES = 4 << 20
MAX_DOCUMENT_BYTES = 64 << 20
_ROWS_AT_ONCE = 256
_MOST_UNPACKED = 4 << 30  # bytes of one group of rows, ...
_MOST_TIMES = 1000  # ... or so many times the file's


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
        rows: one tuple of values (one per key) for each row or file read already, or None. Of a string that is no UTF-8
            it holds the bytes.
        first_of_file: the block holds the file's first line, or is all of a text file.
        part_of: bytes of the block that this is a part of; `end` is the same in its last one. None: it is whole.
    """

    path: str
    start: int = 0
    end: int = 0
    lines: bytes | None = None
    rows: list[tuple] | None = None
    first_of_file: bool = False
    part_of: tuple[int, int] | None = None

    @property
    def ends_block(self) -> bool:
        return self.part_of is None or self.part_of[1] == self.end

    def parts(self) -> list["Block"]:
        """The block in parts of `PART_BYTES`, if workers read it themselves: small ones keep all busy to the end."""
        if self.end - self.start <= PART_BYTES:
            return [self]
        starts = range(self.start, self.end, PART_BYTES)
        whole = (self.start, self.end)
        return [
            Block(self.path, at, min(at + PART_BYTES, self.end), first_of_file=at == 0, part_of=whole) for at in starts
        ]


def cut_pieces(files: Sequence[Path]) -> list[Piece]:
    """All pieces of the files, in order."""
    pieces = []
    for path in files:
        known = kind_of(path)
        assert known is not None, f"{path}: find_files passes over what it can't read"
        kind, compression = known
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
        with _open(piece) as file:
            yield Block(piece.path, rows=[(file.read(max_bytes + 1),) * len(keys)], first_of_file=True)


def _open(piece: Piece) -> BinaryIO:
    try:
        return open_compressed(piece.path, piece.compression) if piece.compression else open(piece.path, "rb")
    except OSError as error:
        raise unreadable(piece.path, error) from error


def unreadable(path: str, error: OSError) -> DataError:
    """A file of the input that was there when the job began."""
    return DataError(
        f"{path} can't be read: {error.strerror or error}\n  fix: see that it is there, that you may read it, and that "
        "its disk is well"
    )


def _line_blocks(piece: Piece, max_bytes: int) -> Iterator[bytes]:
    """Whole lines, about BLOCK_BYTES at a time; a longer line makes a block of its own."""
    rest = b""
    with _open(piece) as file:
        while data := file.read(BLOCK_BYTES):
            cut = data.rfind(b"\n") + 1
            if cut:
                yield rest + data[:cut]
                rest = data[cut:]
            else:
                rest = (rest + data)[: max_bytes + 1]
    if rest:
        yield rest


def _row_blocks(path: str, keys: Sequence[str]) -> Iterator[list[tuple]]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingDependency("pyarrow", f"reading {path}", "pip install 'megatron-sky[corpus]'") from None
    try:
        footer = parquet.read_metadata(path)
        shared = {"read_dictionary": _columns_of_strings(footer, keys), "page_checksum_verification": True}
        with parquet.ParquetFile(path, metadata=footer, **shared) as file:
            names = file.schema_arrow.names
            if wrong := [key for key in keys if names.count(key) != 1]:
                has = "no column" if wrong[0] not in names else "more than one column"
                raise DataError(f"{path} has {has} {wrong[0]!r}\n  fix: name one of {', '.join(sorted(set(names)))}")
            _check_claims(path, file.metadata)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(keys)):
                yield from _in_bounds(zip(*(_values(batch.column(key)) for key in keys), strict=True))
    except (
        arrow.ArrowException,
        OSError,
        UnicodeDecodeError,
        IndexError,
    ) as error:  # the last two: its names, its numbers
        raise DataError(f"{path}: broken Parquet file ({error})\n  fix: fetch it again") from error


def _size(value: object) -> int:
    return sum(map(_size, value)) if isinstance(value, list) else len(value) if isinstance(value, str | bytes) else 8


def _columns_of_strings(footer: "FileMetaData", keys: Sequence[str]) -> list[str]:
    """The columns, those within lists too, whose values are kept once however many rows have them."""
    columns = (footer.schema.column(number) for number in range(footer.num_columns))
    return [c.path for c in columns if c.physical_type == "BYTE_ARRAY" and c.path.partition(".")[0] in keys]


def _check_claims(path: str, footer: "FileMetaData") -> None:
    """Raises DataError where rows are said to unpack to what no honest file of its size does.

    Of a group of rows as a whole: asked for a column's, pyarrow ends the process where the footer is damaged.
    """
    size = os.path.getsize(path)
    for group in range(footer.num_row_groups):
        claimed = footer.row_group(group).total_byte_size
        if claimed > max(_MOST_UNPACKED, _MOST_TIMES * size):
            raise DataError(
                f"{path}: broken Parquet file ({size:,} bytes are said to hold {claimed:,} in group {group} of its "
                "rows alone)\n  fix: fetch it again"
            )


def _in_bounds(rows: Iterable[tuple]) -> Iterator[list[tuple]]:
    """The rows in lists of some MiB: a value that stands in many of them is in the file but once."""
    taken: list[tuple] = []
    size = 0
    for row in rows:
        taken.append(row)
        size += sum(map(_size, row))
        if size >= BLOCK_BYTES:
            yield taken
            taken, size = [], 0
    if taken:
        yield taken


def _values(column: "Array") -> list:
    """A column's values; where strings are no UTF-8, the bytes of the first that is none stands for the row's value.

    Of a dictionary each value is made once, however many rows have it.
    """
    import pyarrow as arrow

    if isinstance(column, arrow.DictionaryArray):
        numbers = column.indices.to_pylist()
        values = {number: _value(column.dictionary[number]) for number in set(numbers) - {None}}
        return [values.get(number) for number in numbers]
    if _is_list(column.type) and arrow.types.is_dictionary(column.type.value_type):
        items = iter(_values(column.flatten()))
        lengths = column.value_lengths().to_pylist()
        return [None if length is None else list(islice(items, length)) for length in lengths]
    try:
        return column.to_pylist()
    except (ValueError, OverflowError):  # no UTF-8, or a date that Python has not
        return [_value(scalar) for scalar in column]


def _is_list(kind: "DataType") -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind)


def _value(scalar: "Scalar") -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error.object
    except (ValueError, OverflowError):
        return None  # no text in any case
