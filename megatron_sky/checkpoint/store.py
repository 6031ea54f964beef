"""Checkpoint folders: their names, what makes one whole, which is the latest, which to delete. No torch.

A checkpoint is written into `step_0001000.tmp`. When every file is there, a manifest with the size and hash of each is
added and the folder is renamed to `step_0001000`. So a folder under that name was whole once, and `find_latest`
checks that it still is: a damaged one is named and the one before it is used.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import xxhash

from megatron_sky.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TRAIN_STATE = "train_state.json"
_NAME = re.compile(r"step_(\d{7,})")
_LEFTOVER = re.compile(r"step_\d{7,}\.(tmp|deleted)")
_BLOCK = 1 << 22
_ALGORITHMS = {"sha256": hashlib.sha256, "xxh3": xxhash.xxh3_128}


class NewerFormat(CheckpointError):
    """A checkpoint of a format that this version does not know."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: its size in bytes and its hash as hex, XXH3 (128 bits, quick) or SHA-256."""

    size: int
    sha256: str | None = None
    xxh3: str | None = None

    def to_dict(self) -> dict:
        return {name: value for name, value in asdict(self).items() if value is not None}


def folder_of(run_dir: Path, step: int) -> Path:
    """`<run_dir>/checkpoints/step_0001000`."""
    return run_dir / "checkpoints" / f"step_{step:07d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder of a run, from its name."""
    match = _NAME.fullmatch(folder.name)
    assert match, f"{folder} is no checkpoint of a run"
    return int(match.group(1))


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint of a run, oldest first, not verified."""
    root = run_dir / "checkpoints"
    if not root.is_dir():
        return []
    found = [(_NAME.fullmatch(each.name), each) for each in root.iterdir() if each.is_dir()]
    return sorted((int(match.group(1)), each) for match, each in found if match)


def find_latest(run_dir: Path, warn: Callable[[str], None], *, quick: bool = False) -> Path | None:
    """The newest checkpoint of a run that passes `verify`; `warn` is told of each that does not. None: there is none.

    `quick`: look at the files' sizes alone. Raises CheckpointError when there are checkpoints but all are damaged:
    starting over would hide the loss.
    """
    checkpoints = list_checkpoints(run_dir)
    for _, folder in reversed(checkpoints):
        try:
            (check_sizes if quick else verify)(folder)
        except NewerFormat:
            raise  # it is whole, and going on from an older one would throw its steps away
        except CheckpointError as error:
            warn(f"skipping a damaged checkpoint: {error}")
        else:
            return folder
    if checkpoints:
        raise CheckpointError(
            f"{run_dir / 'checkpoints'}: none of its {len(checkpoints)} checkpoints is whole\n"
            f"  fix: restore one from a copy, or start again in another run folder"
        )
    return None


def resolve(path: Path, warn: Callable[[str], None], *, quick: bool = False) -> Path:
    """The checkpoint folder that `path` means: itself, or the latest of the run folder it is; verified, or `quick`."""
    if (path / MANIFEST).is_file():
        (check_sizes if quick else verify)(path)
        return path
    latest = find_latest(path, warn, quick=quick)
    if latest is None:
        raise CheckpointError(
            f"{path}: is neither a checkpoint nor a run folder with checkpoints\n"
            f"  fix: give a folder such as <run_dir>/checkpoints/step_0001000"
        )
    return latest


def hash_files(folder: Path, names: Iterable[str], algorithm: str = "sha256") -> dict[str, FileRecord]:
    """Size and hash (`sha256` or `xxh3`) of each named file, a few files at once."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _hash_file(folder / name, algorithm), names), strict=True))


def _hash_file(path: Path, algorithm: str) -> FileRecord:
    digest, size, block = _ALGORITHMS[algorithm](), 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
    return FileRecord(size, **{algorithm: digest.hexdigest()})


def files_of(folder: Path) -> list[str]:
    """Names of all files of a checkpoint but the manifest, relative to it, sorted."""
    return sorted(
        each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file() and each.name != MANIFEST
    )


