import errno
import json
import math
import multiprocessing
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xxhash

from megatron_sky import files


def names_in(folder):
    return sorted(os.listdir(folder))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "one\n")
    with pytest.raises(KeyboardInterrupt), files.replacing(path) as file:
        file.write(b"tw")
        assert path.read_text() == "one\n"
        raise KeyboardInterrupt
    assert path.read_text() == "one\n" and names_in(tmp_path) == ["a.json"]
    with files.replacing(path, sync=True) as file:
        file.write(b"two\n")
    assert path.read_text() == "two\n" and names_in(tmp_path) == ["a.json"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); from megatron_sky import files;"
        f"files.write_bytes({str(path)!r}, bytes(1000))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (
        f"File too large: {str(path)!r}" in done.stderr
        and path.read_text() == "old"
        and names_in(tmp_path) == ["a.txt"]
    )


def test_a_new_file_has_the_usual_permissions_and_follows_no_link(tmp_path):
    umask = os.umask(0o027)
    try:
        files.write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    files.write_text(tmp_path / "link", "mine")
    assert (tmp_path / "theirs").read_text() == "theirs" and (tmp_path / "link").read_text() == "mine"


def test_a_temporary_name_is_not_foreseen_and_fits_beside_the_longest_name(tmp_path):
    path = tmp_path / ("字" * 85)  # 255 bytes
    seen = set()
    for _ in range(2):
        with files.replacing(path):
            seen.update(set(names_in(tmp_path)) - {path.name})
    assert len(seen) == 2 and path.is_file()


def test_leftovers_of_a_killed_writer_are_those_of_its_file_alone(tmp_path):
    for name in ("a", "a.json", "b"):
        code = f"from megatron_sky import files; import os\nwith files.replacing({str(tmp_path / name)!r}): os._exit(1)"
        subprocess.run([sys.executable, "-c", code], check=False)
    assert len(names_in(tmp_path)) == 3
    (left,) = files.leftovers(tmp_path / "a")
    files.remove_leftovers(tmp_path / "a")
    assert not left.exists() and len(files.leftovers(tmp_path / "a.json")) == len(files.leftovers(tmp_path / "b")) == 1


def test_text_without_a_form_in_utf8_is_written_with_question_marks(tmp_path):
    files.write_text(tmp_path / "a", "name \udcff 字")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "name ? 字"


