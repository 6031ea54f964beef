"""Links that lie in wait in a run folder: a run writes through none, and reports read through none."""

import os
import shutil
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from tests.faults.test_faults import STEPS, expected, hurt, losses, run_dir, unhurt  # noqa: F401 (fixtures)

SETTINGS = ("monitor.tensorboard=true", "profile.first_step=3", "profile.num_steps=1")


@pytest.fixture
def written(hurt, run_dir):  # noqa: F811
    """Every file that a run writes, by its name in the run folder, which is empty again."""
    assert hurt(*SETTINGS).code == 0
    names = [
        path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file() and "checkpoints" not in path.parts
    ]
    assert {"metrics.jsonl", "run.json", "config.yaml", "logs/rank_00000.log", ".lock"} <= set(map(str, names))
    shutil.rmtree(run_dir)
    return [*names, Path(".probe"), Path("run.tmp"), Path("run.json.tmp"), Path("logs/stacks_00000.txt")]


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "precious"])
def test_a_run_writes_through_no_link(content, written, hurt, run_dir, tmp_path):  # noqa: F811
    for number, name in enumerate(dict.fromkeys(written)):
        victim = tmp_path / f"victim{number}"
        if content is not None:
            victim.write_text(content)
        link = run_dir / name
        link.parent.mkdir(parents=True)
        link.symlink_to(victim)
        ended = hurt(*SETTINGS, "train.max_steps=4")
        assert ended.code in (0, 5), (name, ended.message)
        assert ended.code == 0 or link.name in ended.message, (name, ended.message)
        assert (victim.read_text() if victim.exists() else None) == content, name
        shutil.rmtree(run_dir)


@pytest.mark.parametrize("ending", [".tmp", "", ".deleted"])
def test_a_link_in_the_place_of_a_checkpoint_is_replaced(ending, hurt, run_dir, tmp_path, expected):  # noqa: F811
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").touch()
    (run_dir / "checkpoints").mkdir(parents=True)
    for step in (4, 8):
        (run_dir / f"checkpoints/step_{step:07d}{ending}").symlink_to(tmp_path / "elsewhere")
    if not ending:  # it would be one of the run's, and not whole
        ended = hurt()
        assert ended.code == 4 and "none of its 2 checkpoints is whole" in ended.message
        shutil.rmtree(run_dir)
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "checkpoints/step_0000004").symlink_to(tmp_path / "nowhere")
    assert hurt("checkpoint.keep_last=2").code == 0
    assert losses(run_dir) == expected
    assert [(step, folder.is_symlink()) for step, folder in store.list_checkpoints(run_dir)] == [
        (8, False),
        (STEPS, False),
    ]
    assert os.listdir(tmp_path / "elsewhere") == ["precious"] and not (tmp_path / "nowhere").exists()


def test_a_users_own_links_of_folders_are_followed(hurt, run_dir, tmp_path, expected):  # noqa: F811
    for name in ("disk", "whole"):
        (tmp_path / name).mkdir()
    run_dir.symlink_to(tmp_path / "whole")
    (run_dir / "checkpoints").symlink_to(tmp_path / "disk")
    assert hurt().code == 0
    assert losses(run_dir) == expected
    assert sorted(os.listdir(tmp_path / "disk")) == [f"step_{step:07d}" for step in (4, 8, STEPS)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link to another user")
def test_a_link_of_another_user_is_refused(hurt, run_dir, tmp_path):  # noqa: F811
    (tmp_path / "disk").mkdir()
    run_dir.mkdir()
    (run_dir / "logs").symlink_to(tmp_path / "disk")
    os.chown(run_dir / "logs", 1234, 1234, follow_symlinks=False)
    ended = hurt()
    assert ended.code == 5 and f"{run_dir / 'logs'} is a link that another user made" in ended.message
    assert os.listdir(tmp_path / "disk") == []


def test_links_that_lead_in_a_circle_are_told(hurt, run_dir, sky):  # noqa: F811
    assert hurt("train.max_steps=2").code == 0
    for name in ("run.json", "config.yaml", "samples.json", "metrics.jsonl"):
        (run_dir / name).unlink(missing_ok=True)
        (run_dir / name).symlink_to(name)
        code, _, err = sky("report", run_dir)
        assert code == (5 if name == "metrics.jsonl" else 0) and "Traceback" not in err, err
    assert "metrics.jsonl" in err


def test_a_report_reads_through_no_link(hurt, run_dir, tmp_path, sky):  # noqa: F811
    assert hurt("train.max_steps=2").code == 0
    secret = tmp_path / "secret"
    secret.write_text('{"attempts": [{"password": "hunter2"}]}')
    for name in ("run.json", "config.yaml"):
        (run_dir / name).unlink()
        (run_dir / name).symlink_to(secret)
    code, _, _ = sky("report", run_dir)
    page = (run_dir / "report.html").read_text()
    assert code == 0 and "hunter2" not in page and "is a link out of its folder" in page
    (run_dir / "metrics.jsonl").rename(tmp_path / "metrics.jsonl")
    (run_dir / "metrics.jsonl").symlink_to(tmp_path / "metrics.jsonl")
    code, _, err = sky("report", run_dir)
    assert code == 5 and "metrics.jsonl: is a link out of its folder" in err
