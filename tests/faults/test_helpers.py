"""Processes that help a rank: their death is a failed save with a name, and none outlives the rank."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from megatron_sky.checkpoint import store
from tests.faults.harness import wait_for
from tests.faults.test_faults import STEPS, events, expected, hurt, losses, run_dir, unhurt  # noqa: F401 (fixtures)


def slow_writers(config) -> None:
    """The writer of each checkpoint first waits for as long as a large one would take."""
    from megatron_sky.checkpoint import writers

    write = writers._write

    def slowly(parent, *rest, **kwargs):
        if (Path(config.train.run_dir) / "slow").exists():
            from megatron_sky.distributed.helpers import end_with

            end_with(parent)
            signal.pause()
        write(parent, *rest, **kwargs)

    writers._write = slowly


def writer_of(child: int, config) -> psutil.Process:
    """The process that writes the first checkpoint of the rank `child`; what it asks git is none."""
    checkpoints = Path(config.train.run_dir) / "checkpoints"
    rank = psutil.Process(child)

    def forks() -> list[psutil.Process]:
        return [each for each in rank.children() if each.cmdline() == rank.cmdline()]

    assert wait_for(lambda: list(checkpoints.glob("*.tmp")) and forks())
    (writer,) = forks()
    return writer


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


class KillTheWriter:
    """Kills the process that writes the first checkpoint; those after it are not held up."""

    def __call__(self, child: int, config) -> None:
        writer = writer_of(child, config)
        (Path(config.train.run_dir) / "slow").unlink()
        writer.kill()


@pytest.fixture
def slow(run_dir):  # noqa: F811
    run_dir.mkdir()
    (run_dir / "slow").touch()


def test_a_killed_writer_is_a_failed_save_with_its_name(hurt, run_dir, slow, expected):  # noqa: F811
    assert hurt(fault=slow_writers, watch=KillTheWriter()).code == 0
    (failed,) = events(run_dir, "checkpoint_failed")
    assert failed["step"] == 4 and "was killed by SIGKILL" in failed["reason"]
    assert [step for step, _ in store.list_checkpoints(run_dir)] == [8, STEPS]
    assert losses(run_dir) == expected


class KillTheRank:
    """Kills the rank, and nothing else, while its writer is at work; asks it to stop at first."""

    def __call__(self, child: int, config) -> None:
        writer = writer_of(child, config)
        writer.send_signal(signal.SIGTERM)
        assert not wait_for(lambda: is_gone(writer), seconds=0.3), "requests to stop are for the rank alone"
        os.kill(child, signal.SIGKILL)
        assert wait_for(lambda: is_gone(writer), seconds=5), "the writer outlives its rank"


def test_a_writer_ends_with_its_rank_and_the_next_start_goes_on(hurt, run_dir, slow, expected):  # noqa: F811
    assert hurt(fault=slow_writers, watch=KillTheRank()).code == -signal.SIGKILL
    (run_dir / "slow").unlink()
    assert hurt().code == 0
    assert losses(run_dir) == expected


def killed_with_its_helpers(*arguments: object, count: int) -> str:
    """Kills the command once it has `count` helpers; what they said. Fails where one of them is left."""
    command = [sys.executable, "-m", "megatron_sky", *map(str, arguments)]
    # A group of its own would end them otherwise; the file is read when all who write there are gone.
    job = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    helpers: list[psutil.Process] = []

    def has_helpers() -> bool:
        helpers[:] = psutil.Process(job.pid).children(recursive=True)
        return len(helpers) >= count

    try:
        assert wait_for(has_helpers)
        job.kill()
        assert wait_for(lambda: all(map(is_gone, helpers)), seconds=60), [each.cmdline() for each in helpers]
        return job.communicate()[1].decode()
    finally:
        for helper in filter(psutil.Process.is_running, helpers):
            helper.kill()


def test_workers_of_tokenize_end_with_it(corpus, tmp_path):
    text = tmp_path / "text.jsonl"
    line = json.dumps({"text": "The river runs past the old mill. " * 50})
    text.write_text(f"{line}\n" * 30_000)
    out = tmp_path / "out"
    arguments = ["data", "tokenize", text, "--tokenizer", corpus / "tokenizer.model", "--workers", "2", "--out", out]
    killed_with_its_helpers(*arguments, count=2)
    assert not list(tmp_path.glob("out*.idx"))


def test_ranks_of_doctor_end_with_it(tmp_path):
    killed_with_its_helpers("doctor", "--run-dir", tmp_path, "--ranks", "2", count=3)


def test_ranks_of_an_evaluation_end_with_their_launcher(corpus, tmp_path):
    verb = ["eval", "loss", tmp_path / "none", "--data", f"en={corpus}/text.jsonl", "--nproc", "2"]
    assert "the launcher of this rank is gone" in killed_with_its_helpers(*verb, count=2)


@pytest.mark.parametrize("threads", ["2", None])
def test_the_users_thread_count_holds_in_doctors_trial(threads, monkeypatch):
    """In a process of its own, as a trial's rank is one."""
    code = (
        "import torch\nfrom megatron_sky.doctor import trials\n"
        "trials.end_with = lambda parent: None\n"
        "class Results:\n"
        "    put = staticmethod(lambda answer: print(torch.get_num_threads(), answer[0]))\n"
        "    close = join_thread = staticmethod(lambda: None)\n"
        "import tempfile\n"
        "with tempfile.TemporaryDirectory() as folder: trials._rank(0, 0, 1, folder + '/store', Results)"
    )
    monkeypatch.delenv("OMP_NUM_THREADS")
    environ = os.environ | ({"OMP_NUM_THREADS": threads} if threads else {})
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    told = done.stdout.splitlines()[-1]  # older gloos print a line of their own before
    assert told.split()[0] == (threads or "1"), done.stdout + done.stderr
