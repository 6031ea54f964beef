"""What a checkpoint says of itself, and what is said where it can't be understood."""

import json
import shutil

import pytest

from megatron_sky import __version__
from megatron_sky.checkpoint.description import read_description, train_state
from megatron_sky.errors import CheckpointError
from tests.checkpoint.record import RECORDED


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(sorted(RECORDED.iterdir())[0] / "checkpoint", tmp_path / "step_0000001")


def test_a_recipe_of_another_version_is_told_with_field_versions_and_fix(checkpoint):
    path = checkpoint / "config.yaml"
    path.write_text(path.read_text() + "\nrenamed_section:\n  x: 1\n")
    described = json.loads((checkpoint / "train_state.json").read_text())
    (checkpoint / "train_state.json").write_text(json.dumps(described | {"megatron_sky": "0.0.7"}))
    with pytest.raises(CheckpointError) as caught:
        read_description(checkpoint)
    told = str(caught.value)
    assert told.startswith(f"{path}: was saved by megatron_sky 0.0.7, and megatron_sky {__version__} can't read it")
    assert "renamed_section" in told and "is not a known key" in told
    assert "fix: load the checkpoint with the version that saved it" in told and "manifest.json" in told


def test_a_checkpoint_that_names_no_version_is_read_and_its_fault_told(checkpoint):
    assert read_description(checkpoint).config.model.num_layers == 2
    path = checkpoint / "config.yaml"
    path.write_text(path.read_text().replace("  num_layers:", "  depth:"))
    with pytest.raises(CheckpointError, match=r"megatron_sky of an unknown version.*\n(.*\n)*.*model.depth"):
        read_description(checkpoint)


def test_progress_that_is_no_mapping_is_told(checkpoint):
    (checkpoint / "train_state.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"train_state.json: can't be read"):
        read_description(checkpoint)


def test_the_version_is_saved(tmp_path):
    assert json.loads(train_state({"progress": {}, "data": {}, "layout": ""}))["megatron_sky"] == __version__
