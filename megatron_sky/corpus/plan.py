"""What a corpus is built from: the sources' files in order, cut into units, and whether it is the same as before.

A unit is the input of one task: consecutive files of one source, or a range of a plain JSONL file. Outputs are in the
order of the units, so where the cuts are makes no difference to them.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_sky.corpus.recipe import CorpusRecipe, CorpusSource
from megatron_sky.errors import ConfigError, Problem
from megatron_sky.files import read_json, real_path, write_json
from megatron_sky.records import flattened, read_record

_PACKED = ("", ".gz", ".bz2", ".xz", ".zst")
_LINES = (".jsonl", ".json", ".ndjson", ".jl")
_PLAIN = (*_LINES, ".tsv")
_ZH, _EN = (tuple(language + packed for packed in _PACKED) for language in (".zh", ".en"))
ENDINGS: dict[str, tuple[str, ...]] = {
    "warc": (".warc", ".warc.gz"),
    "wet": (".wet", ".wet.gz", ".warc", ".warc.gz"),
    "jsonl": tuple(ending + packed for ending in _LINES for packed in _PACKED),
    "parallel": (*(ending + packed for ending in _PLAIN for packed in _PACKED), *_ZH),
    "parquet": (".parquet", ".pq"),
    "html": (".html", ".htm", ".xhtml", ".shtml"),
    "code": (),  # any
}
_MOST_FILES = 10_000  # of a unit
_NOT_COMPARED = ("out", "execution", "read.unit_bytes")


@dataclass(frozen=True)
class Piece:
    """Bytes `[start, end)` of a file, of which the lines that begin there are meant; `end` is the file's size."""

    path: str
    start: int
    end: int


@dataclass(frozen=True)
class Unit:
    """One task's input: pieces of one source, `root` being the folder that it was given as."""

    source: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Plan:
    """The recipe as plain values, and its units; `files`: size and time of each."""

    recipe: dict[str, Any]
    units: tuple[Unit, ...]
    files: dict[str, tuple[int, int]]


def make_plan(recipe: CorpusRecipe) -> Plan:
    """The plan of a corpus that is begun. Raises ConfigError for sources without files."""
    problems: list[Problem] = []
    units: list[Unit] = []
    files: dict[str, tuple[int, int]] = {}
    for number, source in enumerate(recipe.sources):
        paths = _files_of(source, f"sources.{number}.paths", problems)
        partners = map(partner_of, paths if source.kind == "parallel" else ())
        files |= _stamps(filter(os.path.isfile, [*paths, *filter(None, partners)]))
        units += _units_of(source, paths, recipe.read.unit_bytes)
    if problems:
        raise ConfigError(problems)
    files |= _stamps(filter(os.path.isfile, quality_files(recipe).values()))
    return Plan(_comparable(recipe), tuple(units), files)


def _stamps(paths: Iterable[str]) -> dict[str, tuple[int, int]]:
    return {path: (os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths}


def quality_files(recipe: CorpusRecipe) -> dict[str, str]:
    """The files by which quality is judged, by the recipe's keys."""
    given = {"quality.classifier": recipe.quality.classifier}
    for language, one in recipe.quality.perplexity.items():
        key = f"quality.perplexity.{language}"
        given |= {f"{key}.model": one.model, f"{key}.tokenizer": one.tokenizer}
    return {key: path for key, path in given.items() if path is not None}


def continue_plan(path: Path, recipe: CorpusRecipe) -> Plan:
    """The plan that `path` holds, where recipe and files are still its; a new one, written, where there is none.

    Raises ConfigError, naming what is different.
    """
    new = make_plan(recipe)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(new))
        return new
    old = read_record(Plan, read_json(path))
    if problems := [*_changed_keys(old, new), *_changed_files(old, new)]:
        raise ConfigError(problems)
    return old


