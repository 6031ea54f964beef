"""From a block of lines or rows to the texts in it, and a reason for each one that is none.

Every line ends up in exactly one of: a text, an empty text, a rejection with its reason, or a blank line (which is no
document). A block in which nothing is unusual goes through msgspec, where it is installed, as a whole; any other block
is judged line by line with the standard library, which tells the reason.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

from megatron_sky.data.ingest.inputs import MAX_DOCUMENT_BYTES, Block

BOM = b"\xef\xbb\xbf"
MAX_DEPTH = 500  # of the objects and lists in a line
_READ_BYTES = 1 << 20
_EXCERPT = 200  # characters
_STRING = re.compile(rb'"[^"]*"')  # where escapes have been taken out
_BRACKET = re.compile(rb"[][{}]")

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


def parse_block(block: Block, keys: Sequence[str], max_bytes: int = MAX_DOCUMENT_BYTES) -> Parsed:
    """Read (where the block only names bytes of a file) and parse a block."""
    parsed = Parsed()
    if block.rows is not None:
        for row in block.rows:
            raw = str(row).encode("utf-8", "replace")
            _take(parsed, lambda row=row: tuple(_check_text(_decoded(value, max_bytes)) for value in row), raw)
        return parsed
    keys, too_long = tuple(keys), False
    lines = block.lines
    if lines is None:
        lines, too_long = _lines_of_range(block, max_bytes)
    plain = not too_long and (len(lines) <= max_bytes or max(map(len, lines.split(b"\n"))) <= max_bytes)
    documents = _parse_plain(lines, keys) if plain else None
    if documents is not None:
        return Parsed(documents, lines=len(documents))
    for number, line in enumerate(lines.removesuffix(b"\n").split(b"\n") if lines else ()):
        _take_line(parsed, line, keys, max_bytes, first_of_file=number == 0 and block.first_of_file)
    if too_long:
        _reject(parsed, "too_long", b"")
    return parsed


def _take_line(parsed: Parsed, line: bytes, keys: tuple[str, ...], max_bytes: int, *, first_of_file: bool) -> None:
    if len(line) > max_bytes:
        _reject(parsed, "too_long", line)
        return
    if first_of_file and line.startswith(BOM):
        line = line.removeprefix(BOM)
        parsed.notes["byte_order_marks"] += 1
    if line.endswith(b"\r"):
        parsed.notes["crlf_lines"] += 1
    if line.strip():
        _take(parsed, lambda: _parse_line(line, keys), line)
    else:
        parsed.blank += 1
        parsed.lines += 1


def _take(parsed: Parsed, parse: Callable[[], tuple], raw: bytes) -> None:
    try:
        parsed.documents.append(parse())
    except _Rejected as rejected:
        _reject(parsed, str(rejected), raw)
        return
    parsed.lines += 1


def _reject(parsed: Parsed, reason: str, raw: bytes) -> None:
    excerpt = raw[: 4 * _EXCERPT].decode("utf-8", "replace")[:_EXCERPT]
    parsed.rejects.append(Reject(parsed.lines, reason, excerpt))
    parsed.lines += 1


def _lines_of_range(block: Block, max_bytes: int) -> tuple[bytes, bool]:
    """The lines that begin in the block's bytes; and whether one more, left out, is longer than `max_bytes`."""
    with open(block.path, "rb") as file:
        file.seek(max(0, block.start - 1))
        if block.start and _skip_line(file) >= block.end:
            return b"", False
        data = file.read(block.end - file.tell())
        begin = data.rfind(b"\n") + 1
        if begin == len(data):
            return data, False
        rest = _rest_of_line(file, max_bytes - (len(data) - begin))
        return (data[:begin], True) if rest is None else (data + rest, False)


def _skip_line(file) -> int:
    """Move behind the next newline; returns the position there."""
    while piece := file.read(_READ_BYTES):
        at = piece.find(b"\n")
        if at >= 0:
            return file.seek(at + 1 - len(piece), 1)
    return file.tell()


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


def _parse_plain(lines: bytes, keys: tuple[str, ...]) -> list[tuple] | None:
    """The texts of lines that are all plain objects with string values; None where any is not, or msgspec is absent.

    What is taken here and what line by line must never differ. msgspec refuses what is no JSON and lone surrogates.
    What it lets pass and must not is looked for in the bytes: a doubled key shows in the number of times that keys
    occur, a NUL character or a key in disguise in an escape of that range. Under keys that are not asked for it passes
    over invalid UTF-8 and deep nesting, so that lines with such keys are searched for both.
    """
    decoders = _plain_decoders(keys)
    if decoders is None or b"\\u00" in lines or b"\r" in lines:
        return None
    count = lines.count(b"\n") + (not lines.endswith(b"\n"))
    if any(lines.count(json.dumps(key).encode()) != count for key in keys):
        return None
    try:
        return _decoded_lines(lines, *decoders)
    except (ValueError, RecursionError):
        return None


