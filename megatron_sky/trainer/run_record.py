"""`run.json`: every attempt of a run, by whom and with what it was started, and under Slurm how it ended. No torch.

The history decides whether a job is started again, so it is never lost in silence: a file that can't be read as a whole
gives what can be read of it, and is kept aside before a new one takes its place.
"""

import itertools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from megatron_sky import __version__, files
from megatron_sky.config import Config, dump_config
from megatron_sky.files import parse_json
from megatron_sky.log import get_logger
from megatron_sky.versions import installed

log = get_logger(__name__)

FILE = "run.json"
_ENDED = {"exit_code": int | None, "step": int, "action": str, "reason": str}


def describe(
    run_dir: Path, config: Config, *, layout: str, hosts: list[str], device: str, resumed_from: int | None
) -> None:
    """Writes config.yaml and adds this attempt to run.json, or what is known now to the one that Slurm's job began."""
    files.write_text(run_dir / "config.yaml", dump_config(config))
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
    attempts = read_attempts(run_dir, log.warning)
    if attempts and is_begun(attempts[-1], slurm_attempt(os.environ)):
        attempts[-1] = facts | attempts[-1]
    else:
        attempts.append(facts)
    write_attempts(run_dir, attempts, log.warning)


def slurm_attempt(environ: Mapping[str, str]) -> dict:
    """Which start of which Slurm job this process belongs to: job_id and attempt (from 0); empty outside of Slurm."""
    if "SLURM_JOB_ID" not in environ:
        return {}
    return {"job_id": environ["SLURM_JOB_ID"], "attempt": int(environ.get("SLURM_RESTART_COUNT", "0"))}


def is_begun(attempt: dict, here: dict) -> bool:
    """Whether `attempt`, of run.json, is what Slurm's job entered for the attempt `here` before the ranks started."""
    return bool(here) and "layout" not in attempt and attempt.get("slurm", {}).items() >= here.items()


def read_attempts(run_dir: Path, warn: Callable[[str], None]) -> list[dict]:
    """The attempts of run.json, oldest first; of a torn one, of which `warn` is told, those before the tear."""
    path = run_dir / FILE
    if not path.is_file():
        return []
    text = _text(path)
    attempts, is_whole = _parse(text)
    if not is_whole:
        warn(f"{path}: is torn, of its attempts {len(attempts)} can be read")
    return attempts


def write_attempts(run_dir: Path, attempts: list[dict], warn: Callable[[str], None]) -> None:
    """Replaces run.json in one move. One that can't be read whole is kept aside, of which `warn` is told."""
    path = run_dir / FILE
    if path.is_file() and not _parse(_text(path))[1]:
        warn(f"{path}: was torn, and is kept as {_set_aside(path).name}")
    files.write_json(path, {"attempts": attempts}, sync=True)


def _text(path: Path) -> str:
    return files.read_bytes(path).decode("utf-8", "replace")


def _parse(text: str) -> tuple[list[dict], bool]:
    """The attempts in `text`, and whether it is whole; otherwise those before the place where it breaks off."""
    try:
        content = parse_json(text)
    except ValueError:
        return _before_the_tear(text), False
    attempts = content.get("attempts") if isinstance(content, dict) else None
    if not isinstance(attempts, list):
        return [], False
    whole = list(itertools.takewhile(is_attempt, attempts))
    return whole, len(whole) == len(attempts)


def is_attempt(given: object) -> bool:
    """Whether what stands for an attempt in a file has the fields that decisions rest on, each of its kind."""
    if not isinstance(given, dict):
        return False
    return _has(given, {"step_before": int, "layout": str, "slurm": dict, "ended": dict}) and (
        _has(
            given.get("slurm", {}), {"job_id": str, "attempt": int, "log": str}, ("job_id",) if "slurm" in given else ()
        )
        and _has(given.get("ended", {}), _ENDED, tuple(_ENDED) if "ended" in given else ())
    )


def _has(given: dict, kinds: dict, needed: tuple[str, ...] = ()) -> bool:
    is_right = all(isinstance(given[name], kind) for name, kind in kinds.items() if name in given)
    return is_right and all(name in given for name in needed) and files.lies_inside(given.get("log", FILE))


def _before_the_tear(text: str) -> list[dict]:
    attempts: list[dict] = []
    decoder = json.JSONDecoder()
    place = text.find("{", text.find("["))
    while place > 0:
        try:
            attempt, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return attempts
        if not is_attempt(attempt):
            return attempts
        attempts.append(attempt)
        place = text.find("{", end)
    return attempts


def _set_aside(path: Path) -> Path:
    """Renames a file to the first free `<name>.torn-1`, `-2`, ..."""
    number = 1
    while (aside := path.with_name(f"{path.name}.torn-{number}")).exists():
        number += 1
    return path.rename(aside)


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide a run's numbers; None: not installed."""
    packages = ("megatron-core", "torch", "numpy", "transformer-engine")
    own = {"python": platform.python_version(), "megatron_sky": __version__}
    return own | {package: installed(package) for package in packages}


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