def _changed_keys(old: Plan, new: Plan) -> Iterator[Problem]:
    before, now = flattened(old.recipe), flattened(new.recipe)
    fix = "set it back, or build into another folder with out=FOLDER"
    for key in dict.fromkeys((*before, *now)):
        if before.get(key) != now.get(key):
            yield Problem(key, f"was {before.get(key)!r} when this corpus was begun", fix, now.get(key))


def _changed_files(old: Plan, new: Plan) -> Iterator[Problem]:
    fix = "put it back as it was, or build into another folder with out=FOLDER"
    for path in dict.fromkeys((*old.files, *new.files)):
        if path not in new.files:
            yield Problem(path, "is gone since this corpus was begun", fix)
        elif path not in old.files:
            yield Problem(path, "was not there when this corpus was begun", fix)
        elif old.files[path] != tuple(new.files[path]):
            yield Problem(path, "has changed since this corpus was begun", fix)


def _comparable(recipe: CorpusRecipe) -> dict[str, Any]:
    """What decides the result, as JSON gives it back."""
    values = recipe.model_dump(mode="json")
    for key in _NOT_COMPARED:
        section, _, name = key.rpartition(".")
        (values[section] if section else values).pop(name)
    return values


def _files_of(source: CorpusSource, key: str, problems: list[Problem]) -> list[str]:
    """Absolute paths, each once, in the order of `paths` and in alphabetical order within."""
    endings = ENDINGS[source.kind]
    found: dict[Path, str] = {}
    for given in source.paths:
        paths = sorted(glob.glob(given, recursive=True)) if glob.has_magic(given) else [given]
        files = [file for path in paths for file in _walk(path, endings)]
        for file in [file for file in files if not os.path.isfile(file)]:
            problems.append(Problem(f"{key} of {source.name}", "is a link to nothing", "take it away", file))
        for other in map(partner_of, files if source.kind == "parallel" else ()):
            if other is not None and not os.path.isfile(other):
                fix = "put the English lines of the file that ends in .zh beside it"
                problems.append(Problem(f"{key} of {source.name}", "is not there", fix, other))
        for file in filter(os.path.isfile, files):
            found.setdefault(real_path(file), os.path.abspath(file))
        if not files:
            wanted = f" that end in {', '.join(endings)}" if endings else ""
            problems.append(Problem(f"{key} of {source.name}", f"names no files{wanted}", "check the path", given))
    return list(found.values())


def partner_of(path: str) -> str | None:
    """The file of the English lines, NAME.en, that goes with one of Chinese lines, NAME.zh; None for another file."""
    for chinese, english in zip(_ZH, _EN, strict=True):
        if path.endswith(chinese):
            return path.removesuffix(chinese) + english
    return None


def _walk(path: str, endings: tuple[str, ...]) -> Iterator[str]:
    if os.path.isfile(path):
        yield path
    for folder, names, files in os.walk(path):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and (not endings or name.lower().endswith(endings)):
                yield os.path.join(folder, name)


def _units_of(source: CorpusSource, paths: list[str], unit_bytes: int) -> Iterator[Unit]:
    pieces: list[Piece] = []
    room = unit_bytes
    for piece in (piece for path in paths for piece in _pieces_of(source, path, unit_bytes)):
        size = piece.end - piece.start
        if pieces and (size > room or len(pieces) == _MOST_FILES):
            yield Unit(source.name, tuple(pieces))
            pieces, room = [], unit_bytes
        pieces.append(piece)
        room -= size
    if pieces:
        yield Unit(source.name, tuple(pieces))


def _pieces_of(source: CorpusSource, path: str, unit_bytes: int) -> Iterator[Piece]:
    size = os.path.getsize(path)
    if source.kind not in ("jsonl", "parallel") or not path.lower().endswith(_PLAIN):
        yield Piece(path, 0, size)
        return
    for start in range(0, max(size, 1), unit_bytes):
        yield Piece(path, start, min(size, start + unit_bytes))
