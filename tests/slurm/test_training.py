"""Training on a real Slurm: several nodes, time limits, node failures, sessions, cancelling."""

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from megatron_sky.distributed.device import available_cores
from megatron_sky.monitor.metrics import TrainRecord, read_metrics
from megatron_sky.slurm.attempts import read_jobs
from tests.conftest import SEQ_LENGTH
from tests.slurm.cluster import wait_until
from tests.slurm.conftest import ROOT

pytestmark = pytest.mark.slow

STEP_TOKENS = 8 * SEQ_LENGTH
STEPS = 100
ONE_TASK_A_NODE = ("--nodes", "2", "--gpus-per-node", "0")  # and no more than a site profile's defaults
JOB_SECONDS = 240


@pytest.fixture
def queued(sky, tmp_path):
    """`queued(recipe, ...)`: the numbers of the jobs that `slurm submit` sent for the run in tmp_path/run."""

    def submit(*arguments: object) -> list[str]:
        done = sky("slurm", "submit", *arguments, *ONE_TASK_A_NODE)
        assert done.returncode == 0, done.stderr + done.stdout
        return [job.job_id for job in read_jobs(tmp_path / "run")]

    return submit


@dataclass(frozen=True)
class Reference:
    """A run of `STEPS` steps of the tiny recipe in two processes, uninterrupted and without Slurm."""

    losses: list[float]
    seconds: float


@pytest.fixture(scope="module")
def kept() -> list[Reference]:
    """Filled by the first test that needs it."""
    return []


@pytest.fixture
def reference(kept, recipe, tmp_path, cluster) -> Reference:
    if not kept:
        start = time.monotonic()
        config = recipe(f"train.run_dir={tmp_path}/reference", f"train.tokens={STEPS * STEP_TOKENS}")
        path = tmp_path / "reference.yaml"
        path.write_text(dump_config(config))
        command = [sys.executable, "-m", "megatron_sky", "train", str(path), "--nproc", "2"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        losses = [record.lm_loss for record in trained(tmp_path / "reference")]
        kept.append(Reference(losses, time.monotonic() - start))
    return kept[0]


def trained(run_dir: Path) -> list[TrainRecord]:
    """The steps so far."""
    with contextlib.suppress(Exception):  # a line half written, a file not yet there
        return read_metrics(run_dir).train
    return []


def attempts(run_dir: Path) -> list[dict]:
    return json.loads((run_dir / "run.json").read_text())["attempts"]


def told(run_dir: Path) -> str:
    """All that the run's jobs wrote, for the message of a test that fails."""
    return "\n".join(f"--- {path}\n{path.read_text()}" for path in sorted(run_dir.glob("slurm/**/*.txt")))


def soon(seconds: float, limit: float) -> bool:
    """Whether it took at most `limit`, which is for a machine that does nothing else."""
    return seconds < limit * max(1.0, os.getloadavg()[0] / available_cores())


def wait_for_steps(run_dir: Path, count: int) -> None:
    wait_until(lambda: len(trained(run_dir)) >= count, JOB_SECONDS, lambda: f"{count} steps\n{told(run_dir)}")


def test_a_script_sent_by_hand_with_gpus(cluster, recipe_file, tmp_path):
    """`sbatch slurm/train.sbatch RECIPE` as it stands, two nodes of two tasks, with eight false GPUs each."""
    run_dir = tmp_path / "run"
    recipe = recipe_file("parallel.tp_size=2", f"train.tokens={5 * STEP_TOKENS}")
    sent = time.time()
    command = ["sbatch", "--parsable", "--ntasks-per-node=2", "--cpus-per-task=1", str(ROOT / "slurm/train.sbatch")]
    cluster.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}"
    job = cluster.client(*command, str(recipe), cwd=tmp_path).strip()
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=JOB_SECONDS)
    said = (tmp_path / f"slurm-megatron_sky-{job}.log").read_text()
    assert ended["JobState"] == "COMPLETED", said + told(run_dir)
    (attempt,) = attempts(run_dir)
    assert attempt["hosts"] == ["n1", "n2"] and attempt["layout"] == "TP2 x DP2"
    assert attempt["slurm"]["job_id"] == job and attempt["ended"]["action"] == "done"
    assert "training from the start" in (run_dir / attempt["slurm"]["log"]).read_text()
    started = time.mktime(time.strptime(ended["StartTime"], "%Y-%m-%dT%H:%M:%S"))
    first = trained(run_dir)[0].time
    assert soon(first - started, 30), f"{first - started:.1f} s from the job's start to its first step"
    print(f"sbatch to first step {first - sent:.1f} s")


