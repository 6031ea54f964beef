"""From a block of lines or rows to the texts in it, and a reason for each one that is none.

Every line ends up in exactly one of: a text, an empty text, a rejection with its reason, or a blank line (which is no
document). Rows of a table and whole text files are held to the same rules.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import orjson

from megatron_sky.data.ingest.input_files import BOM
from megatron_sky.data.ingest.inputs import MAX_DOCUMENT_BYTES, Block, unreadable
from megatron_sky.files import parse_json

MAX_DEPTH = 500  # of the objects and lists in a line
_READ_BYTES = 1 << 20
_EXCERPT = 200  # characters
_STRING = re.compile(rb'"[^"]*"')  # where escapes have been taken out
_BRACKET = re.compile(rb"[][{}]")
_RISKY_ESCAPE = re.compile(rb"\\u(00|[dD])")  # of an ASCII character, or of half a surrogate pair

REASONS = {
    "not_json": f"the line is no JSON, or nests deeper than {MAX_DEPTH}",
    "not_an_object": "the line is JSON, but no object with keys",
    "no_key": "the object has no such key",
    "not_text": "the value is neither a string nor a list of strings",
    "duplicate_key": "the object has the key more than once",
    "invalid_utf8": "the bytes are no valid UTF-8",
    "nul": "the text holds a NUL character",
    "too_long": "the document is longer than the limit",
}


@dataclass(frozen=True)
class Reject:
    """A document that was not taken: its line (or row) within the block counted from 0, why, and how it begins."""

    line: int
    reason: str
    excerpt: str


@dataclass
class Parsed:
    """The documents of a block.

    Attributes:
        documents: for each document taken, its text (a string or a list of sentences) under each key.
        lines: lines or rows in the block, of any kind.
        blank: lines with nothing on them.
        rejects: the others.
        notes: how many lines ended in CR LF, how many files began with a byte order mark.
    """

    documents: list[tuple] = field(default_factory=list)
    lines: int = 0
    blank: int = 0
    rejects: list[Reject] = field(default_factory=list)
    notes: Counter = field(default_factory=Counter)


class _Rejected(Exception):
    """The reason is the argument."""


def _unread_number(digits: str) -> None:
    """No number is a text; Python would refuse one of many digits."""


def parse_block(block: Block, keys: Sequence[str], max_bytes: int = MAX_DOCUMENT_BYTES) -> Parsed:
    """Read (where the block only names bytes of a file) and parse a block."""
    parsed = Parsed()
    if block.rows is not None:
        for row in block.rows:
            _take_row(parsed, row, max_bytes, is_file=block.first_of_file)
        return parsed
    lines, too_long = (_split(block.lines), False) if block.lines is not None else _lines_of_range(block, max_bytes)
    keys = tuple(keys)
    spellings = tuple(f'"{key}"'.encode() for key in keys)
    has_plain_keys = len(set(keys)) == len(keys) and all(map(_is_plain_key, keys))
    for number, line in enumerate(lines):
        document = _plain_document(line, keys, spellings) if has_plain_keys and len(line) <= max_bytes else None
        if document is None:
            _take_line(parsed, line, keys, max_bytes, first_of_file=number == 0 and block.first_of_file)
        else:
            parsed.documents.append(document)
            parsed.lines += 1
    if too_long:
        _reject(parsed, "too_long", b"")
    return parsed


def _take_row(parsed: Parsed, row: tuple, max_bytes: int, *, is_file: bool) -> None:
    """A row of a table, or all of a text file, which may begin with a byte order mark."""
    if is_file and row[0].startswith(BOM):
        row = tuple(value.removeprefix(BOM) for value in row)
        parsed.notes["byte_order_marks"] += 1
    try:
        parsed.documents.append(tuple([_check_text(_decoded(value, max_bytes)) for value in row]))
        parsed.lines += 1
    except _Rejected as rejected:
        _reject(parsed, str(rejected), b" ".join(map(_shown, row)))


def _shown(value: object) -> bytes:
    value = value[0] if isinstance(value, list) and value else value  # all of them may be more than memory holds
    return value[: 4 * _EXCERPT] if isinstance(value, bytes) else str(value)[:_EXCERPT].encode("utf-8", "replace")


def _take_line(parsed: Parsed, line: bytes, keys: tuple[str, ...], max_bytes: int, *, first_of_file: bool) -> None:
    if len(line) > max_bytes:
        _reject(parsed, "too_long", line)
        return
    if first_of_file and line.startswith(BOM):
        line = line.removeprefix(BOM)
        parsed.notes["byte_order_marks"] += 1
    if line.endswith(b"\r"):
        parsed.notes["crlf_lines"] += 1
    if not line.strip():
        parsed.blank += 1
        parsed.lines += 1
        return
    try:
        parsed.documents.append(_parse_line(line, keys))
        parsed.lines += 1
    except _Rejected as rejected:
        _reject(parsed, str(rejected), line)


def _reject(parsed: Parsed, reason: str, raw: bytes) -> None:
    excerpt = raw[: 4 * _EXCERPT].decode("utf-8", "replace")[:_EXCERPT]
    parsed.rejects.append(Reject(parsed.lines, reason, excerpt))
    parsed.lines += 1


def _split(data: bytes) -> list[bytes]:
    """The lines, the last of which may lack its newline."""
    lines = data.split(b"\n")
    return lines if lines[-1] else lines[:-1]


def _lines_of_range(block: Block, max_bytes: int) -> tuple[list[bytes], bool]:
    """The lines that begin in the block's bytes; and whether one more, left out, is longer than `max_bytes`."""
    try:
        with open(block.path, "rb") as file:
            file.seek(max(0, block.start - 1))
            if block.start and _skip_line(file, block.end) >= block.end:
                return [], False
            data = file.read(block.end - file.tell())
            lines = _split(data)
            if not data or data.endswith(b"\n"):
                return lines, False
            rest = _rest_of_line(file, max_bytes - len(lines[-1]))
            return (lines[:-1], True) if rest is None else ([*lines[:-1], lines[-1] + rest.removesuffix(b"\n")], False)
    except OSError as error:
        raise unreadable(block.path, error) from error


