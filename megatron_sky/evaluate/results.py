"""What an evaluation found, and its files: docs/formats.md describes them. No torch.

<out>/loss.json          everything; `read_loss` reads it back
      loss.csv           one line per model and domain
      loss.md, loss.png  for people
      leakage.json, .csv, .md, .png
      documents/<model>.jsonl            one line per document (of `eval leakage`: leakage_<model>.jsonl)
"""

import io
import re
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from megatron_sky import files
from megatron_sky.errors import DataError, RunError
from megatron_sky.evaluate.leakage import Comparison, Verdict
from megatron_sky.evaluate.metrics import DocumentLoss, LossFigures
from megatron_sky.files import open_regular, parse_json, read_json
from megatron_sky.records import BadRecord, read_record

FORMAT_VERSION = 1
LOSS, LEAKAGE = "loss", "leakage"
Results = TypeVar("Results", "LossResults", "LeakageResults")


@dataclass(frozen=True)
class ModelRecord:
    """Which model it was, and how texts became its tokens. Published losses have a name alone."""

    name: str
    path: str | None = None
    kind: str = "published"
    step: int | None = None
    consumed_tokens: int | None = None
    context: int | None = None
    tokenizer: str | None = None
    tokenizer_sha256: str | None = None
    begin_id: int | None = None
    seconds: float | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class DomainRecord:
    """Which texts: `empty` documents were left out, `cut` ones were longer than the characters that count."""

    name: str
    files: tuple[str, ...]
    documents: int
    empty: int
    cut: int


@dataclass(frozen=True)
class Setting:
    """How the texts were scored, the same for all models. `max_characters` None: whole documents."""

    context: int
    max_characters: int | None
    stride: int | None
    max_documents: int | None
    begin: str
    reference_tokenizer: str | None = None
    reference_sha256: str | None = None


@dataclass(frozen=True)
class ModelLosses:
    """One model's figures: of each domain, and `average` over all documents of all domains."""

    model: ModelRecord
    domains: dict[str, LossFigures]
    average: LossFigures


@dataclass(frozen=True)
class LossResults:
    """loss.json. `failed`: a line for each model that has no figures."""

    setting: Setting
    domains: tuple[DomainRecord, ...]
    models: tuple[ModelLosses, ...]
    failed: tuple[str, ...] = ()
    kind: str = LOSS
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class ModelLeakage:
    """One model's comparisons (plain or published first), and what they say of the test and of the train split."""

    model: ModelRecord
    comparisons: tuple[Comparison, ...]
    test_verdict: Verdict
    train_verdict: Verdict


@dataclass(frozen=True)
class LeakageResults:
    """leakage.json. `sets` are the domains train, test and reference; empty where all losses are published ones.

    `failed`: a line for each model that has no figures.
    """

    margin: float
    confidence: float
    setting: Setting | None
    sets: tuple[DomainRecord, ...]
    models: tuple[ModelLeakage, ...]
    failed: tuple[str, ...] = ()
    kind: str = LEAKAGE
    format_version: int = FORMAT_VERSION


def read_loss(path: Path) -> LossResults:
    """loss.json (or the folder that holds it). Raises DataError."""
    return _read(path, LossResults, LOSS)


def read_leakage(path: Path) -> LeakageResults:
    """leakage.json (or the folder that holds it). Raises DataError."""
    return _read(path, LeakageResults, LEAKAGE)


def write_json(results: LossResults | LeakageResults, folder: Path) -> Path:
    """Writes `<folder>/<kind>.json`."""
    return write_text(folder / f"{results.kind}.json", files.json_text(asdict(results), indent=1) + "\n")


def write_documents(folder: Path, model: str, documents: Iterable[DocumentLoss], prefix: str = "") -> Path:
    """Writes `<folder>/documents/<prefix><model>.jsonl`, one object a document."""
    lines = [files.json_text(asdict(document)) + "\n" for document in documents]
    return write_text(folder / "documents" / f"{prefix}{file_name(model)}.jsonl", "".join(lines))


def read_documents(path: Path) -> list[DocumentLoss]:
    """The lines of a documents file. Raises DataError."""
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8") as lines:
            return read_record(list[DocumentLoss], [parse_json(line) for line in lines])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is no file of document losses: {error}\n  fix: evaluate again") from error


def check_writable(*folders: Path) -> None:
    """Makes the folders of the results to come and tries to write into each. Raises RunError."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise _unwritable(folder, error) from error


def write_text(path: Path, text: str) -> Path:
    """Writes a file and the folders above it. What is no UTF-8 in the name of a folder becomes a `?`.

    Raises RunError.
    """
    return write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file, whole or not at all, and the folders above it. Raises RunError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, content)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: can't be written: {error.strerror}\n  fix: give another --out folder")


def file_name(model: str) -> str:
    """A model's name as a file may have it."""
    return re.sub(r"[^\w.\-]+", "_", model)


def _read(path: Path, kind: type[Results], name: str) -> Results:
    path = path / f"{name}.json" if path.is_dir() else path
    try:
        given = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: can't be read: {error}") from error
    if not isinstance(given, dict) or (given.get("kind"), given.get("format_version")) != (name, FORMAT_VERSION):
        raise DataError(f"{path}: is no {name} file of format_version {FORMAT_VERSION}\n  fix: evaluate again")
    try:
        results = read_record(kind, given)
        _check_whole(results)
    except BadRecord as error:
        raise DataError(f"{path}: is no whole {name} file: {error}\n  fix: evaluate again") from error
    return results


def _check_whole(results: LossResults | LeakageResults) -> None:
    """Raises BadRecord where a model lacks a domain, or every comparison."""
    missing: list[tuple[ModelRecord, list[str]]]
    if isinstance(results, LossResults):
        names = [domain.name for domain in results.domains]
        missing = [(entry.model, [name for name in names if name not in entry.domains]) for entry in results.models]
    else:
        missing = [(entry.model, [] if entry.comparisons else ["comparisons"]) for entry in results.models]
    for model, what in missing:
        if what:
            raise BadRecord(f"the model {model.name} has no {', '.join(what)}")