def test_a_run_folder_of_any_name(cluster, sky, recipe_file, tmp_path):
    run_dir = tmp_path / "my runs/50% (done)"
    recipe = recipe_file(f"train.run_dir={run_dir}", f"train.tokens={2 * STEP_TOKENS}")
    submitted = sky("slurm", "submit", recipe, "--gpus-per-node", "0")
    assert submitted.returncode == 0, submitted.stderr
    (job,) = read_jobs(run_dir)
    ended = cluster.wait_for_state(job.job_id, "COMPLETED", "FAILED", seconds=JOB_SECONDS)
    assert ended["JobState"] == "COMPLETED" and ended["JobName"] == "50_done_", told(run_dir)
    (attempt,) = attempts(run_dir)
    assert "training from the start" in (run_dir / attempt["slurm"]["log"]).read_text()
    assert (run_dir / f"slurm/job_{job.job_id}.txt").is_file()


def test_the_time_limit_and_the_way_on(cluster, queued, recipe_file, reference, tmp_path):
    """Slurm's signal before the limit: saved, requeued, resumed, with the losses of a run that nothing interrupted.

    Slurm looks at time limits twice a minute, so the ranks are held still until it does: its signal wakes them.
    """
    run_dir = tmp_path / "run"
    recipe = recipe_file(f"train.tokens={STEPS * STEP_TOKENS}", "resilience.exit_before_seconds=10")
    minutes = 1 + int(reference.seconds / 20)  # one, on a machine that does nothing else
    (job,) = queued(recipe, "--time", minutes)
    wait_for_steps(run_dir, 15)
    cluster.client("scancel", "--signal=STOP", job)
    assert len(trained(run_dir)) < STEPS, "the run ended before it could be held"
    limit = 60 * minutes + JOB_SECONDS
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", limit, lambda: told(run_dir))
    requeued = time.time()
    cluster.client("scontrol", "update", f"JobId={job}", "TimeLimit=60")  # one limit is enough for a test
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=JOB_SECONDS)
    assert ended["JobState"] == "COMPLETED", told(run_dir)

    first, second = attempts(run_dir)
    assert first["ended"]["exit_code"] == 75 and first["ended"]["action"] == "requeue"
    assert "SIGUSR1" in first["ended"]["cause"]
    assert second["resumed_from_step"] == second["step_before"] == first["ended"]["step"] >= 15
    assert second["ended"]["action"] == "done"
    logs = [run_dir / each["slurm"]["log"] for each in (first, second)]
    assert logs[0] != logs[1] and "training from step" in logs[1].read_text()
    assert [record.lm_loss for record in trained(run_dir)] == reference.losses
    next_step = next(record for record in trained(run_dir) if record.step == second["resumed_from_step"] + 1)
    assert soon(next_step.time - requeued, 60)
    print(f"requeue to next step {next_step.time - requeued:.1f} s")


def test_a_node_goes_down(cluster, queued, recipe_file, reference, tmp_path):
    run_dir = tmp_path / "run"
    recipe = recipe_file(f"train.tokens={STEPS * STEP_TOKENS}", "checkpoint.interval=10 steps")
    (job,) = queued(recipe, "--time", "10")
    wait_until(lambda: (run_dir / "checkpoints/step_0000010/manifest.json").is_file(), JOB_SECONDS, "a checkpoint")
    cluster.power_off("n2")
    cluster.client(
        "scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=power"
    )  # Slurm itself needs half a minute
    wait_until(lambda: cluster.job(job)["Restarts"] == "1", JOB_SECONDS, lambda: told(run_dir))
    cluster.power_on("n2")
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=JOB_SECONDS)
    assert ended["JobState"] == "COMPLETED", told(run_dir)
    first, second = attempts(run_dir)
    assert first["ended"]["exit_code"] is None and "node failed" in first["ended"]["reason"]
    assert second["resumed_from_step"] >= 10 and second["ended"]["action"] == "done"
    assert [record.lm_loss for record in trained(run_dir)] == reference.losses


SESSIONS = (
    f"train.tokens={10 * STEP_TOKENS}",
    f"sessions=[{{name: one, tokens: {6 * STEP_TOKENS}}}, {{name: two, tokens: {4 * STEP_TOKENS}}}]",
)


