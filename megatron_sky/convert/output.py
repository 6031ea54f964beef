"""The folder that a conversion writes: nothing under its final name until all of it is there and verified.

Files are written into `OUT.partial`. A weight file that is finished and on the disk is entered in `conversion.json`
there; when the same conversion is started again, those files are checked by their hash and kept, and the rest is
written. Then the folder is opened as its users will open it (`verify`). At the end `conversion.json` stays in it as its
record, everything is flushed to disk, and the folder is renamed to `OUT`: a rename is the only way in which `OUT` comes
to be.
"""

import contextlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_sky import __version__
from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import LazyTensor
from megatron_sky.checkpoint.store import size_and_hash
from megatron_sky.convert.sources import Source
from megatron_sky.convert.verify import verify_readable
from megatron_sky.convert.weight_file import cant_write
from megatron_sky.errors import CheckpointError
from megatron_sky.files import InUse, hold, leftovers, read_json, sync_to_disk, write_json
from megatron_sky.log import get_logger
from megatron_sky.tokenizer import files as tokenizer_files

log = get_logger(__name__)

RECORD = "conversion.json"
DEFAULT_FILE_SIZE = 5 * 10**9  # bytes of one weight file, as Hugging Face's tools write
_WEIGHTS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|__0_\d+\.distcp|mp_rank_\d+(_\d+)?|scratch")
_SPARE = 64 << 20  # bytes kept free beyond the weights: tokenizer, index, file system


@dataclass(frozen=True)
class Converted:
    """A finished conversion."""

    folder: Path
    num_tensors: int
    num_bytes: int
    files: dict[str, dict]
    """Weight file -> `size`, `xxh3`, `not_finite` (see `WeightFile.finish`), and what its format adds."""


def convert(source: Source, out: Path, conversion: dict, write: Callable[["Output"], dict]) -> Converted:
    """Has `write` write all files of the source's conversion into an Output and verifies the folder.

    `conversion`: how it is converted, plain values. `write` returns facts for the folder's record. What the conversion
    leaves out is said. Where `out` is this conversion already, nothing is done. Raises CheckpointError; then `out`
    isn't there.
    """
    conversion = conversion | describe_source(source)
    if done := converted_already(out, conversion):
        log.info("%s: is converted and whole already", out)
        return done
    for line in source.left_out:
        log.info("%s: %s", source.folder, line)
    for line in source.warnings:
        log.warning("%s: %s", source.folder, line)
    with prepared(out, conversion) as output:
        facts = write(output)
        verify_readable(source, output.folder)
        _tell_not_finite(output)
        facts |= {"left_out": source.left_out, "warnings": source.warnings}
        return output.publish(len(source.weights), source.num_bytes, **facts)


def write_weights(
    tensors: Mapping[str, LazyTensor],
    output: "Output",
    files: dict[str, list[str]],
    write_file: Callable[[Path, list[str]], dict],
) -> None:
    """Has `write_file` write each of `files` (name -> tensors in it) that is not finished; returns a file's record."""
    todo = {file: names for file, names in files.items() if file not in output.finished}
    output.check_space(sum(tensors[name].num_bytes for names in todo.values() for name in names))
    for file, names in todo.items():
        output.add(file, write_file(output.folder / file, names))
        log.info("%s: %d tensors written", file, len(names))


def _tell_not_finite(output: "Output") -> None:
    for file, record in output.finished.items():
        for name, count in record.get("not_finite", {}).items():
            log.warning(
                "%s: %s: %s numbers are not finite (NaN or Inf); converted as they are", file, name, f"{count:,}"
            )


