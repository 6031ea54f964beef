"""The doctor's trials on this machine."""

import errno
from pathlib import Path

from megatron_sky.doctor import trials


def test_ranks_that_cannot_meet_are_told(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    told = trials.ranks_talk(2)
    assert not told["ok"] and told["reason"].startswith("rank ") and "nosuch0" in told["reason"]


def test_a_disk_that_cannot_be_written_is_told(tmp_path, monkeypatch):
    def refuse(*arguments, **more):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        patch.setattr(Path, "unlink", refuse)
        told = trials.disk_speed(tmp_path / "run", 1)
    assert told["reason"] == "can't be written: Read-only file system" and told["write_mb_per_second"] is None
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", refuse)
        assert "Read-only" in trials.disk_speed(tmp_path / "run", 1)["reason"]
    assert trials.disk_speed(tmp_path / "run", 1)["write_mb_per_second"] > 0
    assert list(tmp_path.iterdir()) == []
