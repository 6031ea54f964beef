"""Log lines: rank 0 on the screen, every rank in a file of its own.

A record goes from `get_logger(...)` to the root logger and from there to at most two places. The file
`<run_dir>/logs/rank_00000.log` keeps everything: our records, Python warnings, and warnings of other libraries. The
screen (rank 0, standard error) shows our records and other libraries' errors only, since a warning repeated by a
library at every start hides the one line that matters. Screen lines are written through one rich console, so that
they scroll above the progress bar instead of tearing it.
"""

import contextlib
import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from megatron_sky.appender import Appender
from megatron_sky.control import visible
from megatron_sky.errors import RunError

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

ROOT = "megatron_sky"
_MOST_WAITING = 8 << 20  # bytes of a log file that can't be written for a while
_FILE_FORMAT = "%(asctime)s %(levelname)-8s %(name)s: %(message)s"
_SCREEN_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"
_STYLES = ((logging.ERROR, "bold red"), (logging.WARNING, "yellow"))


def get_logger(name: str) -> logging.Logger:
    """The logger of a module (`get_logger(__name__)`), always below `megatron_sky`."""
    return logging.getLogger(name if name == ROOT or name.startswith(ROOT + ".") else f"{ROOT}.{name}")


@functools.cache
def screen() -> "Console":
    """The console that log lines and the progress bar share (standard error)."""
    from rich.console import Console

    class Screen(Console):
        @property
        def file(self) -> IO[str]:
            """The stream behind all that write out control characters: `terminal`'s, and a progress bar's."""
            file: IO[str] = sys.stderr
            while behind := getattr(file, "rich_proxied_file", None):
                file = behind
            return file

        @file.setter
        def file(self, new_file: IO[str]) -> None:
            raise AttributeError("the screen is standard error")

        def render(self, renderable: "RenderableType", options: "ConsoleOptions | None" = None) -> "Iterator[Segment]":
            """Texts with their control characters written out; rich's own codes, to move and to colour, are kept."""
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=visible(segment.text))

        def on_broken_pipe(self) -> None:
            """Who read the screen has gone (`| head`, a killed `tee`): the run and its log files go on without."""
            self.quiet = True

    return Screen(stderr=True, highlight=False)


def say(text: str) -> None:
    """Prints a line on standard error. Where nobody reads that any more, the caller still does what it has to do."""
    with contextlib.suppress(OSError):  # there is no other place to say so
        print(visible(text), file=sys.stderr, flush=True)


def quiet_torch() -> None:
    """Keeps off the screen that torch finds no GPU, said when megatron-core is imported beside a CUDA toolkit.

    The run's own first line names the device. For before torch is imported: torch writes its records by itself.
    """
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("No CUDA runtime is found")


def setup_logging(rank: int, world_size: int, run_dir: Path | None) -> None:
    """Send log records to the screen (rank 0) and to `<run_dir>/logs/rank_*.log` (every rank; none without a run_dir).

    May be called again, for instance once the run folder is known: the earlier call's places are closed and replaced.
    Raises RunError when the log file can't be opened.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _FileHandler | _ScreenHandler)]:
        root.removeHandler(handler)
        handler.close()
    if rank == 0:
        root.addHandler(_ScreenHandler())
    if run_dir is not None:
        root.addHandler(_open_file(Path(run_dir), rank, world_size))
    logging.getLogger(ROOT).setLevel(logging.INFO)
    logging.captureWarnings(True)


def log_traceback(text: str) -> Path | None:
    """Keeps a traceback in this rank's file, whose path is returned; on the screen (None) where it has no file.

    A rank that fails brings down others, whose tracebacks would bury the first cause on the screen.
    """
    file = next((handler for handler in logging.getLogger().handlers if isinstance(handler, _FileHandler)), None)
    get_logger(__name__).error("%s", text, extra={"file_alone": file is not None})
    return None if file is None else file.appender.path


class _Lines(logging.Formatter):
    """Records with their control characters written out, for whoever looks at them in a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


class _FileHandler(logging.Handler):
    """One rank's file, appended to by every attempt. What can't be written waits, and ends nothing."""

    def __init__(self, path: Path):
        super().__init__()
        self.setFormatter(_Lines(_FILE_FORMAT))
        self.appender = Appender(path, say, tail=b"\n", most=_MOST_WAITING)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(self.format(record))
        except Exception:  # the logging module's own rule: tell of it on stderr, never break the caller
            self.handleError(record)

    def write(self, line: str) -> None:
        self.appender.append(f"{line}\n".encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        self.appender.close()
        super().close()


class _ScreenHandler(logging.Handler):
    """Short lines on the screen: our own records, and other libraries' errors."""

    def __init__(self):
        super().__init__()
        self.setFormatter(_Lines(_SCREEN_FORMAT, datefmt="%H:%M:%S"))
        self.addFilter(lambda record: _is_ours(record) or record.levelno >= logging.ERROR)
        self.addFilter(lambda record: not getattr(record, "file_alone", False))

    def emit(self, record: logging.LogRecord) -> None:
        from rich.text import Text

        try:
            style = next((style for level, style in _STYLES if record.levelno >= level), "")
            with contextlib.suppress(OSError):  # a full disk behind a redirected screen: there is no place to say so
                screen().print(Text(self.format(record), style=style), soft_wrap=True)
        except Exception:  # the logging module's own rule: tell of it on stderr, never break the caller
            self.handleError(record)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == ROOT or record.name.startswith(ROOT + ".")


def _open_file(run_dir: Path, rank: int, world_size: int) -> _FileHandler:
    path = run_dir / "logs" / f"rank_{rank:05d}.log"
    handler = _FileHandler(path)
    try:
        handler.appender.open()
    except OSError as error:
        message = f"{path}: can't be opened for writing ({error.strerror}).\n  fix: choose a writable run_dir"
        raise RunError(message) from error
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    handler.write(
        f"===== attempt {started} rank {rank} of {world_size} host {socket.gethostname()} pid {os.getpid()} ====="
    )
    return handler
