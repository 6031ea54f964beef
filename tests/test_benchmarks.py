"""The GPU benchmark as one command, at a size that a CPU can run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_tiny(tmp_path):
    out = tmp_path / "results.json"
    command = [sys.executable, ROOT / "benchmarks/gpu_training.py", "--tiny", "--steps", "1", "--out", out]
    done = subprocess.run(
        [*command, "--only", "torch-delayed-mb1", "te-bf16-mb1"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours, te = json.loads(out.read_text())
    assert ours["tokens_per_second"] > 0 and ours["losses"][-1] < ours["losses"][0]
    assert "matrix products" in ours["profile"] and "8-bit casts" in ours["profile"]
    assert ours["mfu"] is None, "a CPU has no known peak"
    assert "no CUDA device" in te["left out"] or te["tokens_per_second"] > 0
    assert "first and last loss" in done.stdout
