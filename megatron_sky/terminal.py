"""Standard output and standard error of the verbs: the one edge at which texts leave for a terminal or a pipe.

What a verb prints may hold names and texts of files that strangers made. Here their control characters are written out,
whoever prints, and so is what the stream's encoding has no form for (a Chinese path where PYTHONIOENCODING is ascii). A
path whose name is no UTF-8 is printed as it is, but for bytes that a terminal may obey. Our own styling reaches the
terminal all the same: rich draws on the stream behind, which it finds as `rich_proxied_file`, and `log.screen` writes
out the control characters of what it draws.

Output that nobody takes (a full disk, a pipe whose reader has gone) is one line and an exit code.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from megatron_sky.control import visible
from megatron_sky.errors import OutputLost

_STANDARD = (0, 1, 2)  # file descriptors of input, output and error


class _Shown:
    """A standard stream that writes out control characters. It has no `buffer`, by which libraries would go around it.

    `is_output`: a failed write is an OutputLost, and every one after it, since libraries try streams and swallow that.
    """

    def __init__(self, stream: TextIO, *, is_output: bool):
        self.rich_proxied_file = stream
        self._stream, self._is_output = stream, is_output
        self._lost: OutputLost | None = None

    def __getattr__(self, name: str) -> object:
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        shown = visible(text)
        with self._failures_told():
            try:
                self._stream.write(shown)
            except UnicodeEncodeError as error:
                self._stream.write(shown.encode(error.encoding, "backslashreplace").decode(error.encoding))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._failures_told():
            self._stream.flush()

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        if self._lost:
            raise self._lost
        try:
            yield
        except OSError as error:
            if not self._is_output:
                raise
            _send_nowhere(self._stream)
            fix = "send it where there is room and somebody reads it, and run the command again"
            self._lost = OutputLost(f"standard output can't be written: {error.strerror}\n  fix: {fix}")
            raise self._lost from None


def _send_nowhere(stream: TextIO) -> None:
    """What the stream still holds, and what comes, would fail again, at the latest when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def shown_output() -> Iterator[None]:
    """Inside, standard output and standard error are such streams."""
    _open_closed()
    before = sys.stdout, sys.stderr
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.stdout, sys.stderr = _Shown(before[0], is_output=True), _Shown(before[1], is_output=False)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _open_closed() -> None:
    """Of a process begun with `>&-`: the next file that it opens would be its standard output.

    What is printed there fails, as it does on a full disk: the descriptor is one to read from.
    """
    for descriptor in _STANDARD:
        try:
            os.fstat(descriptor)
        except OSError:  # it is closed
            os.open(os.devnull, os.O_RDONLY)  # takes the lowest that is free
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 (as long as the process)
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
