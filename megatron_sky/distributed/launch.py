"""How processes become ranks: from torchrun's variables, from Slurm's, or as one process alone.

`run_local` starts N processes on this machine, which meet in a file that only this user can read: a port would be open
to all users, and torch's elastic launcher listens to other machines too and unpickles what they say. Each rank that
fails leaves a small file with its cause and the time; the parent names the first cause and its rank last on the screen.
A request to stop (a signal) is handed on to the ranks, at whatever moment it comes: to those that start up as well as
to those to come.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from megatron_sky.distributed.device import share_of_cores
from megatron_sky.distributed.helpers import end_by, killed_by, stop_signals_to, temporary_folder
from megatron_sky.errors import LeftEarly, OutputLost, RankFailed, SkyError
from megatron_sky.files import read_json, read_text, write_json, write_text
from megatron_sky.log import log_traceback, say

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.1
GRACE_SECONDS = 30.0  # that ranks have to end, once one has failed
STORE_FILE = "MEGATRON_SKY_STORE_FILE"  # where the ranks of one machine meet
ERROR_DIR = "MEGATRON_SKY_ERROR_DIR"  # a folder: ranks that fail leave their causes there
TORCH_LOG_LEVEL = "TORCH_CPP_LOG_LEVEL"
HANG_EXIT_CODE = 86  # a rank hung and the watchdog ended the job; starting it again may help
LEFT_EXIT_CODE = LeftEarly.exit_code
_LAUNCHER = "MEGATRON_SKY_LAUNCHER_PID"
_REQUESTS = "leave_requests"  # in the ERROR_DIR of `run_local`: the signals that its ranks were to get, one a line
_pending: list[int] = []  # signals that came before somebody could act on them
_startup_complete = threading.Event()
# Of a Slurm node list: letters of a name, or the first of the numbers in brackets.
_HOST_PART = r"([A-Za-z0-9._-]++)|\[(\d+)(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
# What a rank sees when another one has gone: never the first cause while there is any other.
_SECONDARY = re.compile(r"connection (closed|reset|refused)|broken pipe|gloo|nccl|TCPStore|recvValue|sendBytes", re.I)


@dataclass(frozen=True)
class RankInfo:
    """One process's number in the job and where the job meets (master_addr None: a job of one process).

    `store_file`: the file in which the ranks of `run_local` meet; None: they meet at the address.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_addr: str | None = None
    master_port: int = 0
    from_torchrun: bool = False
    store_file: str | None = None


