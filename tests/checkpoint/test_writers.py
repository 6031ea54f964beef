"""What the process that writes a checkpoint hands back: through memory that a fork shares."""

import os
import queue

import pytest

from megatron_sky.checkpoint.writers import _Results, _unnamed_file


@pytest.fixture(params=["memory", "a file"])
def results(request, monkeypatch) -> _Results:
    if request.param == "a file":
        monkeypatch.delattr(os, "memfd_create", raising=False)
    return _Results()


def test_a_value_is_taken_once(results):
    with pytest.raises(queue.Empty):
        results.get_nowait()
    results.put({"a": [1, 2]})
    assert results.get_nowait() == {"a": [1, 2]}
    with pytest.raises(queue.Empty):
        results.get_nowait()


def test_the_later_value_counts_and_none_is_left_after_clearing(results):
    results.put("first")
    results.put(OSError("disk full"))
    assert str(results.get_nowait()) == "disk full"
    results.put("x")
    results.clear()
    with pytest.raises(queue.Empty):
        results.get_nowait()


def test_a_fork_hands_its_value_back(results):
    pid = os.fork()
    if not pid:
        results.put(["of the child", os.getpid()])
        os._exit(0)
    os.waitpid(pid, 0)
    assert results.get_nowait() == ["of the child", pid]


def test_the_file_has_no_name():
    handle = _unnamed_file()
    assert os.fstat(handle).st_nlink == 0
    os.close(handle)
