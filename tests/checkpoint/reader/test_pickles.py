"""A checkpoint that holds a program is refused, wherever it hides it, and the program does not run."""

import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.reader import pickles
from megatron_sky.errors import CheckpointError
from tests.checkpoint.record import RECORDED

FINAL_NORM = "decoder.final_layernorm._extra_state/shard_0_1"
COMMON = "common_state/shard_0_1"


class Bomb:
    """What a hostile pickle does: calls a function of its choice."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def as_bytes(value: object) -> torch.Tensor:
    """As Transformer Engine's modules give their extra state."""
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def plant(folder: Path, key: str, value: object) -> None:
    """Puts `value` in the place of an object of the checkpoint; the manifest agrees."""
    index = pickle.loads((folder / ".metadata").read_bytes())
    (at,) = [each for each in index.storage_data if each.fqn == key]
    place = index.storage_data[at]
    with open(folder / place.relative_path, "ab") as file:
        place.offset = file.tell()
        torch.save(value, file)
        place.length = file.tell() - place.offset
        place.transform_descriptors = None
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    manifest = json.loads((folder / store.MANIFEST).read_text())
    manifest["files"] = {name: r.to_dict() for name, r in store.hash_files(folder, store.files_of(folder)).items()}
    (folder / store.MANIFEST).write_text(json.dumps(manifest))


def told_when_loaded(info, folder: str) -> str:
    from megatron_sky.checkpoint import state
    from tests.checkpoint.record import opened, small

    entered, build = opened(small("none"))
    with entered as context:
        model, _ = build(context)
        try:
            state.load(Path(folder), context=context, chunks=model.chunks)
        except CheckpointError as error:
            return str(error)
        return ""


@pytest.fixture
def checkpoint(tmp_path):
    """`checkpoint("0.16")`: a copy of the one recorded with that version."""

    def copied(version: str) -> Path:
        (recorded,) = [each for each in RECORDED.iterdir() if each.name.startswith(version)]
        return shutil.copytree(recorded / "checkpoint", tmp_path / "checkpoint")

    return copied


@pytest.mark.parametrize("version", ["0.16", "0.19"])
@pytest.mark.parametrize("hidden", [lambda bomb: [bomb], lambda bomb: [as_bytes({"scale_fwd": bomb})]])
def test_a_program_as_a_modules_extra_state(hidden, version, checkpoint, ranks, tmp_path):
    folder = checkpoint(version)
    plant(folder, FINAL_NORM, hidden(Bomb(tmp_path / "ran")))
    (told,) = ranks(1, told_when_loaded, str(folder))
    assert "_extra_state" in told and "mkdir" in told and "it was not run" in told
    assert not (tmp_path / "ran").exists()


def test_a_program_as_what_is_no_tensor(checkpoint, ranks, tmp_path):
    """Without common.pt megatron-core 0.19 reads this object; 0.16 misses the file, and that is told."""
    folder = checkpoint("0.19")
    plant(folder, COMMON, [Bomb(tmp_path / "ran")])
    (folder / "common.pt").unlink()
    (told,) = ranks(1, told_when_loaded, str(folder))
    assert "mkdir" in told or "common.pt" in told
    assert not (tmp_path / "ran").exists()


def test_a_program_as_the_index_of_tensors(checkpoint, ranks, tmp_path):
    folder = checkpoint("0.19")
    (folder / "common.pt").unlink()  # what is read first then is the index
    (folder / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    (told,) = ranks(1, told_when_loaded, str(folder))
    assert ".metadata" in told and "mkdir" in told
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def transformer_engine(monkeypatch):
    """A module of its recipes' names."""
    names = ("transformer_engine", "transformer_engine.common", "transformer_engine.common.recipe")
    made = [types.ModuleType(name) for name in names]
    for module in made:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    made[-1].DelayedScaling = type("DelayedScaling", (), {"__module__": names[-1]})
    return made[-1]


def test_a_state_of_scales_is_read(transformer_engine):
    recipe = transformer_engine.DelayedScaling()
    recipe.amax_history_len = 64
    state = {"recipe": recipe, "scale_fwd": torch.ones(3), "extra_fp8_variables": {"num_gemms": 1, "names": ("a",)}}
    pickles.check_extra_state(as_bytes(state), "here")
    pickles.check_extra_state(torch.empty(0, dtype=torch.uint8), "here")
    pickles.check_extra_state(None, "here")


class AsStorage(Bomb):
    """Hides the program in what a tensor's numbers are read from."""

    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(Bomb(self.path)),)


@pytest.mark.parametrize("kind", [Bomb, AsStorage])
def test_a_state_that_is_a_program_is_refused(kind, tmp_path):
    with pytest.raises(CheckpointError, match=r"here: .*(mkdir|as data)"):
        pickles.check_extra_state(as_bytes({"scale_fwd": kind(tmp_path / "ran")}), "here")
    assert not (tmp_path / "ran").exists()


def test_a_state_that_is_no_pickle_is_refused():
    with pytest.raises(CheckpointError, match=r"here: is no state of 8-bit scales"):
        pickles.check_extra_state(torch.arange(24, dtype=torch.uint8), "here")
