"""`megatron-sky doctor`, as one runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def doctor(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "megatron_sky", "doctor", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_command_finds_this_machine_fit(tmp_path):
    done = doctor("--json", "--disk-mib", "1", "--run-dir", str(tmp_path / "not_yet"))
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["healthy"] and report["trials"]["ranks"]["ok"]
    assert report["trials"]["disk"]["folder"] == str(tmp_path)
    assert report["facts"]["packages"]["megatron-core"] and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_exit_code_says_that_nothing_can_be_saved():
    if not Path("/proc/version").exists():
        pytest.skip("needs a folder that nobody may write")
    done = doctor("--ranks", "1", "--disk-mib", "1", "--run-dir", "/proc")
    assert done.returncode == 1
    assert "PROBLEM /proc" in done.stdout and done.stdout.rstrip().endswith("this machine can't train as it is")
