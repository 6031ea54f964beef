"""Checkpoint folders: their names, what makes one whole, which is the latest, which to delete. No torch.

A checkpoint is written into `step_0001000.tmp`. When every file is there, a manifest with the size and hash of each is
added and the folder is renamed to `step_0001000`. So a folder under that name was whole once, and `find_latest`
checks that it still is: a damaged one is named and the one before it is used.
"""

import hashlib
import heapq
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import xxhash

from megatron_sky.errors import CheckpointError
from megatron_sky.files import (
    is_foreign_link,
    lies_inside,
    read_json,
    remove_tree,
    stays_inside,
    sync_to_disk,
    write_json,
)
from megatron_sky.records import read_record

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
TRAIN_STATE = "train_state.json"
_NAME = re.compile(r"step_(\d{7,})")
_LEFTOVER = re.compile(r"step_\d{7,}\.(tmp|deleted)")
_BLOCK = 1 << 22
Algorithm = Literal["sha256", "xxh3"]


class UnreadableHere(CheckpointError):
    """A checkpoint that may be whole and can't be read: of a newer format, or out of a node's sight.

    It is not passed over like a damaged one: going on from an older one would throw its steps away.
    """


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: its size in bytes and its hash as hex, XXH3 (128 bits, quick) or SHA-256."""

    size: int
    sha256: str | None = None
    xxh3: str | None = None

    def to_dict(self) -> dict:
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class _Manifest:
    """manifest.json."""

    format_version: Literal[1]
    step: int
    files: dict[str, FileRecord]


def folder_of(run_dir: Path, step: int) -> Path:
    """`<run_dir>/checkpoints/step_0001000`."""
    return run_dir / "checkpoints" / f"step_{step:07d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder of a run, from its name."""
    match = _NAME.fullmatch(folder.name)
    assert match, f"{folder} is no checkpoint of a run"
    return int(match.group(1))


def list_checkpoints(run_dir: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every finished checkpoint of a run, oldest first, not verified. Raises CheckpointError."""
    root = run_dir / "checkpoints"
    try:
        folders = [folder for folder in root.iterdir() if folder.is_dir()] if root.is_dir() else []
    except OSError as error:
        raise CheckpointError(f"{root}: can't be read: {error.strerror}") from error
    if foreign := [folder for folder in folders if _NAME.fullmatch(folder.name) and is_foreign_link(folder)]:
        raise CheckpointError(f"{foreign[0]}: is a link that another user made\n  fix: remove it, or make it yourself")
    return sorted((step_of(folder), folder) for folder in folders if _NAME.fullmatch(folder.name))


def check_sizes(folder: Path) -> dict[str, FileRecord]:
    """The manifest's files; raises CheckpointError naming the first that is missing or has another size."""
    records = read_manifest(folder)
    for name, record in records.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path}: is missing")
        if not stays_inside(path, folder):
            raise CheckpointError(f"{path}: is a link out of the checkpoint\n  fix: put the file itself there")
        if path.stat().st_size != record.size:
            raise CheckpointError(f"{path}: has {path.stat().st_size:,} bytes, the manifest says {record.size:,}")
    return records


def check_hashes(folder: Path, records: Mapping[str, FileRecord]) -> None:
    """Raises CheckpointError naming the first of these files that can't be read or has another content."""
    actual: dict[str, FileRecord] = {}
    for algorithm in get_args(Algorithm):
        names = [name for name, record in records.items() if getattr(record, algorithm)]
        try:
            actual |= hash_files(folder, names, algorithm)
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: can't be read: {error.strerror}") from error
    for name, record in records.items():
        if actual[name] != record:
            raise CheckpointError(f"{folder / name}: its content is not what was written (its hash differs)")


def verify(folder: Path) -> None:
    """Raises CheckpointError naming the first file that is missing, of another size, or of another content."""
    check_hashes(folder, check_sizes(folder))


def find_latest(run_dir: Path, warn: Callable[[str], None], *, check: Callable[[Path], object] = verify) -> Path | None:
    """The newest checkpoint of a run that is whole, see `newest_whole`.

    One that is deleted while it is looked at, as a training's retention does, is no damaged one: the newer ones that
    there are then are looked at instead.
    """
    while True:
        folders = [folder for _, folder in list_checkpoints(run_dir)]
        try:
            return newest_whole(folders, warn, check=partial(_check_unless_gone, check))
        except _Gone as gone:
            warn(f"{gone.folder} was deleted while it was looked at; taking the newest that is there now")


