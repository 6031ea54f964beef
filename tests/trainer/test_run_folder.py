"""One job holds a run folder; whoever comes second is told who."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from megatron_sky import files
from megatron_sky.errors import RunError
from megatron_sky.trainer import run_folder


def test_a_second_job_is_told_who_holds_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    run_folder.check_free(tmp_path)
    with run_folder.locked(tmp_path, pytest.fail) as lock:
        assert lock.is_held
        for take in (run_folder.check_free, lambda run_dir: run_folder.locked(run_dir, pytest.fail).__enter__()):
            with pytest.raises(RunError, match=f"in use by a live job: pid {os.getpid()} on .*, Slurm job 77, since"):
                take(tmp_path)
    run_folder.check_free(tmp_path)  # which takes nothing:
    with run_folder.locked(tmp_path, pytest.fail) as lock:
        assert lock.is_held


def test_a_killed_job_holds_nothing(tmp_path):
    code = (
        "from pathlib import Path; import os; from megatron_sky.trainer import run_folder\n"
        f"with run_folder.locked(Path({str(tmp_path)!r}), print): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    with run_folder.locked(tmp_path, pytest.fail) as lock:
        assert lock.is_held


def test_a_lock_that_may_not_be_written_is_an_error_with_a_fix(tmp_path):
    (tmp_path / ".lock").mkdir()
    with pytest.raises(RunError, match=r"can't be written: \.lock: Is a directory\n  fix: choose a folder"):
        run_folder.locked(tmp_path, pytest.fail).__enter__()


def test_what_a_killed_writer_left_of_run_json_is_swept(tmp_path):
    left, other = tmp_path / ".run.json.0123456789abcdef.tmp", tmp_path / ".report.html.0123456789abcdef.tmp"
    for path in (left, other):
        path.write_text("{")
    run_folder.sweep(tmp_path, pytest.fail)
    assert not left.exists() and other.exists()  # a report may be written at this moment


def test_a_deleted_lock_lets_nobody_in(tmp_path):
    told: list[str] = []
    with run_folder.locked(tmp_path, told.append) as lock:
        (tmp_path / ".lock").unlink()
        for take in (run_folder.check_free, lambda run_dir: run_folder.locked(run_dir, pytest.fail).__enter__()):
            with pytest.raises(RunError, match=r"a process of this machine, whose \.lock was deleted"):
                take(tmp_path)
        lock.check()
        assert told == [f"{tmp_path}/.lock was deleted while this job runs; it is made anew and held"]
        lock.check()
        assert len(told) == 1
        with pytest.raises(RunError, match=f"in use by a live job: pid {os.getpid()} on"):
            run_folder.check_free(tmp_path)


def test_who_lost_the_lock_to_a_job_of_another_machine_ends(tmp_path, monkeypatch):
    with run_folder.locked(tmp_path, pytest.fail) as lock:
        (tmp_path / ".lock").unlink()
        with (
            files.hold(tmp_path / ".lock", pytest.fail, note="pid 9 on n7"),  # where a folder's lock is not seen
            pytest.raises(RunError, match=r"was deleted while this job ran, which ends here: .*: pid 9 on n7"),
        ):
            lock.check()


def test_a_file_system_without_locks_of_folders(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr("fcntl.flock", refuse)
    with files.hold_folder(tmp_path), files.hold_folder(tmp_path):
        pass


def test_all_ranks_prepare_one_folder_at_the_same_time(tmp_path):
    with ThreadPoolExecutor(8) as ranks:
        list(ranks.map(run_folder.prepare, [tmp_path / "run"] * 400))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]
