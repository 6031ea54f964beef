"""Units as documents: pages of WARC, WET and HTML files decoded, rows of JSONL and Parquet, files of source code.

What is damaged is a document too, which its stage drops by name: a line that is no JSON, a record without an end, the
rest of a file that is cut off. Records that hold no page (requests, images) are no documents; they are noted.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from datatrove.data import Document

from megatron_sky.corpus.decode import decode
from megatron_sky.corpus.grams import hash_text
from megatron_sky.corpus.plan import Piece, Unit, partner_of
from megatron_sky.corpus.recipe import CorpusSource, ReadConfig
from megatron_sky.corpus.skips import RULE
from megatron_sky.corpus.stage import FROM_READER, Stage
from megatron_sky.data.ingest.compressed import compression_of, open_compressed
from megatron_sky.errors import DataError
from megatron_sky.files import parse_json

PAIR = "zh-en"
"""A pair's language."""
BROKEN = "_broken"
"""In a document's metadata: the rule by which the reader's stage drops it."""
_PAGES = ("text/html", "application/xhtml+xml")
_MOST_LINE = 256 << 20  # bytes of one line or record that are taken into memory


class ReadUnits(Stage):
    """The first stage: reads a unit, and drops what is no document or may not be used."""

    def __init__(
        self,
        folder: Path,
        units: tuple[Unit, ...],
        sources: tuple[CorpusSource, ...],
        config: ReadConfig,
        keep: bool,
        skipped: frozenset[int] = frozenset(),
    ):
        super().__init__("read", folder, keep_dropped=keep)
        self.skipped_units = skipped
        self.units, self.config = units, config
        self.sources = {source.name: source for source in sources}
        self.blocked = set(config.blocked_domains)

    def begin(self, rank: int) -> None:
        if self.config.blocked_domains_file:
            lines = Path(self.config.blocked_domains_file).read_text(encoding="utf-8").split()
            self.blocked |= {line.lower() for line in lines}

    def run(self, data: Iterable[Document] | None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        yield from super().run(self._documents(rank), rank, world_size)

    def judge(self, document: Document) -> str | None:
        if broken := document.metadata.pop(BROKEN, None):
            return str(broken)
        if in_domains(str(document.metadata.get("url") or ""), self.blocked):
            return "blocked_domain"
        return None if document.text.strip() else "empty"

    def _documents(self, rank: int) -> Iterator[Document]:
        source = self.sources[self.units[rank].source]
        self.account(source.name)  # of a unit without documents too
        for piece in self.units[rank].pieces:
            if rank in self.skipped_units:
                yield _document(source, piece, piece.start, "", size=piece.end - piece.start, rule=RULE)
                continue
            try:
                yield from self._of_piece(piece, source)
            except Exception as error:
                error.add_note(f"while {piece.path} was read")
                raise

    def _of_piece(self, piece: Piece, source: CorpusSource) -> Iterator[Document]:
        readers: dict[str, Callable] = {"warc": _read_warc, "wet": _read_warc, "jsonl": _read_lines}
        readers |= {"parquet": _read_rows, "parallel": _read_pairs}
        read = readers.get(source.kind, _read_file)
        for document in read(piece, source, self.config.max_document_bytes):
            if note := document.metadata.pop("_note", None):
                self.account(source.name).note(note)
            if document.id:
                yield document


def in_domains(url: str, blocked: set[str]) -> bool:
    """Whether the host of an address, or a domain that it is in, is among those."""
    host = host_of(url)
    labels = host.split(".")
    return bool(host) and any(".".join(labels[start:]) in blocked for start in range(len(labels)))


def host_of(url: str) -> str:
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:  # as of an unclosed bracket: it has no host
        return ""


def _document(
    source: CorpusSource, piece: Piece, place: int, text: str, *, size: int, rule: str | None = None, **more: Any
) -> Document:
    """A document with its origin; `place`: its record, line's byte, or row in the file; `size`: bytes as stored."""
    metadata: dict[str, Any] = {"source": source.name, "file": piece.path, "place": place, FROM_READER: size}
    metadata |= {key: value for key, value in more.items() if value}
    if rule:
        metadata[BROKEN] = rule
    return Document(
        text.encode("utf-8", "replace").decode(), f"{source.name}/{Path(piece.path).name}/{place}", metadata=metadata
    )


def _page(
    source: CorpusSource, piece: Piece, place: int, content: bytes, limit: int, header: str, **more: Any
) -> Document:
    """A page of bytes in whichever encoding."""
    if len(content) > limit:
        return _document(source, piece, place, "", size=len(content), rule="too_large", **more)
    decoded = decode(content, header)
    if decoded is None:
        text = content[:2000].decode("latin-1")
        return _document(source, piece, place, text, size=len(content), rule="unknown_encoding", **more)
    note = "mislabelled_encoding" if decoded.is_mislabelled else None
    return _document(
        source, piece, place, decoded.text, size=len(content), encoding=decoded.encoding, _note=note, **more
    )


def _note(text: str) -> Document:
    return Document("", "", metadata={"_note": text})


def _read_warc(piece: Piece, source: CorpusSource, limit: int) -> Iterator[Document]:
    """Pages of `response` records, texts of `conversion` records."""
    from warcio.archiveiterator import ArchiveIterator

    number = -1
    with open(piece.path, "rb") as file:
        try:
            for number, record in enumerate(ArchiveIterator(file)):
                yield _record(record, piece, source, number, limit)
        except Exception as error:  # warcio raises its own, zlib's, EOFError, and of broken numbers ValueError
            text = f"{type(error).__name__}: {error}"
            yield _document(source, piece, number + 1, text, size=len(text), rule="broken_record")


def _record(record: Any, piece: Piece, source: CorpusSource, number: int, limit: int) -> Document:
    headers = record.rec_headers
    if record.rec_type not in ("response", "conversion"):
        return _note(f"passed_over_{record.rec_type}")
    http = record.http_headers
    kind = (http.get_header("Content-Type") if http else None) or ""
    identified = (headers.get_header("WARC-Identified-Payload-Type") or kind.split(";")[0]).strip().lower()
    if record.rec_type == "response" and identified not in (*_PAGES, ""):
        return _note("passed_over_not_a_page")
    length = int(headers.get_header("Content-Length") or -1)
    content = record.content_stream().read(limit + 1)
    more = {"url": headers.get_header("WARC-Target-URI"), "date": headers.get_header("WARC-Date")}
    if record.rec_type == "response" and http is not None and not str(http.get_statuscode()).startswith("2"):
        return _note("passed_over_not_found")
    if len(content) <= limit and length >= 0 and not _ends_whole(record):
        return _document(source, piece, number, "", size=len(content), rule="broken_record", **more)
    page = _page(source, piece, number, content, limit, kind, **more)
    page.metadata["is_html"] = record.rec_type == "response"
    return page


def _ends_whole(record: Any) -> bool:
    """Whether the file holds the rest of a record whose content has been read."""
    while record.raw_stream.read(1 << 20):
        continue
    return not record.raw_stream.limit


def _read_lines(piece: Piece, source: CorpusSource, limit: int) -> Iterator[Document]:
    row = _row
    if source.kind == "parallel":
        row = _tabbed_pair if ".tsv" in Path(piece.path).suffixes else _pair_row
    for place, line in _lines_of(piece):
        if isinstance(line, DataError):
            yield _broken_file(source, piece, place, line)
        else:
            yield row(piece, source, place, line, limit)


def _broken_file(source: CorpusSource, piece: Piece, place: int, error: object) -> Document:
    return _document(source, piece, place, str(error), size=len(str(error)), rule="broken_file")


def _lines_of(piece: Piece, path: str | None = None) -> Iterator[tuple[int, bytes | DataError]]:
    """The lines that begin in the piece with their places in bytes, blank ones aside; at last the error of a file that
    is broken from there on. `path`: of another file of lines, all of them, blank ones too."""
    with open(path or piece.path, "rb") as file:
        packed = compression_of(file.read(8))
    place, start = 0, 0 if path else piece.start
    with open_compressed(path or piece.path, packed) if packed else open(path or piece.path, "rb") as file:
        if start:
            file.seek(start - 1)
            place = start - 1 + len(file.readline())  # the line that begins before belongs to the piece before
        end = None if packed or path else piece.end
        try:
            while (end is None or place < end) and (line := file.readline(_MOST_LINE)):
                if path or line.strip():
                    yield place, line
                place += len(line)
        except DataError as error:
            yield place, error


def _row(piece: Piece, source: CorpusSource, place: int, line: bytes, limit: int) -> Document:
    value = _object(piece, source, place, line, limit)
    return value if isinstance(value, Document) else _fields(piece, source, place, value, len(line), limit)


def _object(piece: Piece, source: CorpusSource, place: int, line: bytes, limit: int) -> Any:
    """What a line of JSON holds, or a document that says why it holds nothing."""
    text = _decoded(piece, source, place, line, limit)
    if isinstance(text, Document):
        return text
    try:
        return parse_json(text)
    except ValueError:
        return _document(source, piece, place, text, size=len(line), rule="not_json")


def _decoded(piece: Piece, source: CorpusSource, place: int, line: bytes, limit: int) -> str | Document:
    """A line's text, or a document that says why it has none."""
    if len(line) > limit:
        return _document(source, piece, place, "", size=len(line), rule="too_large")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return _document(source, piece, place, line.decode("latin-1"), size=len(line), rule="invalid_utf8")


def _fields(piece: Piece, source: CorpusSource, place: int, value: Any, size: int, limit: int) -> Document:
    """A document of a row's fields; an invalid surrogate in a text becomes a `?`."""
    text = value.get(source.text_key) if isinstance(value, dict) else None
    if not isinstance(text, str):
        return _document(source, piece, place, json.dumps(value, default=str), size=size, rule="no_text")
    if size > limit:
        return _document(source, piece, place, "", size=size, rule="too_large")
    more = {name: value.get(key) for name, key in (("url", source.url_key), ("date", source.date_key))}
    words = {name: str(word) for name, word in more.items() if word is not None}
    return _document(source, piece, place, text, size=size, is_html=source.html, **words)


def _read_rows(piece: Piece, source: CorpusSource, limit: int) -> Iterator[Document]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    place = 0
    try:
        file = ParquetFile(piece.path)
        wanted = [key for key in (source.text_key, source.url_key, source.date_key) if key in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=256, columns=wanted):
            for row in batch.to_pylist():
                size = len(str(row.get(source.text_key) or "").encode("utf-8", "replace"))
                yield _fields(piece, source, place, row, size, limit)
                place += 1
    except (pyarrow.ArrowException, OSError) as error:
        yield _broken_file(source, piece, place, error)


def _read_file(piece: Piece, source: CorpusSource, limit: int) -> Iterator[Document]:
    """A page, or a file of source code."""
    with open(piece.path, "rb") as file:
        content = file.read(limit + 1)
    page = _page(source, piece, 0, content, limit, "")
    page.id = f"{source.name}/{piece.path}"
    if source.kind == "code":
        page.metadata["language"] = "code"
        if b"\0" in content and page.metadata.get("encoding") != "utf-16":
            page.metadata[BROKEN] = "binary"
    else:
        page.metadata["is_html"] = True
    yield page


def _read_pairs(piece: Piece, source: CorpusSource, limit: int) -> Iterator[Document]:
    """Pairs of Chinese and English texts: of lines, or of the lines of two files."""
    partner = partner_of(piece.path)
    if partner is None:
        yield from _read_lines(piece, source, limit)
        return
    for one, other in itertools.zip_longest(_lines_of(piece, piece.path), _lines_of(piece, partner)):
        lines = [each[1] for each in (one, other) if each is not None]
        place = (one or other)[0]
        whole = [line for line in lines if isinstance(line, bytes)]
        if len(whole) < len(lines):
            yield _broken_file(source, piece, place, next(line for line in lines if isinstance(line, DataError)))
            return
        if len(whole) < 2:
            which, longer = (piece.path, partner) if one is None else (partner, piece.path)
            yield _broken_file(source, piece, place, f"{which} ends before {longer} does: their lines do not agree")
            return
        sides = [_decoded(piece, source, place, line, limit) for line in whole]
        wrong = [side for side in sides if isinstance(side, Document)]
        yield wrong[0] if wrong else _pair(piece, source, place, sides, sum(map(len, whole)))


def _tabbed_pair(piece: Piece, source: CorpusSource, place: int, line: bytes, limit: int) -> Document:
    text = _decoded(piece, source, place, line, limit)
    if isinstance(text, Document):
        return text
    cells = text.rstrip("\r\n").split("\t")
    sides = [cells[column - 1] if column <= len(cells) else None for column in source.columns]
    return _pair(piece, source, place, sides, len(line))


def _pair_row(piece: Piece, source: CorpusSource, place: int, line: bytes, limit: int) -> Document:
    value = _object(piece, source, place, line, limit)
    if isinstance(value, Document):
        return value
    sides = [_at(value, key) for key in (source.zh_key, source.en_key)]
    return _pair(piece, source, place, sides, len(line))


def _at(value: Any, key: str) -> Any:
    """What stands at a dotted key of nested objects; None where there is nothing."""
    for word in key.split("."):
        value = value.get(word) if isinstance(value, dict) else None
    return value


def _pair(piece: Piece, source: CorpusSource, place: int, sides: list, size: int) -> Document:
    """A document of a Chinese and an English text, by the template that follows from their hash."""
    if not all(isinstance(side, str) and side.strip() for side in sides):
        return _document(source, piece, place, json.dumps(sides, default=str), size=size, rule="no_pair")
    zh, en = (side.strip().encode("utf-8", "replace").decode() for side in sides)
    template = source.templates[hash_text(f"{zh}\n{en}") % len(source.templates)]
    text = re.sub(r"\{(zh|en)\}", lambda match: zh if match[1] == "zh" else en, template)
    return _document(source, piece, place, text, size=size, language=PAIR, pair=[zh, en])
