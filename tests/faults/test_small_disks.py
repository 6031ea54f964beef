"""The system's own small disks, full: /dev/shm and TMPDIR are named, and a request to stop is still one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.config import dump_config
from tests.faults.harness import wait_for
from tests.faults.test_faults import small_disk  # noqa: F401 (a fixture)
from tests.faults.test_screen_and_signals import steps

ROOT = Path(__file__).parents[2]
SKY = [sys.executable, "-m", "megatron_sky"]


def with_full_shared_memory(*arguments: object) -> subprocess.CompletedProcess:
    """The command where /dev/shm, in a mount namespace of its own, has no room."""
    full = "mount -t tmpfs -o size=4k,nr_inodes=2 tmpfs /dev/shm && head -c 4096 /dev/zero > /dev/shm/fill && exec "
    words = " ".join(f"'{word}'" for word in [*SKY, *arguments])
    command = ["unshare", "-m", "sh", "-c", full + words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def own_namespace():
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no permission for a mount namespace")


def test_tokenize_names_shared_memory(own_namespace, corpus, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"text": "The river."}) + "\n")
    given = ["--tokenizer", corpus / "tokenizer.model", "--out", tmp_path / "out", "--workers", "2"]
    done = with_full_shared_memory("data", "tokenize", text, *given)
    assert done.returncode == 5 and "megatron-sky: /dev/shm: " in done.stderr, done.stderr
    assert "--shm-size" in done.stderr and "out" not in done.stderr and not (tmp_path / "out.idx").exists()


def test_doctor_names_shared_memory(own_namespace, tmp_path):
    done = with_full_shared_memory("doctor", "--run-dir", tmp_path, "--ranks", "2", "--disk-mib", "1")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "/dev/shm: the processes' shared memory can't be made" in done.stdout


def test_a_checkpoint_needs_no_shared_memory(own_namespace, recipe, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe("train.max_steps=2")))
    done = with_full_shared_memory("train", tmp_path / "recipe.yaml")
    assert done.returncode == 0, done.stderr
    assert [step for step, _ in store.list_checkpoints(tmp_path / "run")] == [2]


@pytest.mark.slow
def test_a_request_to_stop_with_a_full_tmpdir(recipe, tmp_path, small_disk):  # noqa: F811
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe("train.max_steps=100000", "train.tokens=100M")))
    environ = os.environ | {"TMPDIR": str(small_disk)}
    command = [*SKY, "train", str(tmp_path / "recipe.yaml"), "data.max_epochs=1e9", "--nproc", "2"]
    job = subprocess.Popen(command, cwd=ROOT, env=environ, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert wait_for(lambda: steps(tmp_path / "run") > 1, seconds=120)
    with pytest.raises(OSError), open(small_disk / "fill", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    job.send_signal(signal.SIGTERM)
    _, said = job.communicate(timeout=120)
    assert job.returncode == 75, said
    assert b"signal SIGTERM; everything is saved" in said and b"Traceback" not in said
    assert len(store.list_checkpoints(tmp_path / "run")) == 1


def test_a_tmpdir_that_cannot_be_written(monkeypatch, recipe, tmp_path, sky):
    def refuse(*_, **__):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    monkeypatch.setenv("TMPDIR", "/full")
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe()))
    code, _, err = sky("train", tmp_path / "recipe.yaml", "--nproc", "2")
    assert code == 5 and "TMPDIR (/full): no folder for temporary files can be made" in err and "fix:" in err


def test_a_ranks_own_cause_is_said_where_it_cannot_be_written_down(small_disk):  # noqa: F811
    code = (
        "from megatron_sky.distributed.launch import guard\nfrom megatron_sky.errors import DataError\n"
        "def work(): raise DataError('tokens.bin: is gone')\nguard(work, 3)"
    )
    (small_disk / "fill").touch()
    with pytest.raises(OSError), open(small_disk / "fill", "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    environ = os.environ | {"MEGATRON_SKY_ERROR_DIR": str(small_disk)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "rank 3: tokens.bin: is gone" in done.stderr and f"{small_disk}: can't be written" in done.stderr
