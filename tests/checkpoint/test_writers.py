"""What the process that writes a checkpoint hands back: through memory that a fork shares."""

import io
import os
import queue
import threading
import zipfile

import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from megatron_sky.checkpoint.writers import _crc_of_weights_alone, _Results, _unnamed_file


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


def test_two_threads_that_write_at_once_give_weights_alone_a_crc(monkeypatch):
    monkeypatch.setattr(torch.serialization, "get_crc32_options", torch.serialization.get_crc32_options)
    both, found = threading.Barrier(2), {}

    def write_item(item: WriteItem) -> None:
        both.wait()
        file = io.BytesIO()
        torch.save(torch.arange(1000.0), file)
        found[item.index.fqn] = next(r.CRC for r in zipfile.ZipFile(file).infolist() if r.filename.endswith("data/0"))

    write = _crc_of_weights_alone(write_item)
    keys = ("decoder.a", "optimizer.state.exp_avg.decoder.a")
    items = [WriteItem(MetadataIndex(key), WriteItemType.TENSOR) for key in keys]
    threads = [threading.Thread(target=write, args=(item,)) for item in items]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[keys[0]] and found[keys[1]] == 0
