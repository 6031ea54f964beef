"""Checkpoint folders: their names, what makes one whole, which is the latest, which to delete. No torch.

A checkpoint is written into `step_0001000.tmp`. When every file is there, a manifest with the size and SHA-256 of each
is added and the folder is renamed to `step_0001000`. So a folder under that name was whole once, and `find_latest`
checks that it still is: a damaged one is named and the one before it is used.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_sky.errors import CheckpointError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_NAME = re.compile(r"step_(\d{7,})")
_BLOCK = 1 << 20


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: its size in bytes and its SHA-256 as hex."""

    size: int
    sha256: str


def folder_of(run_dir: Path, step: int) -> Path:
    """`<run_dir>/checkpoints/step_0001000`."""
    return run_dir / "checkpoints" / f"step_{step:07d}"


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint of a run, oldest first, not verified."""
    root = run_dir / "checkpoints"
    if not root.is_dir():
        return []
    found = [(_NAME.fullmatch(each.name), each) for each in root.iterdir() if each.is_dir()]
    return sorted((int(match.group(1)), each) for match, each in found if match)


def find_latest(run_dir: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint of a run that passes `verify`; `warn` is told of each that does not. None: there is none.

    Raises CheckpointError when there are checkpoints but all are damaged: starting over would hide the loss.
    """
    checkpoints = list_checkpoints(run_dir)
    for _, folder in reversed(checkpoints):
        try:
            verify(folder)
        except CheckpointError as error:
            warn(f"skipping a damaged checkpoint: {error}")
        else:
            return folder
    if checkpoints:
        raise CheckpointError(
            f"{run_dir / 'checkpoints'}: none of its {len(checkpoints)} checkpoints is whole\n"
            f"  mend: restore one from a copy, or start again in another run folder"
        )
    return None


def resolve(path: Path, warn: Callable[[str], None]) -> Path:
    """The checkpoint folder that `path` means: itself, or the latest of the run folder it is. Verified."""
    if (path / MANIFEST).is_file():
        verify(path)
        return path
    latest = find_latest(path, warn)
    if latest is None:
        raise CheckpointError(
            f"{path}: is neither a checkpoint nor a run folder with checkpoints\n"
            f"  mend: give a folder such as <run_dir>/checkpoints/step_0001000"
        )
    return latest


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Size and SHA-256 of each named file."""
    records = {}
    for name in names:
        digest, size = hashlib.sha256(), 0
        with open(folder / name, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                size += len(block)
        records[name] = FileRecord(size, digest.hexdigest())
    return records


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
        "files": {name: {"size": r.size, "sha256": r.sha256} for name, r in sorted(records.items())},
    }
    with open(temporary / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for name in records:
        _sync(temporary / name)
    _sync(temporary)
    if final.exists():
        remove(final)  # only a damaged checkpoint of a step that was trained again
    temporary.rename(final)
    _sync(final.parent)


def verify(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is missing, of another size, or of another content."""
    records = read_manifest(folder)
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if path.stat().st_size != record.size:
            raise CheckpointError(f"{path}: has {path.stat().st_size:,} bytes, the manifest says {record.size:,}")
    for name, found in hash_files(folder, records).items():
        if found != records[name]:
            raise CheckpointError(f"{folder / name}: its content is not what was written (SHA-256 differs)")


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """The manifest's files. Raises CheckpointError where it is missing, unreadable, or of another step or format."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version, step, files = content["format_version"], content["step"], content["files"]
        records = {name: FileRecord(each["size"], each["sha256"]) for name, each in files.items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing, so the checkpoint was never finished") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: can't be read as a manifest: {error}") from None
    if version != FORMAT_VERSION:
        mend = "use the version of megatron-sky that wrote it, or a newer one"
        raise CheckpointError(
            f"{path}: format_version = {version}; this version reads {FORMAT_VERSION}\n  mend: {mend}"
        )
    match = _NAME.fullmatch(folder.name)
    if match and int(match.group(1)) != step:
        raise CheckpointError(f"{path}: is the manifest of step {step}, not of {folder.name}")
    for name in records:
        if name.startswith("/") or ".." in Path(name).parts:
            raise CheckpointError(f"{path}: names the file {name!r}, which lies outside the checkpoint")
    return records


def prune(run_dir: Path, keep_last: int) -> list[Path]:
    """Deletes all but the newest `keep_last` checkpoints; returns what was deleted."""
    old = [folder for _, folder in list_checkpoints(run_dir)[:-keep_last]]
    for folder in old:
        remove(folder)
    return old


def remove(folder: Path) -> None:
    """Deletes a checkpoint, renamed first so that no reader takes a half-deleted one for whole."""
    doomed = folder.with_name(folder.name + ".deleted")
    if doomed.exists():
        shutil.rmtree(doomed)
    folder.rename(doomed)
    shutil.rmtree(doomed)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
