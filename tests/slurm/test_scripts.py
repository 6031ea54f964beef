"""The scripts on a real Slurm: accepted as they stand, and the tokenizing array whose parts join to one whole."""

import json
import os
import sys
from pathlib import Path

import pytest

from megatron_sky.slurm import attempts
from megatron_sky.slurm.render import Job, as_output, render, scripts
from megatron_sky.slurm.site import Container, Site
from tests.slurm.cluster import wait_until

pytestmark = pytest.mark.slow

PYTHON_FIRST = f"{Path(sys.executable).parent}{os.pathsep}"


@pytest.fixture(autouse=True)
def this_python(cluster, monkeypatch):
    """`python3` of the scripts is the one that runs the tests."""
    monkeypatch.setitem(cluster.environment, "PATH", PYTHON_FIRST + cluster.environment["PATH"])


@pytest.mark.parametrize("script", ["convert", "evaluate", "merge", "tokenize", "train"])
def test_slurm_accepts_a_script_as_it_stands(cluster, script):
    cluster.client("sbatch", "--test-only", str(scripts() / f"{script}.sbatch"), "argument")


@pytest.mark.parametrize("image", [None, "/images/sky.sqsh", "/images/sky.sif"])
def test_slurm_accepts_eight_gpus_a_node(cluster, image, tmp_path):
    job = Job(
        "train",
        "sky",
        ("recipe.yaml",),
        folder=str(tmp_path),
        output="job_%j.txt",
        nodes=2,
        tasks_per_node=8,
        gpus_per_node=8,
        exclusive=True,
        signal_seconds=300,
    )
    script = tmp_path / "train.sbatch"
    site = Site(container=Container(image=image), partition="main", cpus_per_task=4, sbatch=("--mem=0",))
    script.write_text(render(job, site))
    cluster.client("sbatch", "--test-only", str(script))
    too_many = script.with_name("nine.sbatch")
    too_many.write_text(render(job, site).replace("--gpus-per-node=8", "--gpus-per-node=9"))
    with pytest.raises(AssertionError, match="node configuration"):
        cluster.client("sbatch", "--test-only", str(too_many))


def test_the_last_of_two_options_counts(cluster, tmp_path):
    """The site's own options come last, so that they win."""
    script = tmp_path / "two.sbatch"
    script.write_text("#!/bin/bash\n#SBATCH --nodes=9\n#SBATCH --nodes=1\n:\n")
    cluster.client("sbatch", "--test-only", str(script))


@pytest.fixture
def in_slurm(cluster, tmp_path):
    """`in_slurm(job, site)`: how that job's script ended on the cluster, and what its python was called with.

    The "python" tells its arguments and does what `does` says, in shell.
    """

    def run(job: Job, site: Site, does: str = "exit 0", seconds: float = 120) -> tuple[dict[str, str], list[str]]:
        told, python = tmp_path / "calls.txt", tmp_path / "python"
        python.write_text(f"#!/bin/bash\necho \"$*\" >>'{told}'\n{does}\n")
        python.chmod(0o755)
        script = tmp_path / f"{job.script}.sbatch"
        script.write_text(render(job, site.model_copy(update={"python": str(python)})), encoding="utf-8")
        number = cluster.client("sbatch", "--parsable", str(script)).strip()
        ended = cluster.wait_for_state(number, "COMPLETED", "FAILED", "CANCELLED", seconds=seconds)
        return ended, read_lines(told)

    return run


def wanted_job(script: str, folder: Path, *arguments: str, **more) -> Job:
    return Job(script, script, arguments, folder=str(folder), output=f"{folder}/{script}_%j.txt", **more)


@pytest.mark.parametrize("name", ["my project", """it's "q" #1; $HOME %j""", " 数据  50%", "a[b]"])
def test_folders_of_any_name(cluster, in_slurm, tmp_path, name):
    """Working folder, output and the job's name reach Slurm as they are."""
    folder = tmp_path / name
    (folder / "run").mkdir(parents=True)
    output = f"{as_output(folder / 'run')}/said_%j.txt"
    job = Job("convert", name, (name,), folder=str(folder), output=output)
    ended, called = in_slurm(job, Site(), "pwd; echo said")
    number = ended["JobId"]
    assert ended["JobState"] == "COMPLETED" and called == [f"-m megatron_sky {name}"]
    assert (folder / f"run/said_{number}.txt").read_text() == f"{folder}\nsaid\n"
    assert f"JobId={number} JobName={name}\n" in cluster.client("scontrol", "show", "job", number)


