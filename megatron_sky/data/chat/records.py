"""The objects of JSONL, JSON and Parquet files, one by one, each with its place; memory does not grow with a file.

A JSON file is a list of objects, read in pieces; one that begins with an object is read by lines, as JSONL is.
"""

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from megatron_sky.data.ingest.compressed import open_compressed
from megatron_sky.data.ingest.input_files import BOM, kind_of
from megatron_sky.errors import DataError, MissingDependency
from megatron_sky.files import parse_json

MAX_RECORD_BYTES = 16 << 20
_READ_CHARACTERS = 1 << 20
_ROWS_AT_ONCE = 256
_BETWEEN = re.compile(r"[ \t\r\n,]*")  # elements
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Record:
    """One object, its file and its line (from 1; of a table, its row). `reason`: why it could not be read, or empty.

    `done`: bytes of the file that were read so far.
    """

    path: str
    line: int
    value: object
    begins: str
    done: int
    reason: str = ""


def read_records(path: Path) -> Iterator[Record]:
    """All objects of a file. Raises DataError where it can't be read, or is no JSON list where it begins as one."""
    known = kind_of(path)
    assert known is not None, f"{path}: list_files passes over what it can't read"
    kind, compression = known
    if kind == "text":
        raise DataError(f"{path}: plain text holds no conversations\n  fix: give JSONL, JSON or Parquet files")
    try:
        if kind == "rows":
            yield from _rows(path)
            return
        with open_compressed(path, compression) if compression else open(path, "rb") as file:
            head = file.read(1 << 16).removeprefix(BOM).lstrip()
        with open_compressed(path, compression) if compression else open(path, "rb") as file:
            yield from _elements(str(path), file) if head.startswith(b"[") else _lines(str(path), file)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}") from error


def _lines(path: str, file: BinaryIO) -> Iterator[Record]:
    number = done = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        done += len(line)
        begins = line[:800].decode("utf-8", "replace")[:200].strip()
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(MAX_RECORD_BYTES)) and not rest.endswith(b"\n"):
                done += len(rest)
            yield Record(path, number, None, begins, done, "too_long_line")
            continue
        if number == 1:
            line = line.removeprefix(BOM)
        if not line.strip():
            continue
        try:
            yield Record(path, number, parse_json(line), begins, done)
        except ValueError:  # no UTF-8 is one too
            yield Record(path, number, None, begins, done, "not_json")


def _elements(path: str, file: BinaryIO) -> Iterator[Record]:
    """The elements of one JSON list, decoded as they come."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig")
    held, at, line, number = "", 0, 1, 0
    is_open = at_end = False
    while True:
        between = _BETWEEN.match(held, at)
        assert between is not None, "it matches nothing too"
        line += held.count("\n", at, between.end())
        at, failure = between.end(), "the list does not end"
        if at < len(held) and not is_open:
            at, is_open = at + 1, True
            continue
        if held.startswith("]", at):
            return
        if at < len(held):
            try:
                value, end = _DECODER.raw_decode(held, at)
            except (ValueError, RecursionError) as error:
                failure = str(error)
            else:
                if end < len(held) or at_end:  # a number at the end of what was read may go on
                    number += 1
                    yield Record(path, line, value, held[at : at + 200], file.tell())
                    line, at = line + held.count("\n", at, end), end
                    continue
        if at_end or len(held) - at > MAX_RECORD_BYTES:
            raise DataError(
                f"{path}, line {line}: element {number + 1} of the list is no JSON: {failure}\n"
                "  fix: fetch the file again, or write one object a line (JSONL), where a broken one is left out"
            )
        try:
            more = text.read(max(_READ_CHARACTERS, len(held) - at))
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, behind line {line}: is no UTF-8: {error.reason}") from error
        held, at, at_end = held[at:] + more, 0, not more


def _rows(path: Path) -> Iterator[Record]:
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise MissingDependency("pyarrow", f"reading {path}", "pip install 'megatron-sky[corpus]'") from None
    size = path.stat().st_size
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            total, number = max(1, file.metadata.num_rows), 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(str(path), number, row, str(row)[:200], size * number // total)
    except (arrow.ArrowException, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: broken Parquet file ({error})\n  fix: fetch it again") from error
