"""The run folder: `config.yaml`, `run.json`, and the lock that keeps a second job out.

<run_dir>/config.yaml       the resolved recipe of the latest attempt
          run.json          every attempt: versions, git commit, hosts, layout, command, start
          metrics.jsonl     one line a step, validation or event
          tensorboard/      the same for TensorBoard
          logs/             rank_00000.log ...
          checkpoints/      step_0001000/ ...
          report.html
"""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path

from megatron_sky import __version__
from megatron_sky.checkpoint import store
from megatron_sky.config import Config, dump_config
from megatron_sky.errors import RunError

_LOCK = ".lock"


def prepare(run_dir: Path) -> None:
    """Makes the folder and proves that it can be written. Raises RunError."""
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        probe = run_dir / f".probe_{os.getpid()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise _not_writable(run_dir, error.strerror) from None


def check(run_dir: Path) -> None:
    """Raises RunError where `prepare` would, and makes nothing."""
    for folder in (run_dir, *run_dir.parents):
        try:
            is_folder = stat.S_ISDIR(folder.stat().st_mode)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise _not_writable(run_dir, error.strerror) from None
        if not is_folder or not os.access(folder, os.W_OK | os.X_OK):
            raise _not_writable(run_dir, f"{folder} is {'not writable' if is_folder else 'not a folder'}")
        return


def check_free(run_dir: Path) -> None:
    """`check`, and RunError where another live job has the folder, as `locked` would; takes nothing."""
    check(run_dir)
    if (run_dir / _LOCK).exists():
        handle = os.open(run_dir / _LOCK, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(handle, run_dir) from None
        finally:
            os.close(handle)


def _not_writable(run_dir: Path, reason: str | None) -> RunError:
    return RunError(
        f"train.run_dir = {str(run_dir)!r}: can't be written: {reason}\n"
        f"  fix: choose a folder you may write to (train.run_dir=...), or change its permissions"
    )


@contextlib.contextmanager
def locked(run_dir: Path, warn: Callable[[str], None]) -> Iterator[bool]:
    """Holds the run folder for this job. Raises RunError naming the holder when another live job has it.

    The lock is the kernel's and ends with the process that holds it, so a killed job leaves none behind. False: the
    file system has no locks, so that nothing is known of other jobs.
    """
    path = run_dir / _LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        yield _take(handle, path, warn)
    finally:
        os.close(handle)


def _take(handle: int, path: Path, warn: Callable[[str], None]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(handle, path.parent) from None
    except OSError as error:
        warn(f"{path}: this file system has no locks ({error.strerror}); make sure that no other job uses the folder")
        return False
    job = os.environ.get("SLURM_JOB_ID")
    text = f"pid {os.getpid()} on {socket.gethostname()}" + (f", Slurm job {job}" if job else "")
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{text}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode(), 0)
    return True


def _in_use(handle: int, run_dir: Path) -> RunError:
    holder = os.pread(handle, 4096, 0).decode("utf-8", "replace").strip() or "an unknown process"
    return RunError(
        f"{run_dir}: is in use by a live job: {holder}\n"
        f"  fix: wait for it, stop it, or give this run another train.run_dir"
    )


def sweep(run_dir: Path, tell: Callable[[str], None]) -> None:
    """Deletes what saves and deletions that were cut off have left among the checkpoints. For who holds the lock."""
    for folder in store.leftovers(run_dir):
        try:
            shutil.rmtree(folder)
            tell(f"{folder}: deleted, left by a save or deletion that was cut off")
        except OSError as error:
            tell(f"{folder}: is left over and can't be deleted: {error}")


def describe(
    run_dir: Path, config: Config, *, layout: str, hosts: list[str], device: str, resumed_from: int | None
) -> None:
    """Writes config.yaml and adds this attempt to run.json, or what is known now to the one that Slurm's job began."""
    (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    facts = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "resumed_from_step": resumed_from,
        "layout": layout,
        "hosts": hosts,
        "device": device,
        "versions": versions(),
        "git_commit": _git_commit(),
    }
    attempts = read_attempts(run_dir)
    if attempts and is_begun(attempts[-1], slurm_attempt(os.environ)):
        attempts[-1] = facts | attempts[-1]
    else:
        attempts.append(facts)
    write_attempts(run_dir, attempts)


def slurm_attempt(environ: Mapping[str, str]) -> dict:
    """Which start of which Slurm job this process belongs to: job_id and attempt (from 0); empty outside of Slurm."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    return {"job_id": environ["SLURM_JOB_ID"], "attempt": int(environ.get("SLURM_RESTART_COUNT", "0"))}


def is_begun(told: dict, here: dict) -> bool:
    """Whether `told`, of run.json, is what Slurm's job entered for the attempt `here` before the ranks started."""
    return bool(here) and "layout" not in told and told.get("slurm", {}).items() >= here.items()


def read_attempts(run_dir: Path) -> list[dict]:
    """The attempts that run.json tells, oldest first."""
    path = run_dir / "run.json"
    if path.is_file():
        with contextlib.suppress(ValueError):  # a torn file from a full disk only loses the history of attempts
            return json.loads(path.read_text(encoding="utf-8"))["attempts"]
    return []


def write_attempts(run_dir: Path, attempts: list[dict]) -> None:
    """Replaces run.json in one move."""
    write_json(run_dir / "run.json", {"attempts": attempts})


def write_json(path: Path, value: object) -> None:
    """Writes `value` so that a reader sees the old file or the new one, never a part."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    temporary.rename(path)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a run's numbers; None: not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "megatron_sky": __version__}
    for package in ("megatron-core", "torch", "numpy", "transformer-engine"):
        try:
            found[package] = installed_version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None where it is not a checkout or git is absent."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None