class _Gone(Exception):
    def __init__(self, folder: Path):
        self.folder = folder


def _check_unless_gone(check: Callable[[Path], object], folder: Path) -> None:
    try:
        check(folder)
    except CheckpointError:
        if not folder.exists():
            raise _Gone(folder) from None
        raise


def newest_whole(
    folders: Sequence[Path], warn: Callable[[str], None], *, check: Callable[[Path], object]
) -> Path | None:
    """The last of a run's checkpoints, oldest first, that passes `check` (`verify`, or the quick `check_sizes`).

    `warn` is told of each that does not. None: there is none. Raises CheckpointError when there are checkpoints but all
    are damaged: starting over would hide the loss.
    """
    for folder in reversed(folders):
        try:
            check(folder)
        except UnreadableHere:
            raise
        except CheckpointError as error:
            warn(f"skipping a damaged checkpoint: {error}")
        else:
            return folder
    if folders:
        raise CheckpointError(
            f"{folders[0].parent}: none of its {len(folders)} checkpoints is whole\n"
            f"  fix: restore one from a copy, or start again in another run folder"
        )
    return None


def resolve(path: Path, warn: Callable[[str], None], *, check: Callable[[Path], object] = verify) -> Path:
    """The checkpoint folder that `path` means: itself, or the latest of the run folder it is; it passes `check`."""
    if is_checkpoint(path):
        check(path)
        return path
    latest = find_latest(path, warn, check=check)
    if latest is None:
        raise holds_none(path)
    return latest


def is_checkpoint(path: Path) -> bool:
    """Whether `path` is a checkpoint's folder, not a run's."""
    return (path / MANIFEST).is_file()


def holds_none(path: Path) -> CheckpointError:
    """The error for a path that means no checkpoint."""
    return CheckpointError(
        f"{path}: is neither a checkpoint nor a run folder with checkpoints\n"
        f"  fix: give a folder such as <run_dir>/checkpoints/step_0001000"
    )


def hash_files(folder: Path, names: Iterable[str], algorithm: Algorithm = "sha256") -> dict[str, FileRecord]:
    """Size and hash (`sha256` or `xxh3`) of each named file, a few files at once."""
    names = list(names)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: _hash_file(folder / name, algorithm), names), strict=True))


def _hash_file(path: Path, algorithm: Algorithm) -> FileRecord:
    size, digest = size_and_hash(path, algorithm)
    return FileRecord(size, **{algorithm: digest})