@pytest.mark.parametrize(
    ("script", "arguments", "calls"),
    [
        ("convert", ("release", "run"), ["-m megatron_sky release run"]),
        ("evaluate", ("run",), ["-m megatron_sky eval loss run/checkpoints/step_0000005 --out run/eval/step_0000005"]),
        ("merge", ("pair",), ["-m megatron_sky data merge pair_shard_00000_of_00001 --out pair"]),
        ("tokenize", ("in", "--out", "o"), ["-m megatron_sky data tokenize in --out o --shard 0/1 --workers 1"]),
    ],
)
def test_a_site_that_says_nothing_of_cores(in_slurm, tmp_path, script, arguments, calls):
    """Slurm sets SLURM_CPUS_PER_TASK only where the job asked for cores."""
    (tmp_path / "run/checkpoints/step_0000005").mkdir(parents=True)
    (tmp_path / "pair_shard_00000_of_00001.idx").touch()
    array = "0-0" if script in ("evaluate", "tokenize") else None
    ended, called = in_slurm(wanted_job(script, tmp_path, *arguments, array=array), Site())
    assert ended["JobState"] == "COMPLETED" and called == calls, next(tmp_path.glob(f"{script}_*.txt")).read_text()


# What train.sbatch calls before, as and after an attempt: `codes` are those of `begin`, one for each start of the job.
# It takes a moment, as a node may refuse a job that starts and is put back within the same second.
ATTEMPTS = """
codes=({codes}) start=${{SLURM_RESTART_COUNT:-0}}
case "$*" in
*"attempt begin"*) sleep 2 && echo "{folder}" && exit "${{codes[start]}}" ;;
*"attempt end"*) if ((start + 1 < ${{#codes[@]}})); then echo {between}; else echo done; fi ;;
esac
"""


@pytest.mark.parametrize(
    ("codes", "state", "restarts"),
    [
        ("0 127 0", "COMPLETED", 2),  # more starts than MAX_REQUEUES, but no two in a row that can't begin
        ("0 137 1 0", "FAILED", 2),
        ("1 5 0", "FAILED", 1),
    ],
)
def test_a_node_that_can_not_begin_an_attempt(in_slurm, tmp_path, codes, state, restarts):
    job = wanted_job("train", tmp_path, "recipe.yaml")
    does = ATTEMPTS.format(codes=codes, folder=tmp_path, between="requeue")
    ended, _ = in_slurm(job, Site(max_requeues=1), does, seconds=240)
    said = next(tmp_path.glob("train_*.txt")).read_text()
    assert (ended["JobState"], int(ended["Restarts"])) == (state, restarts), said


def test_an_attempt_whose_end_nobody_entered(in_slurm, tmp_path):
    """The next one enters it, and decides by it."""
    does = ATTEMPTS.format(codes="0 0", folder=tmp_path, between="")
    ended, _ = in_slurm(wanted_job("train", tmp_path, "recipe.yaml"), Site(), does)
    said = next(tmp_path.glob("train_*.txt")).read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), said


def test_cancelling_an_evaluation(cluster, sky, tmp_path):
    """It has nothing to save, and would go on with the next checkpoint where only the one in hand were stopped."""
    run_dir = tmp_path / "run"
    for step in range(8):
        (run_dir / f"checkpoints/step_{step:07d}").mkdir(parents=True)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/bash\necho $8 >>'{tmp_path}/begun.txt'\nexec sleep 300\n")
    python.chmod(0o755)
    script = tmp_path / "evaluate.sbatch"
    script.write_text(render(wanted_job("evaluate", tmp_path, "run", array="0-1"), Site(python=str(python))))
    number = cluster.client("sbatch", "--parsable", str(script)).strip()
    attempts.add_jobs(run_dir, [attempts.QueuedJob(number, "evaluate", "sky-evaluate", str(script))])
    wait_until(lambda: len(read_lines(tmp_path / "begun.txt")) == 2, 60, "both tasks evaluate")
    done = sky("slurm", "cancel", run_dir, "--wait", "120")
    assert done.returncode == 0, done.stderr
    assert f"job {number} (sky-evaluate): ended, it has nothing to save" in done.stdout
    assert "saved" not in done.stdout and "asked to" not in done.stdout
    ended = cluster.client("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T").split()
    assert ended == ["CANCELLED"] * 2 and len(read_lines(tmp_path / "begun.txt")) == 2


def read_lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def test_a_bad_recipe_is_refused_before_it_is_queued(cluster, sky, recipe_file, tmp_path):
    def queued() -> set[str]:
        return set(cluster.client("squeue", "--noheader", "--states=all", "--format=%i").split())

    before = queued()
    layout = sky("slurm", "submit", recipe_file("parallel.tp_size=3"), "--nodes", "2")
    assert layout.returncode == 2 and "must divide the number of ranks, 16" in layout.stderr
    data = sky("slurm", "submit", recipe_file(), "data.train.0.path=nowhere", "--nodes", "1")
    assert data.returncode == 3 and "nowhere" in data.stderr
    partition = sky("slurm", "submit", recipe_file(), "--partition", "none", "--gpus-per-node", "1")
    assert partition.returncode == 5 and "invalid partition" in partition.stderr, partition.stderr
    assert queued() <= before, "finished jobs of other tests may leave meanwhile, none may come"
    evaluation = sky("slurm", "submit", recipe_file(), "--evaluate", "news=nowhere.jsonl", "--name", "a/b")
    assert evaluation.returncode == 2 and "news=nowhere.jsonl" in evaluation.stderr and "--name" in evaluation.stderr
    assert not (tmp_path / "run/slurm/jobs.json").exists()


