"""Which files the input is: every file under what was given is read, or passed over with a reason that is kept.

files found = files read + files passed over, as a job prints and its meta file holds. What can only be a mistake (an
empty compressed file, one that may not be read) ends the job instead, by name.
"""

import glob
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from megatron_sky.data.ingest.compressed import ENDINGS, compression_of, open_compressed
from megatron_sky.data.tokens.meta import FileCounts, PassedOver
from megatron_sky.errors import DataError
from megatron_sky.files import parse_json
from megatron_sky.log import get_logger

log = get_logger(__name__)

KINDS = {
    ".jsonl": "lines",
    ".json": "lines",
    ".jsonlines": "lines",
    ".ndjson": "lines",
    ".jl": "lines",
    ".parquet": "rows",
    ".pq": "rows",
    ".txt": "text",
    ".text": "text",
}
BOM = b"\xef\xbb\xbf"
_HEAD_BYTES = 64 << 10  # by which a file without an ending is judged
# What `tokenize` writes beside a pair under a known ending, and how each begins.
_OWN_PRODUCTS = {
    ".meta.json": b'{\n "tokenizer": {',
    ".progress.json": b'{"fingerprint": "',
    ".rejects.jsonl": b'{"file": "',
}
REASONS = {
    "hidden": "its name, or that of a folder it lies in, begins with a dot",
    "unknown_kind": "its ending is none of those that are known, or it has none and holds no JSON lines",
    "written_by_tokenize": "this program wrote it beside a pair",
    "same_file": "it is another name of a file that is read",
    "same_folder": "it is another name of a folder that is read",
    "broken_link": "it is a link to nothing",
    "not_a_file": "it is a pipe, a socket or a device",
}


@dataclass(frozen=True)
class InputFiles:
    """The files to read, in order, and all others that were found."""

    read: tuple[Path, ...]
    passed_over: tuple[PassedOver, ...]

    @property
    def counts(self) -> FileCounts:
        return FileCounts.of(len(self.read), self.passed_over)


def list_files(inputs: Sequence[str | Path], *, outputs: Collection[str] = ()) -> InputFiles:
    """The files that `inputs` (files, folders, globs) name, in order; a folder's or glob's in alphabetical order.

    Links are followed, a folder and a file are read once whatever their names.

    Args:
        outputs: files of the job itself, which may lie in a folder of the input; they don't count as found.

    Raises:
        DataError: an input names nothing to read, or a file of no known kind; files can't be read, or are empty where
            such files never are.
    """
    ours = {os.path.abspath(path) for path in outputs}
    read: dict[str, Path] = {}  # by absolute path
    passed_over: dict[str, PassedOver] = {}
    for given in map(str, inputs):
        search = _Search(given, ours)
        if not search.files:
            raise search.nothing()
        for path in sorted(search.files):
            read.setdefault(os.path.abspath(path), path)
        for absolute, other in search.passed_over.items():
            passed_over.setdefault(absolute, other)
    _check_readable(list(read.values()))
    names: dict[tuple, str] = {}
    for absolute, path in read.items():
        passed_over.pop(absolute, None)  # hidden, and named all the same
        if names.setdefault(_identity(path), absolute) != absolute:
            passed_over[absolute] = PassedOver(str(path), "same_file")
    ordered = sorted(passed_over.values(), key=lambda other: other.path)
    return InputFiles(tuple(read[absolute] for absolute in names.values()), tuple(ordered))


def find_files(inputs: Sequence[str | Path]) -> list[Path]:
    """The files to read, as `list_files` has them; the others are told in the log."""
    files = list_files(inputs)
    if files.passed_over:
        some = ", ".join(f"{file.path} ({file.reason})" for file in files.passed_over[:5])
        log.warning(
            "%d files found, %d read, %d passed over: %s%s", files.counts.found, len(files.read),
            len(files.passed_over), some, ", ..." if len(files.passed_over) > 5 else "",
        )  # fmt: skip
    return list(files.read)


def describe_files(counts: FileCounts, *, shown: int = 20) -> str:
    """The account of the files in lines, with the first `shown` that were passed over."""
    passed_over = sum(counts.passed_over.values())
    lines = [f"files: {counts.found:,} found = {counts.read:,} read + {passed_over:,} passed over"]
    lines += [f"  passed over: {file.path} ({file.reason})" for file in counts.passed_over_files[:shown]]
    if passed_over > shown:
        by_reason = ", ".join(f"{reason} {count:,}" for reason, count in counts.passed_over.items())
        lines.append(f"  and {passed_over - shown:,} more (in all: {by_reason})")
    reasons = [reason for reason in counts.passed_over if reason in REASONS]
    return "\n".join([*lines, *(f"  {reason}: {REASONS[reason]}" for reason in reasons)])


def kind_of(path: Path) -> tuple[str, str] | None:
    """(kind, compression) of a file: by its ending, in any case; where it has none, by what it holds. None: unknown.

    Raises DataError where a compressed file is broken.
    """
    ending = path.suffix.lower()
    compression = ENDINGS.get(ending, "")
    inner = Path(path.stem).suffix.lower() if compression else ending
    if inner and not inner[1:].isdigit():  # `part-00000.gz` and `corpus.jsonl.03` say nothing of their kind
        kind = KINDS.get(inner)
        return None if kind is None or (compression and kind == "rows") else (kind, compression)
    return None if path.name.startswith("_") else _kind_by_content(path, compression)  # _SUCCESS, _metadata