def rank_info(environ: Mapping[str, str] = os.environ) -> RankInfo:
    """This process's RankInfo, from torchrun's variables, else from Slurm's job step, else one process alone.

    Raises SkyError where a variable is no number, or not one that it can be.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        world_size = _int(environ, "WORLD_SIZE", least=1)
        local_world_size = _int(environ, "LOCAL_WORLD_SIZE", "1", least=1)
        return RankInfo(
            rank=_int(environ, "RANK", below=world_size),
            world_size=world_size,
            local_rank=_int(environ, "LOCAL_RANK", "0", below=local_world_size),
            local_world_size=local_world_size,
            master_addr=environ.get("MASTER_ADDR", LOOPBACK),
            master_port=_port(environ, 29500),
            from_torchrun=STORE_FILE not in environ,
            store_file=environ.get(STORE_FILE),
        )
    # SLURM_STEP_ID is set by srun alone: a batch script without srun is one process, whatever --ntasks says.
    world_size = _int(environ, "SLURM_STEP_NUM_TASKS", "1", least=1) if "SLURM_STEP_ID" in environ else 1
    if world_size > 1:
        nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST", LOOPBACK)
        local_world_size = _tasks_on_node(environ, world_size)
        return RankInfo(
            rank=_int(environ, "SLURM_PROCID", below=world_size),
            world_size=world_size,
            local_rank=_int(environ, "SLURM_LOCALID", below=local_world_size),
            local_world_size=local_world_size,
            master_addr=environ.get("MASTER_ADDR") or first_host(nodes),
            master_port=_port(environ, 20_000 + _int(environ, "SLURM_JOB_ID", "0") % 20_000),
        )
    return RankInfo()


def first_host(nodelist: str) -> str:
    """The first host of a Slurm node list: `n[07-09,12],m1` -> `n07`, `rack[1-2]n[07-09]` -> `rack1n07`."""
    match = re.match(rf"(?:{_HOST_PART})+(?=,|$)", nodelist)
    if match is None:
        raise SkyError(f"SLURM_STEP_NODELIST = {nodelist!r}: is no node list\n  fix: set MASTER_ADDR yourself")
    return "".join(text or first for text, first in re.findall(_HOST_PART, match.group()))


def _tasks_on_node(environ: Mapping[str, str], world_size: int) -> int:
    """Tasks on this node, from `SLURM_STEP_TASKS_PER_NODE` such as `8(x3),4`."""
    counts: list[int] = []
    for part in environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match:
            counts += [int(match.group(1))] * int(match.group(2) or 1)
    node = _int(environ, "SLURM_NODEID", "0")
    return counts[node] if node < len(counts) else world_size


def _port(environ: Mapping[str, str], default: int) -> int:
    return _int(environ, "MASTER_PORT", str(default), least=1, below=1 << 16)


def _int(
    environ: Mapping[str, str], name: str, default: str | None = None, *, least: int = 0, below: int = 1 << 31
) -> int:
    text = environ.get(name, default)
    if text is None or not re.fullmatch(r"[0-9]{1,10}", text):
        raise SkyError(f"environment variable {name} = {text!r}: must be a whole number, as the launcher sets it")
    if not least <= int(text) < below:
        raise SkyError(
            f"environment variable {name} = {text}: must lie in {least} to {below - 1}\n"
            "  fix: it is set by torchrun or srun; start the job by one of them, or unset the variables of the other"
        )
    return int(text)


def run_local(arguments: Sequence[str], nproc: int) -> None:
    """Runs `python -m megatron_sky ARGUMENTS` in `nproc` processes; raises RankFailed with the first cause.

    Where that is a request to stop, its exit code is LEFT_EXIT_CODE.
    """
    hide_failed_lookups()
    with temporary_folder() as folder:
        ranks: list[subprocess.Popen] = []
        requests: list[int] = []
        forward = partial(_forward, folder, ranks, requests)
        with stop_signals_to(forward):
            try:
                for number in pending_stop_signals():
                    forward(number, None)
                for rank in range(nproc):
                    ranks.append(_start(arguments, _environment(rank, nproc, folder)))
                codes = _wait_for_failure(ranks)
            finally:
                _end(ranks)
        if codes:
            raise _failure(folder, codes, requests)


def _environment(rank: int, nproc: int, folder: Path) -> dict[str, str]:
    numbers = {"RANK": rank, "WORLD_SIZE": nproc, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": nproc, _LAUNCHER: os.getpid()}
    own = {name: str(number) for name, number in numbers.items()}
    files = {ERROR_DIR: str(folder), STORE_FILE: str(folder / "store"), "MASTER_ADDR": LOOPBACK}
    return {"OMP_NUM_THREADS": str(share_of_cores(nproc))} | os.environ | own | files


def _start(arguments: Sequence[str], environ: Mapping[str, str]) -> subprocess.Popen:
    """A rank. In a session of its own, so that a key pressed at the terminal reaches it through the launcher alone."""
    command = [sys.executable, "-m", "megatron_sky", *arguments]
    return subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, start_new_session=True)


def _wait_for_failure(ranks: Sequence[subprocess.Popen]) -> dict[int, int]:
    """Exit codes by rank of those that had failed when the first failure was seen; empty where all ended well."""
    while True:
        codes = [process.poll() for process in ranks]
        if any(codes) or None not in codes:
            return {rank: code for rank, code in enumerate(codes) if code}
        time.sleep(POLL_SECONDS)


def _end(ranks: Sequence[subprocess.Popen]) -> None:
    """Asks those that still run to end, and kills what has not after a while."""
    for process in ranks:
        process.terminate()
    end = time.monotonic() + GRACE_SECONDS
    for process in ranks:
        try:
            process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def hide_failed_lookups(environ: MutableMapping[str, str] = os.environ) -> None:
    """Where names can't be looked up, as without a network, has torch not complain of it in every process to come.

    Its C++ side looks up a name for each address that it connects to, if only to log it, loopback's among them. It can
    be told nothing finer than to keep warnings for itself, and only before torch is imported.
    """
    if TORCH_LOG_LEVEL in environ:
        return
    try:
        socket.getnameinfo(("::ffff:127.0.0.1", 0, 0, 0), 0)
    except OSError:  # no name is to be had: that is what was asked
        environ[TORCH_LOG_LEVEL] = "ERROR"


def _forward(folder: Path, ranks: Sequence[subprocess.Popen], requests: list[int], number: int, frame) -> None:
    """Hands a request to stop on to the ranks, those to come as well: they save and end by themselves."""
    requests.append(number)
    with contextlib.suppress(OSError):  # a full disk: the ranks that are there hear of it all the same
        write_text(folder / _REQUESTS, "".join(f"{request}\n" for request in requests))
    for process in ranks:
        process.send_signal(number)


@contextlib.contextmanager
def hold_stop_signals() -> Iterator[None]:
    """For a process that starts up: keeps requests to stop until `pending_stop_signals` is asked for them.

    The third ends it at once, as it would a run.
    """

    def keep(number: int, frame: FrameType | None) -> None:
        _pending.append(number)
        if len(_pending) > 2:
            end_by(number)

    with stop_signals_to(keep):
        yield


def watch_launcher() -> None:
    """Asks this rank to stop when its launcher is gone, which would have told it of the others' end.

    Before `mark_startup_complete` a rank may wait, deaf to signals, for a store that went with the launcher, or for a
    rank that has failed: it ends at once.
    """
    launcher = int(os.environ.get(_LAUNCHER, os.getppid()))
    threading.Thread(target=_watch, args=(launcher,), name="launcher-watch", daemon=True).start()


def mark_startup_complete() -> None:
    """All ranks have met: from now on a request to stop is acted upon."""
    _startup_complete.set()


def _watch(launcher: int) -> None:
    causes = Path(os.environ[ERROR_DIR]) if _LAUNCHER in os.environ else None  # on this machine: looking costs nothing
    while os.getppid() == launcher:
        if causes and not _startup_complete.is_set() and first_cause(causes):
            os._exit(1)
        time.sleep(1)
    say("megatron-sky: the launcher of this rank is gone")
    if not _startup_complete.is_set():
        os._exit(LEFT_EXIT_CODE)
    os.kill(os.getpid(), signal.SIGTERM)


def pending_stop_signals() -> list[int]:
    """The requests to stop that came while this rank started up, its own or its launcher's; given out once."""
    path = Path(os.environ[ERROR_DIR]) / _REQUESTS if ERROR_DIR in os.environ else None
    received = [int(line) for line in read_text(path).split()] if path and path.is_file() else []
    own = _pending[:]
    _pending.clear()
    return max(received, own, key=len)


