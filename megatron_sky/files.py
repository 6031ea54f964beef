"""Files that are written whole, held by one process, and hashed; and JSON that may hold any number.

A file is written beside its place, under a name that nobody can foresee, and then renamed: a reader sees the old file
or the new one, and a link that lies in wait is not followed. A lock is the kernel's: it ends with the process that
holds it, so a killed job leaves none behind, and the helper processes that a holder forks do not keep it.

JSON has no NaN and no infinity; they are written as the strings "nan", "inf" and "-inf".
"""

import contextlib
import errno
import io
import json
import math
import mmap
import os
import re
import secrets
import shutil
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

_TEMPORARY = re.compile(r"\.(.*)\.[0-9a-f]{16}\.tmp")
_LONGEST_STEM = 58  # characters of a name, of up to 4 bytes, in its temporary name, which has at most 255 bytes
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of file systems without locks
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PATIENCE = 0.5  # seconds: another process that only asks whether a lock is free has it for less
_READ_BYTES = 4 << 20
_DIRECT_BYTES = 4 << 20
_DIRECT_PIECES = 4  # in turns: memory that a disk has just read is several times slower to write to
_PIECES_BEHIND = 32  # for the disk to have work while the caller makes more
_O_DIRECT = getattr(os, "O_DIRECT", 0)
MAX_BYTES = 256 << 20
"""Of a file that is read whole: the largest known, a tokenizer's or a shard's index, has a tenth of it."""
_NOT_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


@contextlib.contextmanager
def replacing(path: str | Path, *, sync: bool = False) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of `path` when the block ends, and is deleted when the block raises.

    `sync`: its content, and its new name, are on the disk when the block has ended. Raises OSError.
    """
    path = Path(path)
    temporary = _beside(path, ".tmp")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        with open(handle, "wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            error.filename = str(path)  # a write knows its descriptor alone
        raise
    if sync:
        sync_to_disk(path.parent)


@contextlib.contextmanager
def replacing_by_name(path: str | Path, ending: str = ".tmp") -> Iterator[str]:
    """`replacing` for a library that writes to a path alone, and goes by its `ending`: that path."""
    path = Path(path)
    temporary = _beside(path, ending)
    try:
        yield str(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f".{path.name[:_LONGEST_STEM]}.{secrets.token_hex(8)}{ending}")


def write_bytes(path: str | Path, content: bytes, *, sync: bool = False) -> None:
    """Writes a file, whole or not at all. Raises OSError."""
    with replacing(path, sync=sync) as file:
        file.write(content)


def write_text(path: str | Path, text: str, *, sync: bool = False) -> None:
    """Writes a file in UTF-8, whole or not at all; what has no such form, as in a folder's name, becomes a `?`.

    Raises OSError.
    """
    write_bytes(path, text.encode("utf-8", "replace"), sync=sync)


def write_json(path: str | Path, value: object, *, indent: int | None = 1, sync: bool = False) -> None:
    """Writes `value` as JSON, whole or not at all. Raises OSError."""
    text = json_text(value, indent=indent) + "\n"
    write_bytes(path, text.encode("utf-8", "backslashreplace"), sync=sync)  # JSON's own escape, of a file's odd name


def open_regular(path: str | Path) -> BinaryIO:
    """A file to read. Raises OSError, also for a pipe or a device, which may have no end or never begin."""
    return open(open_handle(path), "rb")


def open_handle(path: str | Path) -> int:
    """A descriptor to read a file by. Raises OSError as `open_regular` does."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        code = errno.EISDIR if stat.S_ISDIR(os.fstat(handle).st_mode) else errno.EINVAL
        os.close(handle)
        raise OSError(code, os.strerror(code) if code == errno.EISDIR else "is no regular file", str(path))
    return handle


def read_bytes(path: str | Path, limit: int = MAX_BYTES) -> bytes:
    """A whole file. Raises OSError, also where it has more than `limit` bytes, which an honest one does not have."""
    with open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"has more than {limit:,} bytes", str(path))
    return content


def read_text(path: str | Path, limit: int = MAX_BYTES) -> str:
    """A whole file of UTF-8. Raises OSError as `read_bytes` does, and ValueError where it is not UTF-8."""
    return io.TextIOWrapper(io.BytesIO(read_bytes(path, limit)), encoding="utf-8").read()


Pairs = list[tuple[str, Any]]


def read_json(
    path: str | Path, limit: int = MAX_BYTES, *, object_pairs_hook: Callable[[Pairs], object] | None = None
) -> Any:
    """What a file of JSON holds. Raises OSError as `read_bytes` does, and ValueError where it is no JSON."""
    return parse_json(read_text(path, limit), object_pairs_hook=object_pairs_hook)