def _skip_line(file, end: int) -> int:
    """Move behind the next newline, or to `end` if there is none before; returns the position there."""
    while piece := file.read(min(_READ_BYTES, end - file.tell())):
        at = piece.find(b"\n")
        if at >= 0:
            return file.seek(at + 1 - len(piece), 1)
    return end


def _rest_of_line(file, room: int) -> bytes | None:
    """What follows up to the newline, which it includes; None where that is more than `room` bytes."""
    parts, size = [], 0
    while size <= room and (piece := file.read(_READ_BYTES)):
        at = piece.find(b"\n")
        parts.append(piece if at < 0 else piece[: at + 1])
        size += len(parts[-1])
        if at >= 0:
            break
    rest = b"".join(parts)
    return rest if len(rest.removesuffix(b"\n")) <= room else None


def _is_plain_key(key: str) -> bool:
    """Whether JSON spells it in one way alone, but for escapes that nobody uses."""
    return "/" not in key and json.dumps(key) == f'"{key}"'


def _plain_document(line: bytes, keys: tuple[str, ...], spellings: tuple[bytes, ...]) -> tuple[str, ...] | None:
    """The texts of a line in which nothing is unusual; None where it has to be judged with care.

    A doubled key shows in the number of times that its spelling occurs; NUL characters, lone surrogates and keys in
    disguise show in an escape.
    """
    if not line.endswith(b"}"):  # but with CR, or blanks
        return None
    for spelling in spellings:
        if line.count(spelling) != 1:
            return None
    if b"\\u" in line and _RISKY_ESCAPE.search(line):
        return None
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError:  # perhaps only stricter than the parser that judges with care
        return None
    if not isinstance(content, dict) or (len(line) > 2 * MAX_DEPTH and _is_deep(line)):
        return None
    texts = []
    for key in keys:
        text = content.get(key)
        if not isinstance(text, str):
            return None
        texts.append(text)
    return tuple(texts)


def _is_deep(line: bytes) -> bool:
    """Whether a line's JSON nests deeper than `MAX_DEPTH`, where libraries and Pythons begin to differ."""
    if len(line) <= 2 * MAX_DEPTH or line.count(b"{") + line.count(b"[") <= MAX_DEPTH:
        return False
    bare = _STRING.sub(b"", line.replace(rb"\\", b"").replace(rb"\"", b""))
    steps = (1 if bracket in b"{[" else -1 for bracket in _BRACKET.findall(bare))
    return max(accumulate(steps), default=0) > MAX_DEPTH


def _parse_line(line: bytes, keys: tuple[str, ...]) -> tuple:
    """The texts of one line; _Rejected with the reason where it has none."""
    if _is_deep(line):
        raise _Rejected("not_json")
    try:
        content = parse_json(line.decode("utf-8"), object_pairs_hook=_Object, parse_int=_unread_number)
    except UnicodeDecodeError:
        raise _Rejected("invalid_utf8") from None
    except ValueError:
        raise _Rejected("not_json") from None
    if not isinstance(content, _Object):
        raise _Rejected("not_an_object")
    for key in keys:
        if content.times[key] != 1:
            raise _Rejected("duplicate_key" if content.times[key] else "no_key")
    return tuple(_check_text(content[key]) for key in keys)


class _Object(dict):
    """An object of JSON that knows how many times it has each key."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        self.times = Counter(name for name, _ in pairs)


def _decoded(value: object, max_bytes: int) -> object:
    """A row's value: bytes as text; what is too long is refused, as a line is."""
    parts = value if isinstance(value, list) else [value]
    size = 0
    for part in parts:
        size += _size(part)
        if size > max_bytes:
            raise _Rejected("too_long")
    try:
        texts = [part.decode("utf-8") if isinstance(part, bytes) else part for part in parts]
    except UnicodeDecodeError:
        raise _Rejected("invalid_utf8") from None
    return texts if isinstance(value, list) else texts[0]


def _size(value: object) -> int:
    """Bytes of a text."""
    if isinstance(value, str):
        return len(value) if value.isascii() else len(value.encode("utf-8", "surrogatepass"))
    return len(value) if isinstance(value, bytes) else 0


def _check_text(text: object) -> str | list[str]:
    """A string, or a list of strings (sentences), as it may be tokenized."""
    return [_check_part(part) for part in text] if isinstance(text, list) else _check_part(text)


def _check_part(part: object) -> str:
    if not isinstance(part, str):
        raise _Rejected("not_text")
    if "\0" in part:
        raise _Rejected("nul")
    if _has_surrogate(part):
        raise _Rejected("invalid_utf8")
    return part


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