def _kind_by_content(path: Path, compression: str) -> tuple[str, str] | None:
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    compression = compression or compression_of(head)
    if head.startswith(b"PAR1"):
        return "rows", ""
    if compression and not head:
        return "lines", compression  # as `_check_readable` tells
    if compression:
        with open_compressed(path, compression) as file:
            head = file.read(_HEAD_BYTES)
    line, newline, _ = head.removeprefix(BOM).lstrip().partition(b"\n")
    try:
        holds_objects = line.startswith(b"{") and (not newline or isinstance(parse_json(line), dict))
    except ValueError:
        return None
    return ("lines", compression) if holds_objects else None


class _Search:
    """What one input names: the files to read, and those passed over by absolute path. A folder is gone through once,
    those that are linked after all that are there by themselves."""

    def __init__(self, given: str, outputs: set[str]):
        self.files: list[Path] = []
        self.passed_over: dict[str, PassedOver] = {}
        self._given, self._outputs = given, outputs
        self._folders: set[str] = set()  # real paths
        self._links: list[tuple[Path, _Selects | None]] = []  # to folders, not followed yet
        path = Path(given)
        if os.path.lexists(path):
            self._take(path, is_input=True)
        elif "**" in path.parts:
            at = path.parts.index("**")
            for root in sorted(glob.glob(str(Path(*path.parts[:at])))):
                self._go_through(Path(root), _Selects(Path(root), path.parts[at:]))
        else:
            for name in sorted(glob.glob(given)):
                self._take(Path(name))
        while self._links:
            self._go_through(*self._links.pop(0))

    def _take(self, path: Path, *, is_input: bool = False) -> None:
        if path.is_dir():
            self._go_through(path)
        else:
            self._judge(path, is_input=is_input)

    def _go_through(self, folder: Path, selects: "_Selects | None" = None) -> None:
        real = os.path.realpath(folder)
        if real in self._folders:
            self._pass_over(folder, "same_folder")
            return
        self._folders.add(real)
        for entry in _entries(folder):
            path = folder / entry.name
            is_selected = selects is None or selects(path)
            if entry.name.startswith("."):
                if is_selected:
                    self._pass_over_hidden(path)
            elif path.is_dir():
                inner = None if is_selected else selects
                if entry.is_symlink():
                    self._links.append((path, inner))
                else:
                    self._go_through(path, inner)
            elif is_selected:
                self._judge(path)

    def _judge(self, path: Path, *, is_input: bool = False) -> None:
        if os.path.abspath(path) in self._outputs or not os.path.lexists(path):  # it may have gone away meanwhile
            return
        if not path.is_file() or not path.exists():
            self._pass_over(path, "not_a_file" if path.exists() else "broken_link")
        elif not os.access(path, os.R_OK):
            self.files.append(path)  # for `_check_readable`
        elif _is_own_product(path):
            self._pass_over(path, "written_by_tokenize")
        elif kind_of(path) is not None:
            self.files.append(path)
        elif is_input:
            raise DataError(
                f"{path}: unknown kind of file\n  fix: known endings are {', '.join(KINDS)}; lines and text may be "
                f"compressed ({', '.join(ENDINGS)}); a file without an ending must hold JSON lines or Parquet"
            )
        else:
            self._pass_over(path, "unknown_kind")

    def _pass_over_hidden(self, path: Path) -> None:
        if not path.is_dir() or path.is_symlink():
            self._pass_over(path, "hidden")
            return
        for entry in _entries(path):
            self._pass_over_hidden(path / entry.name)

    def _pass_over(self, path: Path, reason: str) -> None:
        self.passed_over[os.path.abspath(path)] = PassedOver(str(path), reason)

    def nothing(self) -> DataError:
        others = list(self.passed_over.values())[:5]
        some = "".join(f"\n  passed over: {other.path}: {REASONS[other.reason]}" for other in others)
        return DataError(
            f"{self._given} names no file to read{some}\n"
            "  fix: give JSONL, Parquet or text files, folders of such, or a glob"
        )


@dataclass(frozen=True)
class _Selects:
    """Whether a path under `root` is one of those that the rest of a glob (with `**` in it) names."""

    root: Path
    pattern: tuple[str, ...]

    def __call__(self, path: Path) -> bool:
        return _matches(path.relative_to(self.root).parts, self.pattern)


def _matches(names: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[skipped:], pattern[1:]) for skipped in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _entries(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} can't be listed: {error.strerror}\n  fix: allow reading it, or leave it out"
        ) from error


def _identity(path: Path) -> tuple:
    """Equal for the names of one file: links of either kind."""
    status = path.stat()
    return (status.st_dev, status.st_ino) if status.st_nlink > 1 else (os.path.realpath(path),)


def _is_own_product(path: Path) -> bool:
    """Whether the file says by its name and how it begins that this program wrote it."""
    begins = next((begins for ending, begins in _OWN_PRODUCTS.items() if path.name.endswith(ending)), None)
    if begins is None:
        return False
    with open(path, "rb") as file:
        return file.read(len(begins)) == begins


def _check_readable(files: Sequence[Path]) -> None:
    if locked := [str(path) for path in files if not os.access(path, os.R_OK)]:
        raise DataError(f"may not be read: {_some(locked)}\n  fix: allow reading, or leave them out")
    empty = [str(path) for path in files if path.stat().st_size == 0 and _is_never_empty(path)]
    if empty:
        raise DataError(
            f"0 bytes, as an interrupted download leaves a file: {_some(empty)}\n"
            "  fix: fetch them again, or remove them"
        )


def _is_never_empty(path: Path) -> bool:
    ending = path.suffix.lower()
    return ending in ENDINGS or KINDS.get(ending) == "rows"


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:10]) + (f" and {len(paths) - 10:,} more" if len(paths) > 10 else "")