def test_print_queues_nothing(cluster, sky, recipe_file, tmp_path):
    options = ("--print", "--nodes", "2", "--container", "sky.sqsh", "--release")
    done = sky("slurm", "submit", recipe_file("train.global_batch_size=16"), *options)
    assert done.returncode == 0 and "--container-image=sky.sqsh" in done.stdout
    assert done.stdout.count("#!/usr/bin/env bash") == 2 and "set -- release" in done.stdout
    assert not (tmp_path / "run").exists()
    refused = sky("slurm", "submit", recipe_file("parallel.tp_size=3"), "--print")
    assert refused.returncode == 2 and not refused.stdout


def test_a_folder_without_jobs(sky, tmp_path):
    for verb in ("status", "cancel"):
        done = sky("slurm", verb, tmp_path)
        assert done.returncode == 5 and "fix:" in done.stderr


def test_tokenizing_in_an_array_and_joining(cluster, sky, corpus, tmp_path):
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"document {number} " * (number % 60)}) for number in range(4000)]
    texts.write_text("\n".join(lines) + "\n" + "x" * (17 << 20) + "\n")  # over one piece of 16 MiB: several have work
    tokenizer = corpus / "tokenizer.model"
    whole = sky("data", "tokenize", texts, "--out", tmp_path / "whole", "--tokenizer", tokenizer, "--workers", "1")
    assert whole.returncode == 0, whole.stderr
    arguments = [str(texts), "--out", str(tmp_path / "joined"), "--tokenizer", str(tokenizer)]
    common = ["sbatch", "--parsable", "--cpus-per-task=1", "--mem=1G"]
    array = cluster.client(*common, "--array=0-2", str(scripts() / "tokenize.sbatch"), *arguments, cwd=tmp_path).strip()
    merge = cluster.client(
        *common,
        f"--dependency=afterok:{array}",
        str(scripts() / "merge.sbatch"),
        str(tmp_path / "joined"),
        cwd=tmp_path,
    ).strip()
    ended = cluster.wait_for_state(merge, "COMPLETED", "FAILED", "CANCELLED", seconds=240)
    said = "\n".join(path.read_text() for path in tmp_path.glob("slurm-*.log"))
    assert ended["JobState"] == "COMPLETED", said
    for ending in ("bin", "idx"):
        assert (tmp_path / f"joined.{ending}").read_bytes() == (tmp_path / f"whole.{ending}").read_bytes()
    assert len(list(tmp_path.glob("joined_shard_*.bin"))) == 3

    (tmp_path / "joined_shard_00001_of_00003.idx").unlink()
    again = cluster.client(*common, str(scripts() / "merge.sbatch"), str(tmp_path / "joined"), cwd=tmp_path).strip()
    assert cluster.wait_for_state(again, "COMPLETED", "FAILED", seconds=120)["JobState"] == "FAILED"
    assert "2 of 3 parts are there" in (tmp_path / f"slurm-merge-{again}.log").read_text()


def test_joining_the_parts_of_several_keys(cluster, sky, corpus, tmp_path):
    """Each key's parts make the pair that one process would write for it; what is no part of them stays out."""
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"title": f"title {number}", "body": f"body {number} " * 20}) for number in range(200)]
    texts.write_text("\n".join(lines) + "\n")
    arguments = [texts, "--tokenizer", corpus / "tokenizer.model", "--workers", "1", "--key", "title", "--key", "body"]
    for more in (["whole"], ["a b", "--shard", "0/2"], ["a b", "--shard", "1/2"]):
        done = sky("data", "tokenize", *arguments, "--out", tmp_path / more[0], *more[1:])
        assert done.returncode == 0, done.stderr
    (tmp_path / "a b_shard_of_the_web.idx").write_text("another's")

    def merge(*arguments: str) -> tuple[str, str]:
        command = ["sbatch", "--parsable", "--cpus-per-task=1", "--mem=1G", str(scripts() / "merge.sbatch"), "a b"]
        job = cluster.client(*command, *arguments, cwd=tmp_path).strip()
        ended = cluster.wait_for_state(job, "COMPLETED", "FAILED", seconds=120)
        return ended["JobState"], (tmp_path / f"slurm-merge-{job}.log").read_text()

    part = tmp_path / "a b_shard_00001_of_00002_body.idx"
    part.rename(tmp_path / "aside")
    state, said = merge()
    assert state == "FAILED" and "a b_body: 1 of 2 parts are there" in said
    (tmp_path / "aside").rename(part)
    assert not list(tmp_path.glob("a b_title.*"))

    state, said = merge()
    assert state == "COMPLETED", said
    for name in ("title.bin", "title.idx", "body.bin", "body.idx"):
        assert (tmp_path / f"a b_{name}").read_bytes() == (tmp_path / f"whole_{name}").read_bytes()
    assert not (tmp_path / "a b.bin").exists()

    state, said = merge()
    assert state == "FAILED" and said.count("--overwrite") == 2
    state, said = merge("--overwrite")
    assert state == "COMPLETED", said

    (tmp_path / "a b_shard_00000_of_00003_body.idx").touch()
    state, said = merge()
    assert state == "FAILED" and "a b_body: there are parts of 2 and parts of 3" in said