def _decoded_lines(lines: bytes, of_these_keys: Callable, of_any_keys: Callable) -> list[tuple]:
    """ValueError or RecursionError where a line is not plain."""
    try:
        return of_these_keys(io.BytesIO(lines))
    except ValueError:  # at the first line that has other keys
        return of_any_keys(_searched(lines))


def _searched(lines: bytes) -> Iterator[bytes]:
    """The lines; ValueError at one that is no UTF-8 or nests too deep."""
    for line in io.BytesIO(lines):
        if not line.isascii():
            line.decode("utf-8")
        if _is_deep(line):
            raise ValueError("nests too deep")
        yield line


@cache
def _plain_decoders(keys: tuple[str, ...]) -> tuple[Callable[[Iterable[bytes]], list[tuple]], ...] | None:
    """From lines to their texts, where there are no keys but these, and where there may be others; None where msgspec
    is absent, or an escape could spell a key in another way."""
    if any("/" in key or json.dumps(key) != f'"{key}"' for key in keys):
        return None
    try:
        import msgspec
    except ImportError:
        return None
    names = [f"key_{number}" for number in range(len(keys))]

    def decoder(*, only_these: bool) -> Callable[[Iterable[bytes]], list[tuple]]:
        line = msgspec.defstruct(
            "Line",
            [(name, str) for name in names],
            rename=dict(zip(names, keys, strict=True)),
            forbid_unknown_fields=only_these,
            gc=False,
        )
        decode = msgspec.json.Decoder(line).decode
        if len(keys) == 1:
            return lambda lines: [(decode(line).key_0,) for line in lines]
        return lambda lines: [msgspec.structs.astuple(decode(line)) for line in lines]

    return decoder(only_these=True), decoder(only_these=False)


def _is_deep(line: bytes) -> bool:
    """Whether a line's JSON nests deeper than `MAX_DEPTH`, where libraries and Pythons begin to differ."""
    if len(line) <= 2 * MAX_DEPTH or line.count(b"{") + line.count(b"[") <= MAX_DEPTH:
        return False
    bare = _STRING.sub(b"", line.replace(rb"\\", b"").replace(rb"\"", b""))
    steps = (1 if bracket in b"{[" else -1 for bracket in _BRACKET.findall(bare))
    return max(accumulate(steps), default=0) > MAX_DEPTH


def _parse_line(line: bytes, keys: tuple[str, ...]) -> tuple:
    """The texts of one line; _Rejected with the reason where it has none."""
    pairs: list[tuple[str, object]] = []

    def keep_pairs(found: list[tuple[str, object]]) -> dict:
        pairs[:] = found  # the outermost object is finished last
        return dict(found)

    if _is_deep(line):
        raise _Rejected("not_json")
    try:
        given = json.loads(line.decode("utf-8"), object_pairs_hook=keep_pairs, parse_int=_unread_number)
    except UnicodeDecodeError:
        raise _Rejected("invalid_utf8") from None
    except (ValueError, RecursionError):
        raise _Rejected("not_json") from None
    if not isinstance(given, dict):
        raise _Rejected("not_an_object")
    names = Counter(name for name, _ in pairs)
    for key in keys:
        if names[key] != 1:
            raise _Rejected("duplicate_key" if names[key] else "no_key")
    return tuple(_check_text(given[key]) for key in keys)


def _unread_number(digits: str) -> None:
    """No number is a text; Python would refuse one of many digits."""


def _decoded(value: object, max_bytes: int) -> object:
    """A row's value: bytes as text; what is too long is refused, as a line is."""
    if isinstance(value, str | bytes) and len(value) > max_bytes:
        raise _Rejected("too_long")
    if isinstance(value, bytes):
        try:
            return value.removeprefix(BOM).decode("utf-8")
        except UnicodeDecodeError:
            raise _Rejected("invalid_utf8") from None
    return value


def _check_text(text: object) -> str | list[str]:
    """A string, or a list of strings (sentences), as it may be tokenized."""
    for each in text if isinstance(text, list) else [text]:
        if not isinstance(each, str):
            raise _Rejected("not_text")
        if "\0" in each:
            raise _Rejected("nul")
        if _has_surrogate(each):
            raise _Rejected("invalid_utf8")
    return text


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
