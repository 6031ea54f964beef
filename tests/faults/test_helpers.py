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


def helpers_of(pid: int) -> list[psutil.Process]:
    """The forks of a rank; what it asks git is none."""
    try:
        rank = psutil.Process(pid)
        return [child for child in rank.children(recursive=True) if child.cmdline() == rank.cmdline()]
    except psutil.NoSuchProcess:
        return []


class KillTheWriter:
    """Kills the process that writes the first checkpoint; those after it are not held up."""

    def __call__(self, child: int, config) -> None:
        assert wait_for(lambda: len(helpers_of(child)) == 1)
        (writer,) = helpers_of(child)
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
        assert wait_for(lambda: len(helpers_of(child)) == 1)
        (writer,) = helpers_of(child)
        writer.send_signal(signal.SIGTERM)
        assert not wait_for(lambda: not writer.is_running(), seconds=0.3), "requests to stop are for the rank alone"
        os.kill(child, signal.SIGKILL)
        assert wait_for(lambda: not writer.is_running(), seconds=5), "the writer outlives its rank"


def test_a_writer_ends_with_its_rank_and_the_next_start_goes_on(hurt, run_dir, slow, expected):  # noqa: F811
    assert hurt(fault=slow_writers, watch=KillTheRank()).code == -signal.SIGKILL
    (run_dir / "slow").unlink()
    assert hurt().code == 0
    assert losses(run_dir) == expected