def parse_json(
    text: str | bytes,
    *,
    object_pairs_hook: Callable[[Pairs], object] | None = None,
    parse_int: Callable[[str], object] | None = None,
) -> Any:
    """`json.loads` that raises ValueError alone, also for what is nested without end."""
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook, parse_int=parse_int)
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def lies_inside(name: str) -> bool:
    """Whether a name that a file gives for another one leads to nowhere but into the folder that it speaks of."""
    path = PurePosixPath(name)
    try:
        is_name = bool(path.parts) and "\0" not in name and all(len(os.fsencode(part)) <= 255 for part in path.parts)
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can hold
        return False
    return is_name and not path.is_absolute() and ".." not in path.parts


def not_a_link(path: str, flags: int) -> int:
    """`opener` for `open`: OSError where the file is a symbolic link."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def real_path(path: str | Path) -> Path:
    """The path without links. Of links that lead in a circle, `Path.resolve` makes a RuntimeError before Python 3.13;
    here they stay as they are, and whoever opens them gets the OSError.
    """
    return Path(os.path.realpath(path))


def stays_inside(path: str | Path, home: str | Path) -> bool:
    """Whether no link leads `path` out of the folder `home`, which may be reached by links itself."""
    return real_path(path).is_relative_to(real_path(home))


def check_inside(path: str | Path, home: str | Path) -> None:
    """Raises OSError where `path` does not lie in the folder `home`, as `stays_inside` sees it."""
    if not stays_inside(path, home):
        raise OSError(errno.ELOOP, "is a link out of its folder", str(path))


def is_foreign_link(path: str | Path) -> bool:
    """Whether `path` is a symbolic link that neither this user nor root has made."""
    try:
        status = os.lstat(path)
    except OSError:
        return False  # whoever opens it is told why it can't be
    return stat.S_ISLNK(status.st_mode) and status.st_uid not in (os.geteuid(), 0)


def remove_tree(path: Path) -> None:
    """Deletes a folder with all that it holds; of a link, the link alone. Raises OSError."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


def leftovers(path: str | Path) -> list[Path]:
    """Unfinished files that stand beside `path` to take its place: of killed processes, where none writes it now."""
    path = Path(path)
    stem = path.name[:_LONGEST_STEM]
    matches = [(_TEMPORARY.fullmatch(file.name), file) for file in path.parent.iterdir()]
    return sorted(file for match, file in matches if match and match.group(1) == stem)


def remove_leftovers(path: str | Path) -> None:
    """Deletes the `leftovers` of `path`. For who alone writes it."""
    for file in leftovers(path):
        file.unlink(missing_ok=True)


def sync_to_disk(path: str | Path) -> None:
    """Flushes a file or a folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class DirectWriter(io.RawIOBase):
    """A new file to write from its begin to its end, past the page cache where the file system can do that.

    Large files cost a small part of the processor's time so, and push nothing else out of memory. `seen` is given all
    that is written, in order; `behind`: by a thread, which also writes, and what it raises comes with a later call.
    Raises OSError.
    """

    def __init__(self, path: str | Path, seen: Callable[[memoryview], object], *, behind: bool = False):
        self._handle, self._seen = _open_direct(path), seen
        self._thread, self._pending = ThreadPoolExecutor(max_workers=1) if behind else None, deque[Future]()
        self._pieces = _PIECES_BEHIND if behind else _DIRECT_PIECES
        self._buffer = memoryview(mmap.mmap(-1, self._pieces * _DIRECT_BYTES))  # at the begin of a page, as is asked
        self._begin = self._held = self._size = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data) -> int:
        view = memoryview(data).cast("B")
        length = len(view)
        while view:
            count, begin = min(len(view), _DIRECT_BYTES - self._held), self._begin + self._held
            self._buffer[begin : begin + count] = view[:count]
            view, self._held = view[count:], self._held + count
            if self._held == _DIRECT_BYTES:
                self._put()
        self._size += length
        return length

    def fileno(self) -> int:
        """Its descriptor, once all that was written is the system's, as who asks for it is about to flush."""
        self._put()
        self._wait(0)
        return self._handle

    def close(self) -> None:
        if not self.closed:
            try:
                self._put()
                self._wait(0)
            finally:
                if self._thread is not None:
                    self._thread.shutdown(cancel_futures=True)
                os.close(self._handle)
                super().close()

    def _put(self) -> None:
        piece = self._buffer[self._begin : self._begin + self._held]
        self._begin, self._held = (self._begin + _DIRECT_BYTES) % len(self._buffer), 0
        if self._thread is None:
            self._store(piece)
        else:
            self._pending.append(self._thread.submit(self._store, piece))
            self._wait(self._pieces - 1)

    def _wait(self, most: int) -> None:
        while len(self._pending) > most:
            self._pending.popleft().result()

    def _store(self, piece: memoryview) -> None:
        with piece as held:
            self._seen(held)
            if len(held) % mmap.PAGESIZE:
                _through_cache(self._handle)
            written = 0
            while written < len(held):
                written += self._put_part(held[written:])

    def _put_part(self, part: memoryview) -> int:
        try:
            return os.write(self._handle, part)
        except OSError as error:
            if error.errno != errno.EINVAL or not _through_cache(self._handle):
                raise
            return os.write(self._handle, part)


