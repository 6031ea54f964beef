"""The run folder, and the lock that keeps a second job out.

<run_dir>/config.yaml       the resolved recipe of the latest attempt
          run.json          every attempt: versions, git commit, hosts, layout, command, start (`run_record`)
          metrics.jsonl     one line a step, validation or event
          tensorboard/      the same for TensorBoard
          logs/             rank_00000.log ...
          checkpoints/      step_0001000/ ...
          report.html
"""

import contextlib
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from megatron_sky import files
from megatron_sky.checkpoint import store
from megatron_sky.errors import RunError
from megatron_sky.trainer import run_record

_LOCK = ".lock"
_FOLDERS = ("checkpoints", "logs", "tensorboard", "profile", "bad_steps", "slurm", "index_cache", "wandb", "eval")


def prepare(run_dir: Path) -> None:
    """Makes the folder and checks that it can be written. Raises RunError."""
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = run_dir / ".probe"
        files.write_bytes(probe, b"")
        probe.unlink(missing_ok=True)  # another rank may have taken it away
    except OSError as error:
        raise _not_writable(run_dir, error.strerror) from None


def check(run_dir: Path) -> None:
    """Raises RunError where `prepare` would, and makes nothing; also where another user has put a link into the folder,
    through which the run would write."""
    for name in _FOLDERS:
        if files.is_foreign_link(run_dir / name):
            raise _not_writable(run_dir, f"{run_dir / name} is a link that another user made")
    for folder in (run_dir, *run_dir.parents):
        try:
            is_folder = stat.S_ISDIR(folder.stat().st_mode)
        except FileNotFoundError:  # it will be made, in the next folder up that is there
            continue
        except OSError as error:
            raise _not_writable(run_dir, error.strerror) from None
        if not is_folder or not os.access(folder, os.W_OK | os.X_OK):
            raise _not_writable(run_dir, f"{folder} is {'not writable' if is_folder else 'not a folder'}")
        return


def check_free(run_dir: Path) -> None:
    """`check`, and RunError where another live job has the folder, as `locked` would; takes nothing."""
    check(run_dir)
    with contextlib.ExitStack() as stack:
        if run_dir.is_dir():
            _hold_folder(run_dir, stack)
        if (run_dir / _LOCK).exists():
            _hold_file(run_dir, stack, lambda _: None)


def _not_writable(run_dir: Path, reason: str | None) -> RunError:
    return RunError(
        f"train.run_dir = {str(run_dir)!r}: can't be written: {reason}\n"
        f"  fix: choose a folder you may write to (train.run_dir=...), or change its permissions"
    )


class Lock:
    """The lock of a run folder, as a job holds it. `is_held`: False where the file system has no locks, so that nothing
    is known of other jobs."""

    def __init__(self, run_dir: Path, stack: contextlib.ExitStack, warn: Callable[[str], None]):
        self._run_dir, self._stack, self._warn = run_dir, stack, warn
        _hold_folder(run_dir, stack)
        self._hold_file()

    def _hold_file(self) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        holder = f"pid {os.getpid()} on {socket.gethostname()}" + (f", Slurm job {job}" if job else "")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self.is_held = _hold_file(self._run_dir, self._stack, self._warn, f"{holder}, since {since}")
        self._identity = self._file()

    def _file(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._run_dir / _LOCK)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def check(self) -> None:
        """Takes the lock anew where its file was deleted. Raises RunError where another job has taken it meanwhile."""
        if not self.is_held or self._file() == self._identity:
            return
        try:
            self._hold_file()
        except RunError as error:
            raise RunError(
                f"{self._run_dir / _LOCK} was deleted while this job ran, which ends here: {error}"
            ) from None
        self._warn(f"{self._run_dir / _LOCK} was deleted while this job runs; it is made anew and held")


@contextlib.contextmanager
def locked(run_dir: Path, warn: Callable[[str], None]) -> Iterator[Lock]:
    """Holds the run folder for this job. Raises RunError naming the holder when another live job has it.

    The lock ends with the process that holds it, so a killed job leaves none behind. It is two: of the folder, where
    the file system can, and of a file in it, which is seen from other machines and names the holder.
    """
    with contextlib.ExitStack() as stack:
        yield Lock(run_dir, stack, warn)


def _hold_folder(run_dir: Path, stack: contextlib.ExitStack) -> None:
    try:
        stack.enter_context(files.hold_folder(run_dir))
    except files.InUse:
        raise _in_use(run_dir) from None
    except OSError as error:
        raise _not_writable(run_dir, error.strerror) from None


def _hold_file(run_dir: Path, stack: contextlib.ExitStack, warn: Callable[[str], None], note: str = "") -> bool:
    try:
        return stack.enter_context(files.hold(run_dir / _LOCK, warn, note=note))
    except files.InUse:
        raise _in_use(run_dir) from None
    except OSError as error:
        raise _not_writable(run_dir, f"{_LOCK}: {error.strerror}") from None


def _in_use(run_dir: Path) -> RunError:
    path = run_dir / _LOCK
    note = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    holder = note or f"a process of this machine, whose {_LOCK} was deleted"
    return RunError(
        f"{run_dir}: is in use by a live job: {holder}\n"
        f"  fix: wait for it, stop it, or give this run another train.run_dir"
    )


def sweep(run_dir: Path, tell: Callable[[str], None]) -> None:
    """Deletes what saves and deletions that were cut off have left among the checkpoints. For who holds the lock."""
    files.remove_leftovers(run_dir / run_record.FILE)
    for folder in store.leftovers(run_dir):
        try:
            files.remove_tree(folder)
            tell(f"{folder}: deleted, left by a save or deletion that was cut off")
        except OSError as error:
            tell(f"{folder}: is left over and can't be deleted: {error}")
