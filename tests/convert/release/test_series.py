"""The series of intermediate checkpoints: which stands for a mark, what its card says, and that it goes on."""

import hashlib
import json
import logging
import shutil

import pytest
import yaml

from megatron_sky.convert.release.series import mark_label, release_run
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.conftest import SEQ_LENGTH
from tests.convert import workers
from tests.convert.conftest import recipe_of
from tests.convert.test_native import assert_same_weights

STEP = 8 * SEQ_LENGTH  # tokens


@pytest.fixture(scope="module")
def run(ranks, corpus, tmp_path_factory):
    """A run of four steps with a checkpoint after each and validation."""
    folder = tmp_path_factory.mktemp("release")
    recipe = recipe_of(corpus, folder / "tiny", {}, {}, "fp32")
    recipe["train"]["tokens"] = 4 * STEP
    recipe["checkpoint"] = {"interval": "1 steps", "release_marks": [STEP, 3 * STEP, 100 * STEP]}
    recipe["validation"] = {
        "sets": [{"name": "web", "path": str(corpus / "tokens/validation/en_web")}],
        "max_sequences": 4,
        "interval": "1 steps",
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    ranks(1, workers.train, str(path))
    return folder / "tiny"


def test_labels_are_exact():
    marks = {
        500 * 10**9: "500B",
        10**12: "1T",
        1_500 * 10**9: "1.5T",
        3_100 * 10**9: "3.1T",
        256: "256",
        1234: "1.234k",
    }
    assert {tokens: mark_label(tokens) for tokens in marks} == marks


@pytest.mark.slow
def test_the_series(run, tmp_path):
    folders = release_run(run, tmp_path / "series")
    assert [folder.name for folder in folders] == ["tiny-256", "tiny-768"]
    for folder, step in zip(folders, (1, 3), strict=True):
        assert_same_weights(open_source(run / "checkpoints" / f"step_{step:07d}"), open_source(folder))
    card = (folders[1] / "README.md").read_text()
    assert card.startswith("---\n") and "# tiny-768" in card
    assert "768 tokens" in card and "step 3" in card
    assert "| web |" in card and "| 3 |" in card
    assert hashlib.sha256((folders[1] / "model.safetensors").read_bytes()).hexdigest() in card
    shares = [line for line in card.splitlines() if line.startswith(("| en_web", "| zh_web"))]
    assert sum(int(line.split("|")[2].replace(",", "")) for line in shares) == 3 * STEP
    assert str(run.parent) not in card  # nothing of the machine
    assert "sessions" not in card
    series = json.loads((tmp_path / "series" / "series.json").read_text())
    assert [each["consumed_tokens"] for each in series["checkpoints"]] == [STEP, 3 * STEP]
    stamps = [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders]
    assert release_run(run, tmp_path / "series") == folders
    assert [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders] == stamps


def test_a_mark_needs_a_checkpoint_near_it(run, tmp_path, caplog):
    copy = tmp_path / "tiny"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / "step_0000002")
    shutil.rmtree(copy / "checkpoints" / "step_0000003")
    out = tmp_path / "series"
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        assert release_run(copy, out, marks=[STEP, STEP + 1]) == [out / "tiny-256"]
    assert "257: skipped: the next checkpoint is at 1,024 tokens" in caplog.text
    with pytest.raises(CheckpointError, match="no checkpoint stands for any of 1T; it has checkpoints at 256"):
        release_run(copy, out, marks=[10**12])
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        release_run(tmp_path)


def test_a_renamed_run_keeps_its_series_name(run, tmp_path):
    shutil.copytree(run, tmp_path / "tiny")
    release_run(tmp_path / "tiny", marks=[STEP])
    (tmp_path / "tiny").rename(tmp_path / "renamed")
    folders = release_run(tmp_path / "renamed", marks=[STEP, 2 * STEP])
    assert [folder.name for folder in folders] == ["tiny-256", "tiny-512"]


def stamps(folders):
    return [(folder / "model.safetensors").stat().st_mtime_ns for folder in folders]


def test_a_mark_that_is_exported_stays_whatever_becomes_of_its_checkpoint(run, tmp_path):
    """The run is moved, other file sizes are asked for, the mark's checkpoint is pruned: the command goes on."""
    moved, out = tmp_path / "moved", tmp_path / "series"
    shutil.copytree(run, moved)
    (first,) = release_run(run, out, marks=[STEP], name="tiny")
    before = stamps([first])
    assert release_run(moved, out, marks=[STEP, 2 * STEP], name="tiny") == [first, out / "tiny-512"]
    assert release_run(moved, out, marks=[STEP], name="tiny", file_size=60_000) == [first]
    for step in (1, 2, 3):
        shutil.rmtree(moved / "checkpoints" / f"step_000000{step}")
    assert release_run(moved, out, marks=[STEP, 4 * STEP], name="tiny") == [first, out / "tiny-1.024k"]
    assert release_run(moved, out, marks=[STEP], name="tiny") == [first]
    assert stamps([first]) == before
    with pytest.raises(CheckpointError, match="exists already, as LlamaForCausalLM, not SkyworkForCausalLM"):
        release_run(moved, out, marks=[STEP], name="tiny", architecture="SkyworkForCausalLM")
    (first / "model.safetensors").write_bytes(b"changed")
    with pytest.raises(CheckpointError, match=r"tiny-256: exists already, but its model.safetensors is missing"):
        release_run(moved, out, marks=[STEP], name="tiny")


