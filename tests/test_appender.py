"""A file that watches a run: what can't be written waits, is told once, and is written when that is possible again."""

import errno
import os

import pytest

from megatron_sky.appender import Appender


@pytest.fixture
def told():
    return []


@pytest.fixture
def disk(monkeypatch):
    """`disk.room`: bytes that `os.write` still takes (None: all)."""

    class Disk:
        room = None

    write = os.write

    def patched(handle, piece):
        if Disk.room is None:
            return write(handle, piece)
        if not Disk.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = write(handle, piece[: Disk.room])
        Disk.room -= count
        return count

    monkeypatch.setattr("megatron_sky.appender.os.write", patched)
    return Disk


@pytest.mark.parametrize("room", [0, 2, 4])
def test_a_full_disk_is_told_once_and_leaves_no_gap(room, tmp_path, told, disk):
    file = Appender(tmp_path / "new" / "file", told.append)
    file.append(b"one\n")
    disk.room = room
    for piece in (b"two\n", b"three\n", b"four\n"):
        file.append(piece)
    assert told == [f"{file.path}: can't be written, the run goes on without: No space left on device"]
    disk.room = None
    file.append(b"five\n")
    file.append(b"six\n")
    assert file.path.read_bytes() == b"one\ntwo\nthree\nfour\nfive\nsix\n"
    assert told[1:] == [f"{file.path}: can be written again; what was kept back is in it"]
    disk.room = 0
    file.append(b"seven\n")
    assert len(told) == 3
    file.close()
    file.close()
    assert told[3:] == [f"{file.path}: could not be written to the end; 1 pieces are lost"]


def test_what_waits_has_a_limit(tmp_path, told, disk):
    file = Appender(tmp_path / "file", told.append, most=12)
    disk.room = 2
    for number in range(9):
        file.append(b"ab%d\n" % number)
    disk.room = None
    file.append(b"end\n")
    assert file.path.read_bytes() == b"ab0\nab7\nab8\nend\n"  # whole pieces, that which was begun among them
    assert told[-1].endswith("can be written again; 6 pieces are lost")


def test_a_file_that_is_deleted_is_made_anew(tmp_path, told, disk):
    file = Appender(tmp_path / "folder/file", told.append, head=b"head ")
    file.append(b"one\n")
    file.path.unlink()
    file.path.parent.rmdir()
    file.append(b"two\n")
    assert file.path.read_bytes() == b"head two\n"
    disk.room = 2
    file.append(b"three\n")
    file.path.unlink()
    disk.room = None
    file.append(b"four\n")
    assert file.path.read_bytes() == b"head three\nfour\n"  # the one that was begun is written whole
    assert len(told) == 2


def test_what_a_killed_writer_left_is_ended(tmp_path, told):
    path = tmp_path / "file"
    path.write_bytes(b"one\ntw")
    Appender(path, told.append, tail=b"\n").append(b"three\n")
    assert path.read_bytes() == b"one\ntw\nthree\n" and told == []


@pytest.mark.parametrize("opens", [True, False])
def test_a_link_is_not_followed(opens, tmp_path, told):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    file = Appender(tmp_path / "link", told.append)
    if opens:
        with pytest.raises(OSError, match="symbolic links"):
            file.open()
    file.append(b"one\n")
    assert not (tmp_path / "elsewhere").exists() and len(told) == 1