def test_a_lock_refuses_another_process_and_ends_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    code = (
        "from megatron_sky import files; import time\n"
        f"with files.hold({str(path)!r}, print, note='pid 7 on host'): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(files.InUse, match="lock: another live process holds it"), files.hold(path, pytest.fail):
            pytest.fail("held twice")
        assert path.read_text() == "pid 7 on host\n"
    finally:
        holder.kill()
        holder.wait()
    with files.hold(path, pytest.fail, note="next") as held:
        assert held and path.read_text() == "next\n"


def test_a_lock_that_is_removed_is_one_for_the_next_holder(tmp_path):
    for _ in range(2):
        with files.hold(tmp_path / "lock", pytest.fail, remove=True) as held:
            assert held
            with pytest.raises(files.InUse), files.hold(tmp_path / "lock", pytest.fail, remove=True):
                pytest.fail("held twice")
            assert names_in(tmp_path) == ["lock"]
        assert names_in(tmp_path) == []


def test_a_forked_helper_does_not_keep_the_lock(tmp_path):
    """As megatron-core's writers of checkpoints are forked, and may outlive the process that forked them."""
    path = tmp_path / "lock"
    code = (
        "from megatron_sky import files; import os, time\n"
        f"with files.hold({str(path)!r}, print), files.hold_folder({str(tmp_path)!r}):\n"
        "    if not os.fork(): time.sleep(60)\n"
        "    print('forked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, process_group=0)
    try:
        assert holder.stdout.readline() == "forked\n"
        holder.kill()
        holder.wait()
        with files.hold_folder(tmp_path), files.hold(path, pytest.fail) as held:
            assert held
    finally:
        os.killpg(holder.pid, 9)


def test_a_question_at_the_same_moment_does_not_refuse_a_holder(tmp_path):
    def ask():
        with files.hold(tmp_path / "lock", pytest.fail):
            time.sleep(0.2)

    process = multiprocessing.get_context("fork").Process(target=ask)
    process.start()
    time.sleep(0.1)
    with files.hold(tmp_path / "lock", pytest.fail) as held:
        assert held
    process.join()
    assert process.exitcode == 0


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def no_locks(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", no_locks)
    warnings = []
    with files.hold(tmp_path / "lock", warnings.append) as held:
        assert held is False
    assert "this file system has no locks (No locks available)" in warnings[0]


def test_a_lock_makes_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError), files.hold(tmp_path / "no" / "lock", pytest.fail):
        pytest.fail("held")
    assert names_in(tmp_path) == []


def test_a_range_is_hashed_as_its_bytes(tmp_path):
    path, content = tmp_path / "a", bytes(range(256)) * 40_000
    path.write_bytes(content)
    for start, size in ((0, math.inf), (5, 10), (1 << 20, 5 << 20), (len(content) - 3, 100), (len(content) + 1, 9)):
        end = len(content) if size == math.inf else start + size
        assert files.hash_range(path, start, size) == xxhash.xxh3_128_hexdigest(content[start:end])


def test_numbers_that_json_lacks_come_back():
    value = {"a": [math.inf, -math.inf, math.nan, 1.5, 2], "b": {"c": (math.inf,)}, "d": "text", "e": None, "f": True}
    text = files.json_text(value)
    assert json.loads(text)["a"][:3] == ["inf", "-inf", "nan"]
    back = files.read_numbers(json.loads(text))
    assert back["a"][:2] == [math.inf, -math.inf] and math.isnan(back["a"][2]) and back["a"][3:] == [1.5, 2]
    assert back["b"] == {"c": [math.inf]} and back["d"] == "text" and back["e"] is None and back["f"] is True


@pytest.mark.parametrize("name", ["a", "a/b", "..a", ".metadata", "中"])
def test_a_name_that_lies_inside(name):
    assert files.lies_inside(name)


@pytest.mark.parametrize("name", ["", ".", "/a", "../a", "a/../../b", "a/..", "a\0b", "a" * 300, "\ud800"])
def test_a_name_that_leads_elsewhere(name):
    assert not files.lies_inside(name)


def test_a_link_that_leads_out_or_in_a_circle(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "other").symlink_to(home)
    for name, target in {"in": "file", "out": "../elsewhere", "circle": "circle"}.items():
        (home / name).symlink_to(target)
    assert [files.stays_inside(tmp_path / "other" / name, home) for name in ("in", "out", "circle")] == [
        True,
        False,
        True,
    ]
    assert files.real_path(tmp_path / "other/in") == home.resolve() / "file"
    with pytest.raises(OSError, match="symbolic links"):
        files.read_bytes(home / "circle")


def test_what_is_read_whole_has_an_end(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": ["ä", 1]}', encoding="utf-8")
    assert files.read_json(path) == {"a": ["ä", 1]} and files.read_text(path).startswith('{"a"')
    with pytest.raises(OSError, match="has more than 10 bytes"):
        files.read_bytes(path, 10)
    os.mkfifo(tmp_path / "pipe")
    for endless in ("/dev/zero", tmp_path / "pipe"):
        with pytest.raises(OSError, match="is no regular file"):
            files.read_text(endless, 1000)
    with pytest.raises(IsADirectoryError):
        files.read_text(tmp_path)
    path.write_bytes(b"[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        files.read_json(path)
    for content in (b"\xff", b"", b"9" * 10_000, b'{"a": 1'):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            files.read_json(path)


def test_a_file_that_a_library_writes_by_name_is_whole_or_not_there(tmp_path):
    path = tmp_path / "trace.json.gz"
    with files.replacing_by_name(path, ".json.gz") as name:
        assert name.endswith(".json.gz") and not path.exists()
        Path(name).write_text("whole")
    assert path.read_text() == "whole"
    with pytest.raises(OSError, match="full"), files.replacing_by_name(path) as name:
        Path(name).write_text("half")
        raise OSError("full")
    assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("direct", [True, False])
def test_a_direct_writers_file_is_what_was_written(direct, behind, tmp_path, monkeypatch):
    """Past the page cache and through it, with pieces of any length, flushed in between."""
    if not direct:
        monkeypatch.setattr(files, "_O_DIRECT", 0)
    content, seen = os.urandom(files._DIRECT_BYTES * (files._DIRECT_PIECES + 1) + 12_345), bytearray()
    with files.DirectWriter(tmp_path / "a", seen.extend, behind=behind) as writer:
        for start, end in ((0, 5), (5, files._DIRECT_BYTES + 9), (files._DIRECT_BYTES + 9, len(content))):
            assert writer.write(content[start:end]) == end - start and writer.tell() == end
            if end == len(content):
                os.fsync(writer.fileno())
                assert (tmp_path / "a").stat().st_size == end
    assert (tmp_path / "a").read_bytes() == content == seen


def test_what_fails_behind_a_direct_writers_caller_is_told(tmp_path):
    def full(piece):
        raise OSError("full")

    writer = files.DirectWriter(tmp_path / "a", full, behind=True)
    writer.write(b"some")
    with pytest.raises(OSError, match="full"):
        writer.close()
    assert writer.closed
