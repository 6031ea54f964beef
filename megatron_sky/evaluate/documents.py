"""The texts to score: named domains of JSONL documents, cut to a number of characters, the empty ones left out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.data.ingest.documents import REASONS, parse_block
from megatron_sky.data.ingest.input_files import find_files
from megatron_sky.data.ingest.inputs import blocks_of, cut_pieces
from megatron_sky.errors import ConfigError, DataError, Problem
from megatron_sky.log import get_logger

log = get_logger(__name__)

AVERAGE = "average"


@dataclass(frozen=True)
class Document:
    """A document of a domain: its number (from 0, rejected lines not counted) and its whole text."""

    number: int
    whole: str
    text: str
    """What is scored: the first characters of `whole`."""

    @property
    def sha256(self) -> str:
        """Of the whole text in UTF-8."""
        return hashlib.sha256(self.whole.encode()).hexdigest()

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Domain:
    """A named set of documents, and how many were left out because they have no text."""

    name: str
    files: tuple[str, ...]
    documents: tuple[Document, ...]
    empty: int


def parse_data(given: Sequence[str]) -> dict[str, list[str]]:
    """`NAME=FILE` arguments -> files of each domain, in order; the same name again adds files to it.

    Without a name a domain is called after its file. Raises ConfigError where another has that name: texts are put
    together only where that was asked for.
    """
    domains: dict[str, list[str]] = {}
    derived: set[str] = set()
    for argument in given:
        name, equals, path = argument.partition("=")
        unnamed = not equals or Path(argument).exists()
        if unnamed:
            name, path = Path(argument).name.partition(".")[0], argument
        if not name or not path:
            raise ConfigError(Problem("--data", "must be NAME=FILE", "as --data news=news.jsonl", argument))
        if name == AVERAGE:
            raise ConfigError(Problem("--data", "is what all domains together are called", "give another name", name))
        if name in derived or (unnamed and name in domains):
            rule = f"two domains would be called {name}: {', '.join([*domains[name], path])}"
            raise ConfigError(
                Problem("--data", rule, f"give NAME=FILE for each, or {name}=FILE for files of one domain")
            )
        if unnamed:
            derived.add(name)
        domains.setdefault(name, []).append(path)
    return domains


def read_domain(
    name: str,
    files: Sequence[str],
    *,
    keys: Sequence[str] = ("text",),
    max_characters: int | None = None,
    max_documents: int | None = None,
) -> Domain:
    """The documents of a domain.

    Args:
        keys: names of the texts in a line; those of one document are joined by a space (question and answer).
        max_characters: length at which a text is cut; None: not at all.
        max_documents: only the first so many documents with a text.

    Raises:
        DataError: a file is missing or unreadable, or no document has a text.
    """
    paths = find_files(files)
    documents: list[Document] = []
    empty, rejects = 0, []
    for text, reject in _texts(paths, tuple(keys)):
        if max_documents is not None and len(documents) >= max_documents:
            break
        if reject is not None:
            rejects.append(reject)
        elif text.strip():
            documents.append(Document(len(documents), text, text[:max_characters]))
        else:
            empty += 1
    if rejects:
        log.warning("%s: left out %d lines that are no document, the first as %s", name, len(rejects), rejects[0])
    if not documents:
        raise DataError(_told_empty(name, paths, empty, rejects, keys))
    return Domain(name, tuple(map(str, paths)), tuple(documents), empty)


def _texts(files: Sequence[Path], keys: tuple[str, ...]):
    """(text, None) of each document, ("", reason) of each line that is none."""
    for piece in cut_pieces(files):
        for block in blocks_of(piece, keys):
            parsed = parse_block(block, keys)
            for texts in parsed.documents:
                yield " ".join("\n".join(text) if isinstance(text, list) else text for text in texts), None
            for reject in parsed.rejects:
                yield "", f"{REASONS[reject.reason]} ({block.path}: {reject.excerpt[:60]!r})"


def _told_empty(name: str, files: Sequence[Path], empty: int, rejects: list[str], keys: Sequence[str]) -> str:
    holds = f"{empty} empty documents and {len(rejects)} lines that are none"
    first = f"; the first: {rejects[0]}" if rejects else ""
    return (
        f"domain {name}: no document with text in {', '.join(map(str, files))}: {holds}{first}\n"
        f"  fix: give JSONL whose lines hold the text under {' and '.join(map(repr, keys))}, or name it with --key"
    )