class Output:
    """`OUT.partial` while a conversion works on it (see the module)."""

    def __init__(self, out: Path, conversion: dict):
        """`conversion`: what is converted and how, plain values; an interrupted one goes on only if it is the same."""
        self.out = out
        self.folder = out.with_name(out.name + ".partial")
        self._record: dict[str, Any] = {"megatron_sky": __version__, "conversion": conversion, "files": {}}

    @property
    def finished(self) -> dict[str, dict]:
        """Weight files already written and on the disk, by name."""
        return self._record["files"]

    def create_or_resume(self) -> None:
        """Makes the folder, or takes up what an interrupted run of the same conversion left in it.

        Raises CheckpointError where another program's files are in it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / RECORD
        before = _read_record(path)
        if before is None and (strange := _strange(self.folder)):
            raise CheckpointError(
                f"{self.folder}: holds {', '.join(strange[:5])} and no {RECORD}: no conversion made it\n"
                "  fix: move it away, or choose another folder; conversions into OUT are written into OUT.partial"
            )
        if before is None or before["conversion"] != self._record["conversion"]:
            if before is not None:
                log.warning("%s: holds another conversion's unfinished files, which are removed", self.folder)
            for entry in self.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            self._write_record()
            return
        for left in _unfinished_records(self.folder):
            left.unlink(missing_ok=True)
        self._record["files"] = {n: r for n, r in before["files"].items() if _is_whole(self.folder / n, r)}
        log.info("%s: goes on after %d finished file(s)", self.out, len(self.finished))

    def check_space(self, num_bytes: int) -> None:
        """Raises CheckpointError when `num_bytes` more do not fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes + _SPARE:
            raise CheckpointError(
                f"{self.out}: needs {num_bytes:,} bytes, the disk has {free:,} free\n"
                "  fix: free space, or write to another disk"
            )

    def add(self, name: str, record: dict) -> None:
        """Enters a weight file that is written and on the disk."""
        self.finished[name] = record
        self._write_record()

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file."""
        try:
            (self.folder / name).parent.mkdir(exist_ok=True)
            (self.folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")  # JSON's escape
        except OSError as error:
            raise cant_write(self.folder / name, error) from error

    def publish(self, num_tensors: int, num_bytes: int, **facts: object) -> Converted:
        """Completes the record with `facts`, flushes everything and gives the folder its name."""
        self._record |= {"verified_tensors": num_tensors, **facts}
        self._write_record()
        self._flush()
        if self.out.exists():
            self.out.rmdir()  # `prepared` saw that it was empty; fails loudly if it no longer is
        self.folder.rename(self.out)
        sync_to_disk(self.out.parent)
        return Converted(self.out, num_tensors, num_bytes, self.finished)

    def _flush(self) -> None:
        for path in self.folder.rglob("*"):
            sync_to_disk(path)
        sync_to_disk(self.folder)

    def _write_record(self) -> None:
        try:
            write_json(self.folder / RECORD, self._record, sync=True)
        except OSError as error:
            raise cant_write(self.folder / RECORD, error) from error


@contextlib.contextmanager
def prepared(out: Path, conversion: dict) -> Iterator[Output]:
    """An Output for `out`, held alone by this process. Raises CheckpointError when `out` exists or is being written."""
    output = Output(out, conversion)
    lock = output.folder.with_name(output.folder.name + ".lock")  # outside of the folder, which is renamed
    with contextlib.ExitStack() as stack:
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(lock, log.warning, remove=True))
            if out.exists() and (not out.is_dir() or any(out.iterdir())):
                raise CheckpointError(f"{out}: exists already\n  fix: choose another folder, or remove it")
            output.folder.mkdir(exist_ok=True)
        except InUse:
            raise CheckpointError(
                f"{output.folder}: another process is converting into it\n  fix: wait for it, or choose another folder"
            ) from None
        except OSError as error:
            raise cant_write(output.folder, error) from error
        output.create_or_resume()
        yield output


def describe_source(source: Source) -> dict:
    """All of a source that a conversion's files depend on, as plain values: part of `conversion`."""
    return {
        "source": source.identity,
        "vocab_size": source.model.vocab_size,
        "dtype": source.dtype,
        "model": source.model.model_dump(mode="json", exclude={"preset", "backend", "vocab_size"}),
        "tokenizer": None if source.tokenizer is None else _tokenizer_hashes(source.tokenizer),
        "adds_begin": source.adds_begin,
        **({} if source.hugging_face is None else {"hugging_face": asdict(source.hugging_face)}),
    }


def _tokenizer_hashes(path: Path) -> dict[str, str]:
    files = tokenizer_files.files_of(path, settings=True)
    return {name: size_and_hash(path, "sha256")[1] for path, name in files}


