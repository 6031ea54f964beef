"""Processes that help a rank: their death is a failed save with a name, and none outlives the rank."""

import os
import signal
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
