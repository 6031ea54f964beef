"""What only watches a run never ends it, is told once, and begins again when it can."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_sky.monitor.metrics import _tensorboard_record, read_metrics
from tests.faults import faults
from tests.faults.test_faults import STEPS, expected, hurt, log_of, losses, run_dir, unhurt  # noqa: F401 (fixtures)


@pytest.fixture
def tiny_disk(run_dir):  # noqa: F811
    """`tiny_disk("logs")`: that folder of the run is a file system of 16 kB."""
    folders = []

    def make(name: str) -> Path:
        folder = run_dir / name
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no permission to mount a small file system")
        folders.append(folder)
        return folder

    yield make
    for folder in folders:
        subprocess.run(["umount", "-l", folder], check=True)


def write_until_full(path: Path, piece: bytes) -> None:
    """Appends whole pieces to a file for as long as its disk has room."""
    with open(path, "ab", buffering=0) as file:
        try:
            while (written := file.write(piece)) == len(piece):
                pass
        except OSError:
            return
        file.truncate(file.tell() - written)


def full_disk(config, folder: str, piece: bytes) -> None:
    """The disk that `folder` is has no room from step 3 on, in the run's own file neither; from step 7 on it has."""

    def fill(run: Path) -> None:
        (own,) = [file for file in (run / folder).iterdir() if file.stat().st_size]
        write_until_full(run / folder / "filler", b"x" * 512)
        write_until_full(own, piece)  # which has a page of its own

    faults.before_step(config, 3, fill)
    faults.before_step(config, 7, lambda run: (run / folder / "filler").unlink())


def full_tensorboard(config) -> None:
    from tensorboard.compat.proto.event_pb2 import Event

    full_disk(config, "tensorboard", _tensorboard_record(Event(step=1)))


def full_logs(config) -> None:
    screen = os.open(Path(config.train.run_dir).with_name("screen"), os.O_WRONLY | os.O_CREAT)
    os.dup2(screen, 2)
    full_disk(config, "logs", b"x\n")


def deleted_watchers(config) -> None:
    def delete(run: Path) -> None:
        shutil.rmtree(run / "tensorboard")
        shutil.rmtree(run / "logs")
        (run / "metrics.jsonl").unlink()

    faults.before_step(config, 3, delete)


def scalars(run_dir: Path) -> list[int]:  # noqa: F811
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    return [event.step for event in board.Scalars("train/lm_loss")]


def test_tensorboards_full_disk(hurt, run_dir, tiny_disk, expected):  # noqa: F811
    tiny_disk("tensorboard")
    assert hurt("monitor.tensorboard=true", fault=full_tensorboard).code == 0
    assert losses(run_dir) == expected
    assert scalars(run_dir) == list(range(1, STEPS + 1))
    told = [line for line in log_of(run_dir).splitlines() if "tfevents" in line]
    assert len(told) == 2 and "can't be written, the run goes on without: No space left" in told[0]
    assert "can be written again; what was kept back is in it" in told[1]


def test_a_full_disk_of_logs(hurt, run_dir, tiny_disk, expected):  # noqa: F811
    tiny_disk("logs")
    assert hurt(fault=full_logs).code == 0
    assert losses(run_dir) == expected
    assert f"step    {STEPS}/{STEPS}" in log_of(run_dir)
    told = run_dir.with_name("screen").read_text()
    assert "Traceback" not in told and told.count("rank_00000.log: can't be written") == 1


def test_what_is_deleted_is_made_anew(hurt, run_dir, expected):  # noqa: F811
    assert hurt("monitor.tensorboard=true", fault=deleted_watchers).code == 0
    assert [(record.step, record.lm_loss) for record in read_metrics(run_dir).train] == list(
        zip(range(3, STEPS + 1), expected[2:], strict=True)
    )
    assert scalars(run_dir) == list(range(3, STEPS + 1))
    assert f"step    {STEPS}/{STEPS}" in log_of(run_dir)


def test_tensorboard_that_cannot_begin(hurt, run_dir, expected):  # noqa: F811
    run_dir.mkdir()
    (run_dir / "tensorboard").write_text("a file")
    assert hurt("monitor.tensorboard=true").code == 0
    assert losses(run_dir) == expected
    assert log_of(run_dir).count("can't be written, the run goes on without") == 1