def _open_direct(path: str | Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    try:
        return os.open(path, flags | _O_DIRECT, 0o666)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags, 0o666)  # a file system that knows no other way than through the cache


def _through_cache(handle: int) -> bool:
    """Lets a file be written through the page cache from now on; False where it is already."""
    import fcntl

    flags = fcntl.fcntl(handle, fcntl.F_GETFL)
    fcntl.fcntl(handle, fcntl.F_SETFL, flags & ~_O_DIRECT)
    return bool(flags & _O_DIRECT)


class InUse(Exception):
    """Another live process holds a file."""


@contextlib.contextmanager
def hold(path: str | Path, warn: Callable[[str], None], *, note: str = "", remove: bool = False) -> Iterator[bool]:
    """Holds the lock file `path`, made where it is missing and emptied otherwise, for this process alone.

    `note` becomes its content, for others to read who holds it; `remove`: it is deleted when the block ends. False:
    the file system has no locks, which `warn` is told; nothing is known of other processes then. Raises InUse, and
    OSError where the file can't be opened for writing.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    path.parent.stat()  # the library would make the folder
    write_note = (lambda handle: _replace_content(handle, note)) if note else None
    lock = FileLock(path, timeout=_PATIENCE, thread_local=False, fallback_to_soft=False, on_acquired=write_note)
    try:
        lock.acquire()
    except Timeout:
        raise InUse(f"{path}: another live process holds it") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warn(f"{path}: this file system has no locks ({error.strerror}); make sure that nothing else uses it")
        yield False
        return
    try:
        yield True
    finally:
        if remove:
            path.unlink(missing_ok=True)  # while it is held: who waits for it sees that, and makes it anew
        lock.release()


_held_folders: set[int] = set()


@contextlib.contextmanager
def hold_folder(path: str | Path) -> Iterator[None]:
    """Holds a folder itself, for who holds a lock file in it too, which anybody may delete.

    Raises InUse where another live process of a machine that sees the lock has it; does nothing where the file system
    has no locks of folders (NFS).
    """
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _held_folders.add(handle)
    try:
        end = time.monotonic() + _PATIENCE
        while not _lock_folder(handle):
            if time.monotonic() > end:
                raise InUse(f"{path}: another live process holds it")
            time.sleep(0.02)
        yield
    finally:
        if handle in _held_folders:  # and not in a fork, which has closed it
            _held_folders.remove(handle)
            os.close(handle)


def _lock_folder(handle: int) -> bool:
    """False where another process has it."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this file system has no locks of folders
        return True
    return True


def _let_go_of_folders() -> None:
    """In a fork: it would keep what its parent holds."""
    while _held_folders:
        os.close(_held_folders.pop())


os.register_at_fork(after_in_child=_let_go_of_folders)


def _replace_content(handle: int, text: str) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{text}\n".encode(), 0)


def hash_range(path: str | Path, start: int = 0, size: float = math.inf) -> str:
    """XXH3 (128 bits, as hex) of `size` bytes of a file from `start` on, or of those that it has there."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open_regular(path) as file:
        file.seek(start)
        while size > 0 and (piece := file.read(int(min(size, _READ_BYTES)))):
            digest.update(piece)
            size -= len(piece)
    return digest.hexdigest()


def json_text(value: object, *, indent: int | None = None) -> str:
    """`value` as JSON, in which `read_numbers` finds every number again."""
    return json.dumps(_plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def _plain(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def read_numbers(value: object) -> object:
    """`value`, from JSON, with numbers for the strings "nan", "inf" and "-inf"."""
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {name: read_numbers(item) for name, item in value.items()}
    return [read_numbers(item) for item in value] if isinstance(value, list) else value
