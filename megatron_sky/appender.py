"""A file that is only appended to, of what watches a run: it may fail, and never ends the run.

What can't be written waits in memory, up to a limit, and is written when that is possible again, so that a disk that
was full for an hour leaves no gap. A file that was deleted is made anew. What failed is told once, and its end too.
"""

import os
from collections import deque
from collections.abc import Callable
from pathlib import Path

MOST_BYTES = 64 << 20  # that wait: some 100,000 steps


class Appender:
    """One file, opened for appending when the first piece comes, or by `open`. A link is not followed."""

    def __init__(
        self, path: Path, tell: Callable[[str], None], *, head: bytes = b"", tail: bytes = b"", most: int = MOST_BYTES
    ):
        """`head` begins a file that is empty. `tail` ends every piece: a file that ends otherwise, as a killed writer
        leaves it, gets one first."""
        self.path, self._tell, self._head, self._tail, self._most = path, tell, head, tail, most
        self._file: int | None = None
        self._waiting: deque[bytes] = deque()
        self._written = 0  # bytes of the first that waits
        self._dropped = 0
        self._failed = False

    def open(self) -> None:
        """Opens the file, made with its folder where they are missing. Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = os.open(self.path, flags, 0o666)
        self._written = 0
        size = os.fstat(self._file).st_size
        if not size and self._head:
            self._waiting.appendleft(self._head)
        elif size and self._tail and os.pread(self._file, len(self._tail), size - len(self._tail)) != self._tail:
            self._waiting.appendleft(self._tail)

    def append(self, piece: bytes) -> None:
        """Writes the piece after all that waits, or has it wait. Raises nothing that a disk can cause."""
        self._waiting.append(piece)
        try:
            self._write()
        except OSError as error:
            self._drop()
            if not self._failed:
                self._tell(f"{self.path}: can't be written, the run goes on without: {error.strerror or error}")
            self._failed = True
            return
        if self._failed:
            lost = f"{self._dropped:,} pieces are lost" if self._dropped else "what was kept back is in it"
            self._tell(f"{self.path}: can be written again; {lost}")
            self._failed, self._dropped = False, 0

    def _write(self) -> None:
        if self._file is None or not self._is_there():
            self._close_file()
            self.open()
        assert self._file is not None, "it was opened"
        while self._waiting:
            piece = self._waiting[0]
            self._written += os.write(self._file, memoryview(piece)[self._written :])
            if self._written >= len(piece):
                self._waiting.popleft()
                self._written = 0

    def _is_there(self) -> bool:
        assert self._file is not None, "who asks has it open"
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._file))

    def _drop(self) -> None:
        """Keeps what waits within its limit: the oldest go, but for the one of which a part is written."""
        size = sum(map(len, self._waiting))
        while size > self._most and len(self._waiting) > 1:
            first = 1 if self._written else 0
            size -= len(self._waiting[first])
            del self._waiting[first]
            self._dropped += 1

    def close(self) -> None:
        """Closes the file; what could not be written is told and lost. Safe to call twice."""
        if self._waiting:
            self._tell(f"{self.path}: could not be written to the end; {len(self._waiting):,} pieces are lost")
            self._waiting.clear()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)
