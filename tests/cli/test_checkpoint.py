"""`megatron-sky checkpoint prune`: what it deletes, what it keeps as training does, and what it leaves alone."""

import json
from pathlib import Path

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.config import dump_config
from megatron_sky.trainer import run_folder
from tests.conftest import SEQ_LENGTH

BATCH = 8 * SEQ_LENGTH  # tokens of a step
SESSIONS = f"sessions=[{{name: a, tokens: {3 * BATCH}}}, {{name: b, tokens: {37 * BATCH}}}]"


@pytest.fixture
def run_dir(recipe) -> Path:
    """A run of two sessions, the first of three steps, with checkpoints of steps 1 to 6; sizes and hashes are right."""
    config = recipe(SESSIONS)
    run_dir = Path(config.train.run_dir)
    for step in range(1, 7):
        final = store.folder_of(run_dir, step)
        temporary = final.with_name(final.name + ".tmp")
        temporary.mkdir(parents=True)
        (temporary / "weights").write_bytes(bytes(100))
        (temporary / "config.yaml").write_text(dump_config(config))
        described = {"progress": {"consumed_tokens": step * BATCH}, "data": {}, "layout": "one process"}
        (temporary / "train_state.json").write_text(json.dumps(described))
        store.finish(temporary, final, step, store.hash_files(temporary, store.files_of(temporary)))
    (run_dir / "config.yaml").write_text(dump_config(config))
    return run_dir


def steps(run_dir: Path) -> list[int]:
    return [step for step, _ in store.list_checkpoints(run_dir)]


@pytest.mark.parametrize("recipe_is_there", [True, False])
def test_the_ends_of_sessions_are_kept(recipe_is_there, sky, run_dir):
    if not recipe_is_there:
        (run_dir / "config.yaml").unlink()
    code, out, err = sky("checkpoint", "prune", run_dir, "--keep-last", 1)
    assert code == 0, err
    assert steps(run_dir) == [3, 6] and out.count("deleted") == 4


def test_a_damaged_newest_takes_nobodys_place(sky, run_dir):
    (store.folder_of(run_dir, 6) / "weights").write_bytes(b"x" * 100)
    code, _, err = sky("checkpoint", "prune", run_dir, "--keep-last", 1)
    assert code == 0, err
    assert steps(run_dir) == [3, 5, 6]


def test_nothing_is_deleted_where_none_is_whole(sky, run_dir):
    for step in steps(run_dir):
        (store.folder_of(run_dir, step) / "weights").unlink()
    code, _, err = sky("checkpoint", "prune", run_dir, "--keep-last", 1)
    assert code == 4 and "none of its 6 checkpoints is whole" in err
    assert len(steps(run_dir)) == 6


def test_what_was_cut_off_is_swept_unless_a_live_job_has_the_folder(sky, run_dir):
    left = [run_dir / "checkpoints" / name for name in ("step_0000009.tmp", "step_0000001.deleted")]
    for each in left:
        each.mkdir()
    code, out, _ = sky("checkpoint", "prune", run_dir, "--keep-last", 9, "--dry-run")
    assert code == 0 and out.count("would delete") == 2 and all(each.is_dir() for each in left)
    with run_folder.locked(run_dir, pytest.fail):
        code, out, _ = sky("checkpoint", "prune", run_dir, "--keep-last", 9)
    assert code == 0 and "2 unfinished folders stay" in out and "in use by a live job" in out
    assert all(each.is_dir() for each in left)
    code, out, _ = sky("checkpoint", "prune", run_dir, "--keep-last", 9)
    assert code == 0 and out.count("deleted, left by") == 2 and not any(each.is_dir() for each in left)


def test_what_can_not_be_asked(sky, run_dir, tmp_path):
    for command in (["list"], ["prune", "--keep-last", 1]):
        code, _, err = sky("checkpoint", *command, tmp_path / "nowhere")
        assert code == 4 and "holds no checkpoint" in err
    code, _, err = sky("checkpoint", "prune", run_dir, "--keep-last", 1, "--keep-every-tokens", "1x")
    assert code == 2 and "--keep-every-tokens = '1x': must be a count" in err and "the command line has" in err
    code, _, err = sky("checkpoint", "diff", run_dir, tmp_path)
    assert code == 4 and "is neither a checkpoint nor a run folder" in err