def converted_already(out: Path, conversion: dict) -> Converted | None:
    """The finished conversion in `out`, if it is this one; None where `out` holds no conversion's record.

    Raises CheckpointError naming what differs where it is another, and a file that is no longer what was written.
    """
    record = finished_record(out)
    if record is None:
        return None
    before = record["conversion"]
    if differing := _differences(before, conversion):
        raise CheckpointError(
            f"{out}: exists already, from another conversion:\n{differing}\n  fix: choose another folder, or remove it"
        )
    if noted_since := conversion.keys() - before.keys():
        log.warning(
            "%s: an earlier version converted it and did not note %s; remove the folder if that has changed since",
            out,
            ", ".join(sorted(noted_since)),
        )
    return whole_conversion(out, record)


def finished_record(out: Path) -> dict | None:
    """The record of the finished conversion in `out`; None where there is none. Its files are not looked at."""
    record = _read_record(out / RECORD)
    return record if record is not None and "verified_tensors" in record else None


def whole_conversion(out: Path, record: dict) -> Converted:
    """The finished conversion in `out`. Raises CheckpointError naming a file that isn't what was written."""
    for name, entry in record["files"].items():
        if not _is_whole(out / name, entry):
            raise CheckpointError(
                f"{out}: exists already, but its {name} is missing or no longer what was written\n"
                "  fix: remove the folder, and convert again"
            )
    num_bytes = sum(entry["size"] for entry in record["files"].values())
    return Converted(out, record["verified_tensors"], num_bytes, record["files"])


def _differences(before: dict, now: dict, within: str = "") -> str:
    """A line for each value that both conversions note and that differs; of tables, for each of their values."""
    lines = []
    for name in [name for name in now if (within or name in before) and before.get(name) != now[name]]:
        old, new = before.get(name), now[name]
        if name == "source":
            lines.append("  source: other files, or files moved or changed since")
        elif isinstance(old, dict) and isinstance(new, dict):
            lines.append(_differences(old, dict.fromkeys(old) | new, f"{within}{name}."))
        else:
            lines.append(f"  {within}{name}: {_shown(old)} then, {_shown(new)} now")
    return "\n".join(lines)


def _shown(value: object) -> str:
    """A value in a few characters; hashes by their beginning, a tokenizer by its files."""
    if isinstance(value, dict):
        return ", ".join(value)
    if value is None:
        return "none"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def plan_files(
    source: Source, file_size: int, beside: Mapping[str, Mapping[str, LazyTensor]] | None = None
) -> list[list[str]]:
    """The names of the tensors of each file: whole layers, at most `file_size` bytes where a layer fits into them.

    `beside`: by a weight's name, further tensors that go where it goes.
    """
    files: list[list[str]] = [[]]
    filled = 0
    for unit in weights.units(source.model):
        further = {name: tensor for weight in unit for name, tensor in (beside or {}).get(weight, {}).items()}
        size = sum(source.weights[name].num_bytes for name in unit)
        size += sum(tensor.num_bytes for tensor in further.values())
        if files[-1] and filled + size > file_size:
            files.append([])
            filled = 0
        files[-1] += [*unit, *further]
        filled += size
    return files


def _read_record(path: Path) -> dict | None:
    """A conversion's record; None where there is none, or one that a crash tore."""
    try:
        record = read_json(path)
        return record if isinstance(record["files"], dict) and isinstance(record["conversion"], dict) else None
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from error


def _strange(folder: Path) -> list[str]:
    """Names in a folder without a record that no conversion left: it writes the record first, then the weights."""
    torn = (folder / RECORD).is_file()
    own = {folder / RECORD, *_unfinished_records(folder)}
    return sorted(
        path.name for path in folder.iterdir() if path not in own and not (torn and _WEIGHTS.fullmatch(path.name))
    )


def _unfinished_records(folder: Path) -> list[Path]:
    """Records that a crash has cut off; earlier versions wrote `conversion.json.tmp`."""
    return [*leftovers(folder / RECORD), *folder.glob(RECORD + ".tmp")]


def _is_whole(path: Path, record: dict) -> bool:
    if not path.is_file() or path.stat().st_size != record["size"]:
        return False
    return size_and_hash(path, "xxh3")[1] == record["xxh3"]