def size_and_hash(path: Path, algorithm: Algorithm) -> tuple[int, str]:
    """A file's bytes, and their hash as hex."""
    digest = hashlib.sha256() if algorithm == "sha256" else xxhash.xxh3_128()
    size, block = 0, memoryview(bytearray(_BLOCK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
    return size, digest.hexdigest()


def files_of(folder: Path) -> list[str]:
    """Names of all files of a checkpoint but the manifest, relative to it, sorted."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST
    )


def unlisted(folder: Path) -> list[str]:
    """Files that lie in a checkpoint and that its manifest does not list: nobody verifies them."""
    return sorted(set(files_of(folder)) - read_manifest(folder).keys())


def sizes_of(folder: Path) -> dict[str, int]:
    """The size of each of `files_of`, in bytes."""
    return {name: (folder / name).stat().st_size for name in files_of(folder)}


def share_of(sizes: Mapping[str, int], rank: int, world_size: int) -> list[str]:
    """The files that are `rank`'s when `world_size` ranks share them out by their bytes; every file is one rank's."""
    loads = [(0, owner) for owner in range(world_size)]
    share = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        load, owner = loads[0]  # who has the least so far
        heapq.heapreplace(loads, (load + sizes[name], owner))
        if owner == rank:
            share.append(name)
    return share


def finish(temporary: Path, final: Path, step: int, records: dict[str, FileRecord]) -> None:
    """Writes the manifest and renames the folder into place, each flushed to disk before the next."""
    write_json(temporary / MANIFEST, manifest_of(step, records), sync=True)
    for name in records:
        sync_to_disk(temporary / name)
    sync_to_disk(temporary)
    # A damaged checkpoint of a step that was trained again, or a link in its place.
    aside = _set_aside(final) if os.path.lexists(final) else None
    temporary.rename(final)
    sync_to_disk(final.parent)
    if aside is not None:
        remove_tree(aside)


def manifest_of(step: int, records: dict[str, FileRecord]) -> dict:
    """The content of a manifest."""
    files = {name: record.to_dict() for name, record in sorted(records.items())}
    return {"format_version": FORMAT_VERSION, "step": step, "files": files}


def read_manifest(folder: Path) -> dict[str, FileRecord]:
    """The manifest's files. Raises CheckpointError where it is missing, unreadable, or of another step or format."""
    path = folder / MANIFEST
    try:
        content = read_json(path)
        version = content.get("format_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version != FORMAT_VERSION:
            fix = "use the version of megatron-sky that wrote it, or a newer one"
            raise UnreadableHere(
                f"{path}: format_version = {version}; this version reads {FORMAT_VERSION}\n  fix: {fix}"
            )
        manifest = read_record(_Manifest, content)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing, so the checkpoint was never finished") from None
    except (OSError, ValueError) as error:
        fix = "restore the folder from a copy, or delete it: a run goes on from the checkpoint before"
        raise CheckpointError(f"{path}: can't be read as a manifest: {error}\n  fix: {fix}") from None
    match = _NAME.fullmatch(folder.name)
    if match and int(match.group(1)) != manifest.step:
        raise CheckpointError(f"{path}: is the manifest of step {manifest.step}, not of {folder.name}")
    for name, record in manifest.files.items():
        if not lies_inside(name):
            raise CheckpointError(f"{path}: names the file {name!r}, which lies outside the checkpoint")
        if not record.sha256 and not record.xxh3:
            raise CheckpointError(f"{path}: files.{name} has neither a sha256 nor an xxh3 to verify it by")
    if TRAIN_STATE not in manifest.files:
        raise CheckpointError(f"{path}: files has no {TRAIN_STATE}, which every checkpoint has: it vouches for nothing")
    return manifest.files


def consumed_tokens(folder: Path) -> int:
    """The consumed tokens of a checkpoint, from its train_state.json."""
    path = folder / TRAIN_STATE
    try:
        return int(read_json(path)["progress"]["consumed_tokens"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
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
    counted = _counted(run_dir, newest, warn)
    kept = {folder for _, folder in counted[-keep_last:]}
    reached = 0
    for tokens, folder in counted:
        due = any(reached < mark <= tokens for mark in marks)
        if keep_every_tokens and tokens // keep_every_tokens > reached // keep_every_tokens:
            due = True
        if due:
            kept.add(folder)
        reached = tokens
    return [folder for _, folder in counted if folder not in kept]


def _counted(run_dir: Path, newest: int, warn: Callable[[str], None]) -> list[tuple[int, Path]]:
    """(consumed tokens, folder) of the checkpoints up to step `newest` whose files have their sizes, oldest first."""
    counted = []
    for folder in [folder for step, folder in list_checkpoints(run_dir) if step <= newest]:
        try:
            check_sizes(folder)
            counted.append((consumed_tokens(folder), folder))
        except (CheckpointError, OSError) as error:
            warn(f"retention passes over a damaged checkpoint, which stays: {error}")
    return counted


def leftovers(run_dir: Path) -> list[Path]:
    """Folders that saves and deletions which were cut off have left.

    A live save writes into such a folder until it is whole: only who holds the run folder may sweep them.
    """
    root = run_dir / "checkpoints"
    return sorted(path for path in root.iterdir() if _LEFTOVER.fullmatch(path.name)) if root.is_dir() else []


def remove(folder: Path) -> None:
    """Deletes a checkpoint, renamed first so that no reader takes a half-deleted one for whole."""
    remove_tree(_set_aside(folder))


def _set_aside(folder: Path) -> Path:
    doomed = folder.with_name(folder.name + ".deleted")
    if os.path.lexists(doomed):
        remove_tree(doomed)
    folder.rename(doomed)
    return doomed