def guard(work: Callable[[], None], rank: int) -> None:
    """Runs a rank's work. A failure is written down for the parent and ends the process at once, with no collective.

    The traceback of an unforeseen error goes to the rank's log; a SkyError needs none.
    """
    try:
        work()
    except KeyboardInterrupt:
        leave_with(rank, "interrupted", 130)
    except SkyError as error:
        leave_with(rank, str(error), error.exit_code)
    except Exception as error:
        file = log_traceback(traceback.format_exc())
        where = f"\n  its traceback is in {file}" if file else ""
        leave_with(rank, f"{type(error).__name__}: {error}{where}", 1)


def leave_with(rank: int, message: str, exit_code: int) -> None:
    """Ends this process at once, its cause written down for the parent, or on the screen where there is none."""
    folder = os.environ.get(ERROR_DIR)
    if folder and Path(folder).is_dir():
        record = {"rank": rank, "message": message, "exit_code": exit_code, "time": time.time()}
        try:
            write_json(Path(folder) / f"error_{rank:05d}.json", record)
        except OSError as error:  # a full disk: the cause is said here, since the parent will not know it
            say(f"megatron-sky: rank {rank}: {message}\n  ({folder}: can't be written: {error.strerror})")
    else:
        say(f"megatron-sky: rank {rank}: {message}")
    with contextlib.suppress(OSError, OutputLost):  # nobody may be left to read them
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)  # torch's exit handlers may wait for ranks that are gone


def _failure(folder: Path, codes: Mapping[int, int], requests: Sequence[int]) -> RankFailed:
    """The failure that began it: a rank's own error before what followed from it, a killed rank before lost peers.

    `codes`: exit codes by rank of those that failed by themselves.
    """
    cause = first_cause(folder)
    killed = {rank: -code for rank, code in codes.items() if code < 0}
    if cause is None and set(killed.values()) & set(requests):
        return RankFailed(f"stopped by {signal.Signals(requests[0]).name}; nothing was to be saved", LEFT_EXIT_CODE)
    if cause is not None and not cause.is_secondary:
        return RankFailed(cause.message, cause.exit_code)
    if killed:
        rank, number = min(killed.items())
        return RankFailed(f"rank {rank}: {killed_by(number)}", 1)
    if cause is not None:
        return RankFailed(cause.message, cause.exit_code)
    rank, code = min(codes.items())
    return RankFailed(f"rank {rank}: ended with exit code {code}", code)


@dataclass(frozen=True)
class Cause:
    """What a rank said when it ended. A secondary one is what it sees when another rank has gone."""

    message: str
    exit_code: int
    is_secondary: bool


def is_lost_peer(message: str) -> bool:
    """Whether an error says that another rank has gone."""
    return bool(_SECONDARY.search(message.partition("\n")[0]))


def first_cause(folder: Path) -> Cause | None:
    """What ended a job, by its ranks' files in `folder`: the first cause of their own, else the first secondary one."""
    records = [read_json(path) for path in folder.glob("error_*.json")]
    causes = [
        Cause(
            message=f"rank {record['rank']}: {record['message']}",
            exit_code=record["exit_code"],
            is_secondary=record["exit_code"] == 1 and is_lost_peer(record["message"]),
        )
        for record in sorted(records, key=lambda record: record["time"])
    ]
    return min(causes, key=lambda cause: cause.is_secondary, default=None)