def test_the_series_lists_what_stands_in_the_folder(run, tmp_path):
    out = tmp_path / "series"
    release_run(run, out, marks=[3 * STEP], name="tiny")
    (out / "tiny-notes").mkdir()
    release_run(run, out, marks=[STEP], name="tiny")
    release_run(run, out, marks=[2 * STEP], name="other")
    release_run(run, out, marks=[STEP], name="tiny")
    series = json.loads((out / "series.json").read_text())
    assert series["name"] == "tiny"
    expected = [("256", STEP, "step_0000001", "tiny-256"), ("768", 3 * STEP, "step_0000003", "tiny-768")]
    assert [tuple(each.values()) for each in series["checkpoints"]] == expected


@pytest.mark.parametrize("damage", ["train_state.json", "config.yaml", "the weights"])
def test_a_damaged_checkpoint_is_passed_over(damage, run, tmp_path, caplog):
    moved = tmp_path / "tiny"
    shutil.copytree(run, moved)
    for step in (2, 4):
        folder = moved / "checkpoints" / f"step_000000{step}"
        (next(folder.glob("*.distcp")) if damage == "the weights" else folder / damage).write_text("")
    out = tmp_path / "series"
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        release_run(moved, out, marks=[STEP, 3 * STEP, 4 * STEP])
    series = json.loads((out / "series.json").read_text())
    assert [each["step"] for each in series["checkpoints"]] == ["step_0000001", "step_0000003"]
    assert "passed over: " in caplog.text and "step_0000002" in caplog.text
    for step in (1, 3):
        shutil.rmtree(moved / "checkpoints" / f"step_000000{step}")
    with pytest.raises(CheckpointError, match="none of its 2 checkpoints can be read"):
        release_run(moved, out, marks=[STEP])


def test_push_without_a_token_says_so_and_leaves_the_folders(run, tmp_path, monkeypatch, caplog):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "get_token", lambda: None)
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        folders = release_run(run, tmp_path / "series", marks=[STEP], push="team/tiny")
    assert "not uploaded: there is no Hugging Face token" in caplog.text and folders[0].is_dir()


def test_push_without_a_network_says_so_and_leaves_the_folders(run, tmp_path, monkeypatch, caplog):
    """The library's own error of a connection that can't be made, which is no OSError."""
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        folders = release_run(run, tmp_path / "series", marks=[STEP], push="team/tiny")
    assert "256: not uploaded: " in caplog.text and "run the command again" in caplog.text and folders[0].is_dir()


def test_push_to_what_is_no_repository_says_so(run, tmp_path, monkeypatch, caplog):
    pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    with caplog.at_level(logging.WARNING, "megatron_sky"):
        release_run(run, tmp_path / "series", marks=[STEP], push="a/b/c")
    assert "256: not uploaded: " in caplog.text


@pytest.mark.slow
def test_the_card_tells_the_sessions(ranks, corpus, tmp_path):
    recipe = recipe_of(corpus, tmp_path / "staged", {}, {}, "fp32")
    del recipe["train"]["tokens"]
    recipe["checkpoint"] = {"interval": "1 steps"}
    recipe["sessions"] = [
        {"name": "first", "tokens": STEP},
        {"name": "second", "tokens": STEP, "weights": {"zh_web": 1.0}, "schedule": {"lr": 1.5e-3}, "start": "weights"},
    ]
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    ranks(1, workers.train, str(path))
    (folder,) = release_run(tmp_path / "staged", tmp_path / "series", marks=[2 * STEP])
    card = (folder / "README.md").read_text()
    told = yaml.safe_load(card.partition("```yaml\n")[2].partition("```")[0])["sessions"]
    assert [(each["name"], each["tokens"]) for each in told] == [("first", STEP), ("second", STEP)]
    assert told[1]["weights"] == {"zh_web": 1.0} and told[1]["schedule"]["lr"] == 1.5e-3


def test_push_uploads_a_revision_a_mark(run, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    calls = []

    class Api:
        def create_repo(self, name, exist_ok):
            calls.append(("repo", name))

        def create_branch(self, name, branch, exist_ok):
            calls.append(("branch", branch))

        def upload_folder(self, repo_id, folder_path, revision):
            calls.append(("folder", revision, folder_path))

    monkeypatch.setattr(hub, "get_token", lambda: "token")
    monkeypatch.setattr(hub, "HfApi", Api)
    (folder,) = release_run(run, tmp_path / "series", marks=[STEP], push="team/tiny")
    assert calls == [("repo", "team/tiny"), ("branch", "256-tokens"), ("folder", "256-tokens", str(folder))]
