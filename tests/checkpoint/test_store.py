"""What makes a checkpoint whole, and what a reader does with one that is not."""

import json

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.errors import CheckpointError


@pytest.fixture
def make(tmp_path):
    def make(step: int):
        final = store.folder_of(tmp_path, step)
        temporary = final.with_name(final.name + ".tmp")
        temporary.mkdir(parents=True)
        (temporary / "weights").write_bytes(b"w" * 1000 + bytes([step % 256]))
        (temporary / "state.json").write_text("{}")
        store.finish(temporary, final, step, store.hash_files(temporary, store.files_of(temporary)))
        return final

    return make


def test_the_latest_is_the_newest_whole_one(make, tmp_path):
    first, second = make(10), make(20)
    told = []
    assert store.find_latest(tmp_path, told.append) == second
    (second / "weights").write_bytes(b"x")
    assert store.find_latest(tmp_path, told.append) == first
    assert len(told) == 1 and "weights" in told[0]


DAMAGE = {
    "truncated": (lambda f: (f / "weights").write_bytes(b"w"), "has 1 bytes, the manifest says 1,001"),
    "flipped": (lambda f: (f / "weights").write_bytes(b"v" * 1001), "its hash differs"),
    "missing file": (lambda f: (f / "weights").unlink(), "is missing"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "never finished"),
    "torn manifest": (lambda f: (f / "manifest.json").write_text('{"format'), "can't be read"),
    "newer format": (
        lambda f: (f / "manifest.json").write_text(json.dumps({"format_version": 99, "step": 5, "files": {}})),
        "format_version = 99",
    ),
    "another step": (
        lambda f: (f / "manifest.json").write_text(json.dumps({"format_version": 1, "step": 6, "files": {}})),
        "is the manifest of step 6",
    ),
    "outside": (
        lambda f: (f / "manifest.json").write_text(
            json.dumps({"format_version": 1, "step": 5, "files": {"../x": {"size": 1, "sha256": ""}}})
        ),
        "lies outside",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind, make):
    folder = make(5)
    damage, part = DAMAGE[kind]
    damage(folder)
    with pytest.raises(CheckpointError, match="step_0000005") as caught:
        store.verify(folder)
    assert part in str(caught.value)


def test_all_damaged_is_an_error_and_not_a_fresh_start(make, tmp_path):
    (make(5) / "weights").unlink()
    with pytest.raises(CheckpointError, match="none of its 1 checkpoints is whole"):
        store.find_latest(tmp_path, lambda text: None)


def test_a_folder_that_was_never_finished_is_not_listed(make, tmp_path):
    make(5)
    (tmp_path / "checkpoints" / "step_0000009.tmp").mkdir()
    assert [step for step, _ in store.list_checkpoints(tmp_path)] == [5]


def retained(make, tmp_path, **rules) -> list[int]:
    for step in (1, 2, 3, 4, 10_000_000):
        folder = make(step)
        (folder / "train_state.json").write_text(json.dumps({"progress": {"consumed_tokens": step * 100}}))
    gone = store.to_prune(tmp_path, **{"keep_last": 2, "keep_every_tokens": None} | rules)
    for folder in gone:
        store.remove(folder)
    return [step for step, _ in store.list_checkpoints(tmp_path)]


def test_retention_keeps_the_newest(make, tmp_path):
    assert retained(make, tmp_path) == [4, 10_000_000]


def test_retention_keeps_one_per_so_many_tokens(make, tmp_path):
    assert retained(make, tmp_path, keep_last=1, keep_every_tokens=200) == [2, 4, 10_000_000]


def test_retention_keeps_release_marks(make, tmp_path):
    assert retained(make, tmp_path, keep_last=1, marks=[150, 260]) == [2, 3, 10_000_000]


def test_resolve(make, tmp_path):
    folder = make(7)
    assert store.resolve(folder, print) == store.resolve(tmp_path, print) == folder
    with pytest.raises(CheckpointError, match="is neither a checkpoint nor a run folder"):
        store.resolve(tmp_path / "elsewhere", print)


def test_no_checkpoint_yet(tmp_path):
    assert store.find_latest(tmp_path, print) is None