def finish(temporary: Path, final: Path, step: int, records: dict[str, FileRecord]) -> None:
    """Writes the manifest and renames the folder into place, each flushed to disk before the next."""
    manifest = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "files": {name: record.to_dict() for name, record in sorted(records.items())},
    }
    with open(temporary / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for name in records:
        sync(temporary / name)
    sync(temporary)
    aside = _set_aside(final) if final.exists() else None  # a damaged checkpoint of a step that was trained again
    temporary.rename(final)
    sync(final.parent)
    if aside is not None:
        shutil.rmtree(aside)


def check_sizes(folder: Path) -> dict[str, FileRecord]:
    """The manifest's files; raises CheckpointError naming the first that is missing or has another size."""
    records = read_manifest(folder)
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if path.stat().st_size != record.size:
            raise CheckpointError(f"{path}: has {path.stat().st_size:,} bytes, the manifest says {record.size:,}")
    return records


def verify(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is missing, of another size, or of another content."""
    records = check_sizes(folder)
    found: dict[str, FileRecord] = {}
    for algorithm in _ALGORITHMS:
        found |= hash_files(folder, [name for name, record in records.items() if getattr(record, algorithm)], algorithm)
    for name, record in records.items():
        if found[name] != record:
            raise CheckpointError(f"{folder / name}: its content is not what was written (its hash differs)")


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """The manifest's files. Raises CheckpointError where it is missing, unreadable, or of another step or format."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, step, files = content["format_version"], content["step"], content["files"]
        records = {name: FileRecord(**each) for name, each in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing, so the checkpoint was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: can't be read as a manifest: {error}") from None
    if version != FORMAT_VERSION:
        fix = "use the version of megatron-sky that wrote it, or a newer one"
        raise NewerFormat(f"{path}: format_version = {version}; this version reads {FORMAT_VERSION}\n  fix: {fix}")
    match = _NAME.fullmatch(folder.name)
    if match and int(match.group(1)) != step:
        raise CheckpointError(f"{path}: is the manifest of step {step}, not of {folder.name}")
    for name in records:
        if name.startswith("/") or ".." in Path(name).parts:
            raise CheckpointError(f"{path}: names the file {name!r}, which lies outside the checkpoint")
    return records


def consumed_tokens(folder: Path) -> int:
    """The consumed tokens of a checkpoint, from its train_state.json."""
    path = folder / TRAIN_STATE
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["progress"]["consumed_tokens"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from None


def to_prune(
    run_dir: Path,
    *,
    newest: int,
    keep_last: int,
    keep_every_tokens: int | None,
    marks: Sequence[int] = (),
    warn: Callable[[str], None],
) -> list[Path]:
    """The checkpoints that retention lets go: older than the newest `keep_last`, and kept by nothing else.

    Kept for ever: the first checkpoint at or after each multiple of `keep_every_tokens`, and after each of `marks`
    (consumed tokens). `newest` is the step of the newest checkpoint that is known to be whole. Later ones, which a run
    has passed over, are neither counted nor let go, and nor are damaged ones, of which `warn` is told.
    """
    found = _counted(run_dir, newest, warn)
    kept = {folder for _, folder in found[-keep_last:]}
    reached = 0
    for tokens, folder in found:
        due = any(reached < mark <= tokens for mark in marks)
        if keep_every_tokens and tokens // keep_every_tokens > reached // keep_every_tokens:
            due = True
        if due:
            kept.add(folder)
        reached = tokens
    return [folder for _, folder in found if folder not in kept]


def _counted(run_dir: Path, newest: int, warn: Callable[[str], None]) -> list[tuple[int, Path]]:
    """(consumed tokens, folder) of the checkpoints up to step `newest` whose files have their sizes, oldest first."""
    found = []
    for folder in [folder for step, folder in list_checkpoints(run_dir) if step <= newest]:
        try:
            check_sizes(folder)
            found.append((consumed_tokens(folder), folder))
        except (CheckpointError, OSError) as error:
            warn(f"retention passes over a damaged checkpoint, which stays: {error}")
    return found


def leftovers(run_dir: Path) -> list[Path]:
    """Folders that saves and deletions which were cut off have left.

    A live save writes into such a folder until it is whole: only who holds the run folder may sweep them.
    """
    root = run_dir / "checkpoints"
    return sorted(each for each in root.iterdir() if _LEFTOVER.fullmatch(each.name)) if root.is_dir() else []


def remove(folder: Path) -> None:
    """Deletes a checkpoint, renamed first so that no reader takes a half-deleted one for whole."""
    shutil.rmtree(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    doomed = folder.with_name(folder.name + ".deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    return doomed


def sync(path: Path) -> None:
    """Flushes a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
