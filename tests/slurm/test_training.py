"""Training on a real Slurm: several nodes, time limits, node failures, sessions, cancelling."""

import json
import time
from pathlib import Path

import pytest

from megatron_sky.monitor.metrics import read_metrics
from megatron_sky.slurm.attempts import read_jobs
from tests.slurm.cluster import wait_until

ON_TWO_NODES = ("--nodes", "2", "--gpus-per-node", "0", "--tasks-per-node", "2", "--cpus-per-task", "1")
LIMIT_SECONDS = 150


def submitted(sky, run_dir: Path, *arguments: object) -> list[str]:
    """Job numbers of `slurm submit`."""
    done = sky("slurm", "submit", *arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    return [job.job_id for job in read_jobs(run_dir)]


def attempts(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "run.json").read_text())["attempts"]


def losses(run_dir: Path) -> list[float]:
    return [record.lm_loss for record in read_metrics(run_dir).train]


def told(run_dir: Path) -> str:
    """All that the run's jobs wrote, for the message of a test that fails."""
    return "\n".join(f"--- {path}\n{path.read_text()}" for path in sorted(run_dir.glob("slurm/**/*.txt")))


def test_two_nodes_of_two_tasks(cluster, sky, recipe_file, tmp_path):
    run_dir = tmp_path / "run"
    start = time.time()
    (job,) = submitted(sky, run_dir, recipe_file("parallel.tp_size=2", "train.tokens=5120"), *ON_TWO_NODES)
    queued = time.time()
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=LIMIT_SECONDS)
    assert ended["JobState"] == "COMPLETED", told(run_dir)
    (attempt,) = attempts(run_dir)
    assert attempt["hosts"] == ["n1", "n2"] and attempt["layout"] == "TP2 x DP2"
    assert attempt["slurm"]["job_id"] == job and attempt["ended"]["action"] == "done"
    log = (run_dir / attempt["slurm"]["log"]).read_text()
    assert "0: " in log and "training from the start" in log
    first = read_metrics(run_dir).train[0]
    print(f"submit {queued - start:.1f} s, sbatch to first step {first.time - queued:.1f} s")
    assert first.time - queued < 30
