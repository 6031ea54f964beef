"""What makes a checkpoint whole, and what a reader does with one that is not."""

import json
import shutil

import pytest

from megatron_sky.checkpoint import store
from megatron_sky.errors import CheckpointError


@pytest.fixture
def make(tmp_path):
    """`make(step)`: a whole checkpoint of that step, at 100 tokens a step."""

    def make(step: int):
        final = store.folder_of(tmp_path, step)
        temporary = final.with_name(final.name + ".tmp")
        temporary.mkdir(parents=True)
        (temporary / "weights").write_bytes(b"w" * 1000 + bytes([step % 256]))
        (temporary / "train_state.json").write_text(json.dumps({"progress": {"consumed_tokens": step * 100}}))
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
    "another shape": (
        lambda f: (f / "manifest.json").write_text(
            json.dumps({"format_version": 1, "step": 5, "files": {"weights": {"size": "big", "sha256": "0"}}})
        ),
        "files.weights.size = 'big': should be a valid integer",
    ),
    "no hash": (
        lambda f: (f / "manifest.json").write_text(
            json.dumps({"format_version": 1, "step": 5, "files": {"weights": {"size": 1001}}})
        ),
        "files.weights has neither a sha256 nor an xxh3",
    ),
    "no files": (
        lambda f: (f / "manifest.json").write_text(json.dumps({"format_version": 1, "step": 5, "files": {}})),
        "files has no train_state.json",
    ),
    "a link": (
        lambda f: (f / "weights").rename(f.parent / "moved") and (f / "weights").symlink_to(f.parent / "moved"),
        "is a link out of the checkpoint",
    ),
    "nested without end": (lambda f: (f / "manifest.json").write_text("[" * 200_000), "nested too deeply"),
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


def pruned(run_dir, told=None, **rules):
    given = {"newest": 10_000_000, "keep_last": 2, "keep_every_tokens": None, "warn": pytest.fail} | rules
    return store.to_prune(run_dir, **given | ({} if told is None else {"warn": told.append}))


def retained(make, tmp_path, **rules) -> list[int]:
    for step in (1, 2, 3, 4, 10_000_000):
        make(step)
    for folder in pruned(tmp_path, **rules):
        store.remove(folder)
    return [step for step, _ in store.list_checkpoints(tmp_path)]


def test_retention_keeps_the_newest(make, tmp_path):
    assert retained(make, tmp_path) == [4, 10_000_000]


def test_retention_keeps_one_per_so_many_tokens(make, tmp_path):
    assert retained(make, tmp_path, keep_last=1, keep_every_tokens=200) == [2, 4, 10_000_000]


def test_retention_keeps_release_marks(make, tmp_path):
    assert retained(make, tmp_path, keep_last=1, marks=[150, 260]) == [2, 3, 10_000_000]


def test_retention_lets_nothing_whole_go_for_what_was_passed_over(make, tmp_path):
    """The run went on from step 100, as that of step 200 was damaged, and has come to 150."""
    for step in (100, 200, 150):
        make(step)
    (store.folder_of(tmp_path, 200) / "weights").write_bytes(b"v" * 1001)  # its size is right
    assert [each.name for each in pruned(tmp_path, newest=150, keep_last=1)] == ["step_0000100"]


def lose_the_progress(folder):
    (folder / "train_state.json").unlink()


def tear_the_progress(folder):
    (folder / "train_state.json").write_text("{")


def lose_the_folders_content(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "damage", [lose_the_progress, tear_the_progress, lose_the_folders_content, DAMAGE["truncated"][0]]
)
def test_retention_passes_over_the_damaged(damage, make, tmp_path):
    """They take nobody's place, neither among the newest nor at a mark, and stay."""
    for step in (1, 2, 3, 4, 5):
        make(step)
    damage(store.folder_of(tmp_path, 2))
    damage(store.folder_of(tmp_path, 4))
    told = []
    gone = pruned(tmp_path, told, newest=5, marks=[150])
    assert gone == [store.folder_of(tmp_path, 1)]  # 3 is at the mark and among the newest, 5 too
    assert len(told) == 2 and all("damaged" in each for each in told)
    assert "step_0000002" in told[0] and "step_0000004" in told[1]


def test_leftovers(make, tmp_path):
    make(1)
    root = tmp_path / "checkpoints"
    for name in ("step_0000002.tmp", "step_0000001.deleted", "mine.tmp", "step_0000003.copy"):
        (root / name).mkdir()
    assert [each.name for each in store.leftovers(tmp_path)] == ["step_0000001.deleted", "step_0000002.tmp"]
    assert store.leftovers(tmp_path / "none") == []


def test_resolve(make, tmp_path):
    folder = make(7)
    assert store.resolve(folder, print) == store.resolve(tmp_path, print) == folder
    with pytest.raises(CheckpointError, match="is neither a checkpoint nor a run folder"):
        store.resolve(tmp_path / "elsewhere", print)


def test_no_checkpoint_yet(tmp_path):
    assert store.find_latest(tmp_path, print) is None


def test_a_file_that_no_manifest_lists_is_named(make):
    folder = make(10)
    assert store.unlisted(folder) == []
    (folder / "more").mkdir()
    (folder / "more/weights").write_bytes(b"w")
    store.verify(folder)
    assert store.unlisted(folder) == ["more/weights"]


def test_a_checkpoint_that_is_deleted_while_it_is_looked_at_is_no_damaged_one(tmp_path):
    """As a training with keep_last = 1 does while a reader hashes its files."""
    folders = {step: store.folder_of(tmp_path, step) for step in (1, 2, 3)}
    folders[1].mkdir(parents=True)
    told, looked_at = [], []

    def check(folder):
        looked_at.append(folder)
        if folder in (folders[1], folders[2]):  # each time a newer one is saved, and this one let go
            store.folder_of(tmp_path, len(looked_at) + 1).mkdir()
            folder.rmdir()
            raise CheckpointError(f"{folder}: is missing")

    assert store.find_latest(tmp_path, told.append, check=check) == folders[3]
    assert told == [
        f"{folders[step]} was deleted while it was looked at; taking the newest that is there now" for step in (1, 2)
    ]
