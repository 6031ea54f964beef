"""The command line as a user meets it: help, and one clear message with the fix for every bad input."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sky.config import dump_config
from tests.slow import slow_in_every_row

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe_file(recipe, tmp_path):
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_config(recipe()), encoding="utf-8")
    return path


def test_help_names_every_verb(sky):
    code, out, _ = sky("--help")
    assert code == 0
    for verb in ("quickstart", "train", "report", "generate", "schema"):
        assert verb in out


def test_version(sky):
    assert sky("--version")[1].startswith("megatron-sky ")


def test_schema_is_printed(sky):
    import json

    assert json.loads(sky("schema")[1])["title"] == "Config"


def bad(sky, recipe_file, *arguments: str) -> str:
    """The message of a train command that must fail before it makes anything."""
    code, _, err = sky("train", recipe_file, *arguments)
    assert code != 0
    assert "Traceback" not in err
    assert "fix:" in err
    return err


def test_a_typo(sky, recipe_file):
    assert "did you mean model.hidden_size?" in bad(sky, recipe_file, "model.hiden_size=3")


def test_a_wrong_type(sky, recipe_file):
    assert "model.num_layers (command line) = 'many'" in bad(sky, recipe_file, "model.num_layers=many")


def test_a_layout_that_does_not_divide(sky, recipe_file):
    assert "must divide the number of ranks, 2" in bad(sky, recipe_file, "parallel.tp_size=4", "--nproc", "2")


def test_missing_and_empty_data_files_are_told_together(sky, recipe_file, tmp_path, corpus):
    for ending in ("bin", "idx"):
        shutil.copy(corpus / f"tokens/train/en_web.{ending}", tmp_path / f"empty.{ending}")
    (tmp_path / "empty.bin").write_bytes(b"")
    err = bad(
        sky, recipe_file, f"data.train.0.path={tmp_path}/nowhere", f"data.train.1.path={tmp_path}/empty", "--nproc", "2"
    )
    assert "nowhere" in err and "empty.bin" in err


def test_no_source(sky, recipe_file):
    assert "data.train" in bad(sky, recipe_file, "data.train=[]")


def test_ids_beyond_the_vocabulary(sky, recipe_file):
    err = bad(sky, recipe_file, "model.vocab_size=300", "tokenizer.path=null")
    assert "300" in err and "vocab_size" in err


def test_a_tokenizer_that_did_not_make_the_data(sky, recipe_file, tmp_path):
    from megatron_sky.tokenizer.train import train_tokenizer

    train_tokenizer(["some other text, long enough to learn from " * 20], tmp_path / "other.model", 320)
    assert "tokenizer" in bad(sky, recipe_file, f"tokenizer.path={tmp_path}/other.model")


def test_a_run_folder_that_can_not_be_written(sky, recipe_file, tmp_path):
    (tmp_path / "file").write_text("")
    assert "train.run_dir" in bad(sky, recipe_file, f"train.run_dir={tmp_path}/file/run")


@pytest.mark.parametrize("name", ["file", "file/run", "x" * 300])
def test_a_dry_run_looks_at_the_run_folder_and_makes_nothing(name, sky, recipe_file, tmp_path):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    assert "can't be written" in bad(sky, recipe_file, f"train.run_dir={tmp_path}/{name}", "--dry-run")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_a_run_folder_in_use(sky, recipe_file, recipe):
    from megatron_sky.trainer import run_folder

    run_dir = Path(recipe().train.run_dir)
    run_folder.prepare(run_dir)
    with run_folder.locked(run_dir, print):
        err = bad(sky, recipe_file)
        assert f"pid {os.getpid()}" in bad(sky, recipe_file, "--dry-run")
    assert f"pid {os.getpid()}" in err
    assert not list((run_dir / "checkpoints").iterdir())


def test_too_little_data_for_the_run(sky, recipe_file):
    assert "max_epochs" in bad(sky, recipe_file, "train.tokens=100M")


def test_nproc_inside_a_launcher(sky, recipe_file, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "already rank 1 of 4" in bad(sky, recipe_file, "--nproc", "2")


def test_a_missing_recipe(sky, tmp_path):
    code, _, err = sky("train", tmp_path / "nothing.yaml")
    assert code == 2 and "no such recipe file" in err


def test_a_missing_optional_package(ranks, recipe, tmp_path):
    path = tmp_path / "wandb.yaml"
    path.write_text(dump_config(recipe("monitor.wandb.project=x")))
    (message,) = ranks(1, train_without_wandb, str(path))
    assert 'pip install "megatron-sky[wandb]"' in message


def train_without_wandb(info, path: str) -> str:
    from megatron_sky.config import load_config
    from megatron_sky.distributed.context import close_context
    from megatron_sky.errors import MissingDependency
    from megatron_sky.trainer.run import train

    sys.modules["wandb"] = None  # as if it were not installed
    try:
        train(load_config([path]), info)
    except MissingDependency as error:
        close_context()
        return str(error)
    finally:
        del sys.modules["wandb"]
    return ""


def command(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "megatron_sky", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=ROOT,
        check=False,
        **options,
    )


@slow_in_every_row
def test_two_processes_then_another_model_then_text(sky, recipe_file, recipe):
    """A real run through the launcher, refused under another shape, and heard at last."""
    run_dir = Path(recipe().train.run_dir)
    done = command("train", recipe_file, "train.max_steps=2", "parallel.tp_size=2", "--nproc", "2")
    assert done.returncode == 0, done.stderr
    assert (run_dir / "checkpoints/step_0000002/manifest.json").is_file()
    assert (run_dir / "logs/rank_00001.log").is_file()

    refused = command("train", recipe_file, "model.num_layers=2", "--nproc", "2")
    assert refused.returncode == 4
    assert "model.num_layers: 4 in the checkpoint, 2 in the recipe" in refused.stderr
    assert "Traceback" not in refused.stderr

    other = ["train", recipe_file, "model.num_layers=2", "--dry-run"]
    elsewhere = f"train.run_dir={run_dir}2"
    for more in ([], [elsewhere, f"checkpoint.init_from={run_dir}"]):
        assert "model.num_layers: 4 in the checkpoint, 2 in the recipe" in sky(*other, *more)[2]
    nowhere = sky(*other, elsewhere, f"checkpoint.init_from={run_dir}/nowhere")
    assert nowhere[0] == 4 and "is neither a checkpoint nor a run folder" in nowhere[2]

    changed = command("train", recipe_file, "data.seed=99")
    assert changed.returncode == 2 and "data.seed" in changed.stderr and "99" in changed.stderr

    heard = command("generate", run_dir, "The river", "--max-tokens", "3")
    assert heard.returncode == 0 and heard.stdout.startswith("The river"), heard.stderr

    page = command("report", run_dir)
    assert page.returncode == 0 and (run_dir / "report.html").is_file(), page.stderr


@slow_in_every_row
def test_a_rank_that_dies_brings_the_job_down(recipe_file, tmp_path, corpus):
    """A data file that turns bad for one rank only: its cause is the last thing on the screen."""
    for ending in ("bin", "idx"):
        shutil.copy(corpus / f"tokens/train/en_web.{ending}", tmp_path / f"bad.{ending}")
    with open(tmp_path / "bad.bin", "r+b") as file:  # no meta file: ids are only checked batch by batch
        file.write(b"\xff\xff" * (os.path.getsize(tmp_path / "bad.bin") // 2))
    done = command("train", recipe_file, f"data.train.0.path={tmp_path}/bad", "--nproc", "2")
    assert done.returncode == 3
    last = done.stderr.strip().rpartition("megatron-sky: ")[2]
    assert last.startswith("rank ") and "bad.bin" in last and "65535" in last


def test_dry_run_of_512_ranks(sky):
    done = command(
        "train",
        "examples/skywork_13b/model.yaml",
        "examples/skywork_13b/sessions.yaml",
        "--dry-run",
        "--world-size",
        "512",
    )
    assert "PP2 x DP256 on 512 rank(s)" in done.stdout
    assert "13,854,269,952 parameters" in done.stdout
    assert "stage-2: tokens 3.00T to 3.13T" in done.stdout and "every check passed" not in done.stdout
    assert done.returncode == 3  # the corpus is not on this machine, and that is told, all at once
    assert "tokenizer.model can't be read" in done.stderr and "validation/zh_social.bin does not exist" in done.stderr
    assert done.stderr.count("fix: give the path prefix") == 1


def test_dry_run_with_data(recipe_file):
    done = command("train", recipe_file, "parallel.pp_size=2", "--dry-run", "--world-size", "4")
    assert done.returncode == 0, done.stderr
    assert "every check passed" in done.stdout and "zh_web" in done.stdout and "stage 1" in done.stdout


def test_a_path_that_can_not_be_written_is_named(sky, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = sky("data", "synthetic", tmp_path / "file" / "corpus")
    assert code == 5 and f"{tmp_path}/file" in err and "fix:" in err and "Traceback" not in err


def test_an_interruption_says_so(tmp_path):
    job = subprocess.Popen(
        [sys.executable, "-m", "megatron_sky", "data", "synthetic", tmp_path, "--train-bytes", "100000000000"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )
    try:
        while not list(tmp_path.glob("train/*.tmp")):
            assert job.poll() is None, job.stderr.read()
        job.send_signal(signal.SIGINT)
        assert job.wait(60) == 130 and job.stderr.read().strip() == "megatron-sky: interrupted"
    finally:
        job.kill()
    assert not list(tmp_path.glob("train/*.jsonl"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_idle_threads_sleep_unless_the_environment_says_otherwise(given, expected, sky, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    sky("--version")
    chosen = os.environ.get("GOMP_SPINCOUNT")
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert chosen == expected