def test_a_chain_of_sessions_and_what_follows(cluster, sky, queued, recipe_file, corpus, tmp_path):
    """One job a session, then evaluation and release; `--follow` stays until all have ended."""
    run_dir = tmp_path / "run"
    recipe = recipe_file(*SESSIONS, f"checkpoint.release_marks=[{10 * STEP_TOKENS}]")
    heldout = corpus / "text/validation/en_web.jsonl"
    jobs = queued(recipe, "--evaluate", f"en={heldout}", "--release", "--name", "chain", "--follow")
    assert [job.name for job in read_jobs(run_dir)] == ["chain-one", "chain-two", "chain-evaluate", "chain-release"]
    ended = [cluster.job(job) for job in jobs]
    assert [job["JobState"] for job in ended] == ["COMPLETED"] * 4, told(run_dir)
    assert all(after["StartTime"] >= before["EndTime"] for before, after in pairwise(ended))
    assert [each["ended"]["step"] for each in attempts(run_dir)] == [6, 10]
    evaluated = {path.parent.name for path in run_dir.glob("eval/*/*.json")}
    assert evaluated == {"step_0000006", "step_0000010"}, told(run_dir)
    assert list((run_dir / "release").iterdir())
    again = sky("slurm", "submit", recipe, *ONE_TASK_A_NODE)
    assert again.returncode == 2 and "trained to their ends" in again.stderr


def test_preempted_by_a_job_that_comes_first(cluster, queued, recipe_file, reference, tmp_path):
    run_dir = tmp_path / "run"
    (job,) = queued(recipe_file(f"train.tokens={STEPS * STEP_TOKENS}"), "--time", "10")
    wait_for_steps(run_dir, 10)
    urgent = ["sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
    first = cluster.client(*urgent, "--wrap=sleep 1").strip()
    cluster.wait_for_state(first, "COMPLETED", seconds=JOB_SECONDS)
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=JOB_SECONDS)
    assert ended["JobState"] == "COMPLETED" and ended["Restarts"] == "1", told(run_dir)
    before, after = attempts(run_dir)
    assert "SIGTERM" in before["ended"]["cause"] and before["ended"]["exit_code"] == 75
    assert after["resumed_from_step"] == before["ended"]["step"] >= 10
    assert [record.lm_loss for record in trained(run_dir)] == reference.losses


def test_status_and_cancel_in_order(cluster, sky, queued, recipe_file, tmp_path):
    run_dir = tmp_path / "run"
    long = ("train.tokens=12M", "sessions=[{name: one, tokens: 10M}, {name: two, tokens: 2M}]", "data.max_epochs=1000")
    first, second = queued(recipe_file(*long), "--name", "long")
    wait_for_steps(run_dir, 5)

    refused = sky("slurm", "submit", tmp_path / "tiny.yaml", *ONE_TASK_A_NODE)
    assert refused.returncode == 5 and f"job {first}" in refused.stderr and "slurm cancel" in refused.stderr

    status = sky("slurm", "status", run_dir)
    assert status.returncode == 0, status.stderr
    lines = status.stdout.splitlines()
    assert f"job {first:<5}long-one: RUNNING on n[1-2]" in status.stdout and "tokens/s" in lines[1]
    assert f"job {second:<5}long-two: PENDING (Dependency)" in status.stdout
    assert "of 12.00M" in lines[0] and lines[-1].endswith(f"job_{first}_attempt_0/log.txt")

    cancelled = sky("slurm", "cancel", run_dir)
    assert cancelled.returncode == 0, cancelled.stderr
    assert "without having saved" not in cancelled.stdout, cancelled.stdout + told(run_dir)
    assert cluster.job(second)["JobState"] == "CANCELLED"
    assert cluster.job(first)["JobState"] == "FAILED" and cluster.job(first)["Restarts"] == "0"
    (attempt,) = attempts(run_dir)
    assert attempt["ended"]["action"] == "stop" and "cancelled" in attempt["ended"]["reason"]
    saved = attempt["ended"]["step"]
    assert saved == len(trained(run_dir)) and (run_dir / f"checkpoints/step_{saved:07d}/manifest.json").is_file()
    assert "cancelled at step" in sky("slurm", "status", run_dir).stdout
    nothing = sky("slurm", "cancel", run_dir)
    assert nothing.returncode == 5 and "no job" in nothing.stderr


def test_torchrun_under_srun(cluster, recipe_file, tmp_path):
    """One torchrun a node, which starts the ranks: the lines of docs/slurm.md."""
    page = (ROOT / "docs/slurm.md").read_text(encoding="utf-8")
    block = page.partition("```bash\n# torchrun under srun\n")[2].partition("```")[0]
    script = tmp_path / "torchrun.sbatch"
    script.write_text("#!/bin/bash\n" + block.replace("RECIPE", str(recipe_file(f"train.tokens={3 * STEP_TOKENS}"))))
    options = ["--nodes=2", "--ntasks-per-node=2", "--time=5", f"--output={tmp_path}/said.txt"]
    cluster.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{cluster.environment['PATH']}"
    job = cluster.client("sbatch", "--parsable", *options, str(script), cwd=tmp_path).strip()
    ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=JOB_SECONDS)
    assert ended["JobState"] == "COMPLETED", (tmp_path / "said.txt").read_text()
    (attempt,) = attempts(tmp_path / "run")
    assert attempt["layout"] == "DP4" and attempt["hosts"] == ["n1", "n2"]
