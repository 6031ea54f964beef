"""Who reads the screen may go, terminals close, and requests to stop come before anything has begun."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.monitor.metrics import read_metrics
from tests.faults.harness import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture
def start(recipe, tmp_path):
    """`start("key=value", ..., before="python code", **how)`: a Popen of `train`, in one process."""

    def begin(*overrides: str, before: str = "", **how) -> subprocess.Popen:
        path = tmp_path / "started.yaml"
        path.write_text(dump_config(recipe(*overrides)))
        code = f"import signal, sys\n{before}\nfrom megatron_sky.__main__ import main\nmain()"
        return subprocess.Popen([sys.executable, "-c", code, "train", str(path)], cwd=ROOT, **how)

    return begin


def steps(run_dir: Path) -> int:
    return len(read_metrics(run_dir).train) if (run_dir / "metrics.jsonl").is_file() else 0


def test_a_broken_screen_does_not_end_training(start, recipe):
    reads, writes = os.pipe()
    os.close(reads)
    job = start("train.max_steps=6", stdout=writes, stderr=writes)
    os.close(writes)
    assert job.wait(120) == 0
    run = Path(recipe().train.run_dir)
    assert steps(run) == 6
    assert "step     6/6" in (run / "logs/rank_00000.log").read_text()


@pytest.mark.parametrize(
    ("before", "code"), [("", 75), ("signal.signal(signal.SIGHUP, signal.SIG_IGN)", 0)], ids=["plain", "nohup"]
)
def test_a_closed_terminal(before, code, start, recipe):
    run = Path(recipe().train.run_dir)
    job = start("train.max_steps=40", before=before, stderr=subprocess.PIPE)
    assert wait_for(lambda: steps(run) > 1)
    job.send_signal(signal.SIGHUP)
    _, said = job.communicate(timeout=120)
    assert job.returncode == code, said
    assert (b"signal SIGHUP; everything is saved" in said) == (code == 75)


def test_a_request_that_comes_before_the_run_has_begun(start):
    early = (
        "from megatron_sky.config import load\n"
        "from megatron_sky.cli import train as verb\n"
        "whole = load.load_recipe\n"
        "def ask(*given):\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    return whole(*given)\n"
        "load.load_recipe = ask\n"
    )
    job = start(before=early, stderr=subprocess.PIPE)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 75, said
    assert b"signal SIGTERM; nothing was done yet" in said
