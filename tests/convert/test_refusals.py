"""Damaged, contradictory and hostile files are named and refused; interrupted conversions go on."""

import json
import os
import pickle
import shutil

import pytest
import torch

from megatron_sky.checkpoint import store
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError, DataError
from tests.convert.test_native import assert_same_weights


@pytest.fixture
def checkpoint(native, tmp_path):
    """A copy of a native checkpoint, to be damaged, without the manifest's word on its sizes."""
    folder = tmp_path / "step_0000002"
    shutil.copytree(native("tp2"), folder)
    manifest = json.loads((folder / store.MANIFEST).read_text())
    manifest["files"] = {store.TRAIN_STATE: manifest["files"][store.TRAIN_STATE]}
    (folder / store.MANIFEST).write_text(json.dumps(manifest))
    return folder


class Bomb:
    """What a hostile pickle does: calls a function of its choice."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_hostile_metadata_is_refused_and_not_run(checkpoint, tmp_path):
    (checkpoint / ".metadata").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(CheckpointError, match=r"\.metadata.*mkdir"):
        open_source(checkpoint)
    assert not (tmp_path / "ran").exists()


def test_a_hostile_bin_file_is_refused_and_not_run(hf, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(hf("tp2") / "config.json", folder)
    torch.save({"lm_head.weight": Bomb(tmp_path / "ran")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin.*mkdir"):
        open_source(folder)
    assert not (tmp_path / "ran").exists()


def test_hostile_settings_of_megatron_are_passed_over_and_not_run(native, corpus, tmp_path):
    path = tmp_path / "iter_0000001" / "mp_rank_00" / "model_optim_rng.pt"
    path.parent.mkdir(parents=True)
    torch.save({"model": {}, "checkpoint_version": 3.0, "args": Bomb(tmp_path / "ran")}, path)
    with pytest.raises(CheckpointError, match="holds no args"):
        open_source(tmp_path / "iter_0000001", tokenizer=corpus / "tokenizer.model")
    assert not (tmp_path / "ran").exists()


def weight_file(folder):
    return max(folder.glob("*.distcp"), key=lambda path: path.stat().st_size)


def test_a_missing_file_is_named(checkpoint):
    weight_file(checkpoint).unlink()
    with pytest.raises(CheckpointError, match=r"__\d_\d.distcp: is missing"):
        open_source(checkpoint)


def test_a_truncated_file_is_named(checkpoint):
    for path in checkpoint.glob("*.distcp"):
        os.truncate(path, 100)
    with pytest.raises(CheckpointError, match=r"__\d_\d.distcp: has .* the file is truncated"):
        open_source(checkpoint)


def test_a_flipped_byte_is_named_and_nothing_is_written(checkpoint, tmp_path):
    source = open_source(checkpoint)
    for path in checkpoint.glob("*.distcp"):
        data = bytearray(path.read_bytes())
        for at in range(0, len(data), 997):
            data[at] ^= 1
        path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"distcp"):
        write_hf(source, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("cut", ["the weights", "train_state.json", "common.pt", "tokenizer.model"])
def test_the_manifest_is_believed(cut, native, tmp_path):
    folder = tmp_path / "step_0000002"
    shutil.copytree(native("tp2"), folder)
    (weight_file(folder) if cut == "the weights" else folder / cut).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="has 1 bytes, the manifest says"):
        open_source(folder)


def test_a_checkpoint_without_its_progress_is_no_folder_of_another_program(native, tmp_path):
    folder = tmp_path / "step_0000002"
    shutil.copytree(native("tp2"), folder)
    (folder / "train_state.json").unlink()
    with pytest.raises(CheckpointError, match=r"train_state.json: is missing"):
        open_source(folder)


@pytest.mark.parametrize(
    ("before", "after", "part"),
    [
        (
            "ffn_hidden_size: 48",
            "ffn_hidden_size: 64",
            r"linear_fc1.weight.*has shape \[96, 32\], the model's is \[128, 32\]",
        ),
        ("num_layers: 4", "num_layers: 3", r"layers.*\[3\]: is no tensor of this model"),
        ("num_layers: 4", "num_layers: 5", r"decoder.layers.4.mlp.linear_fc1.weight: is missing"),
        ("tie_embeddings: false", "tie_embeddings: true", r"output_layer.weight: is no tensor of this model"),
        ("vocab_size: 700", "vocab_size: 690", r"its config says 690 and its tokenizer says 700"),
        ("vocab_size: 700", "vocab_size: 800", r"its config says 800 and its tokenizer says 700"),
    ],
)
def test_a_config_that_contradicts_the_tensors(before, after, part, checkpoint):
    path = checkpoint / "config.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(CheckpointError, match=f"(?s){part}"):
        open_source(checkpoint)


def test_a_tokenizer_that_is_none_is_named(checkpoint):
    (checkpoint / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(DataError, match=r"tokenizer\.model"):
        open_source(checkpoint)


@pytest.fixture
def folder(native, tmp_path):
    """A Hugging Face folder of several files, to be damaged."""
    return write_hf(open_source(native("tp2")), tmp_path / "hf_to_damage", file_size=60_000).folder


HF_DAMAGE = {
    "a missing file": (lambda f: (f / first(f)).unlink(), "model-00001.*is missing"),
    "a truncated file": (lambda f: os.truncate(f / first(f), 50_000), "model-00001.*truncated"),
    "a torn header": (lambda f: os.truncate(f / first(f), 100), "model-00001.*truncated within its header"),
    "no weights": (lambda f: [path.unlink() for path in f.glob("*model*")], "holds no weights"),
    "another width": (lambda f: edit(f, hidden_size=64), r"embed_tokens.weight.*shape \[700, 32\]"),
    "another layer count": (lambda f: edit(f, num_hidden_layers=3), "model.layers.3.*is no tensor of this model"),
    "another vocabulary": (
        lambda f: edit(f, vocab_size=701),
        r"embed_tokens.weight: has shape \[700, 32\], config.json means \[701, 32\]",
    ),
    "an unknown architecture": (lambda f: edit(f, architectures=["BertModel"]), "BertModel.*isn't supported"),
    "another activation": (lambda f: edit(f, hidden_act="gelu"), "hidden_act = 'gelu'"),
    "an unknown scaling": (lambda f: edit(f, rope_scaling={"rope_type": "yarn", "factor": 2}), "rope_scaling.*yarn"),
    "a scaling without a factor": (lambda f: edit(f, rope_scaling={"type": "linear"}), "rope_scaling.*names no factor"),
    "a scaling by words": (
        lambda f: edit(f, rope_scaling={"type": "linear", "factor": "x"}),
        "rope_scaling.factor = 'x'",
    ),
    "a scaling that is no table": (
        lambda f: edit(f, rope_scaling="linear"),
        "rope_scaling = 'linear': must be a table",
    ),
    "a word for a switch": (lambda f: edit(f, tie_word_embeddings="maybe"), "tie_embeddings = 'maybe'"),
    "a width of zero": (lambda f: edit(f, hidden_size=0), "config.json: describes no model:.*hidden_size = 0"),
    "quantised weights": (lambda f: edit(f, quantization_config={"bits": 4}), "quantised"),
    "no config": (lambda f: (f / "config.json").unlink(), "is no checkpoint"),
}


def first(folder):
    return min(path.name for path in folder.glob("*.safetensors"))


def edit(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


@pytest.mark.parametrize("kind", HF_DAMAGE)
def test_a_damaged_hugging_face_folder_is_named(kind, folder):
    damage, part = HF_DAMAGE[kind]
    damage(folder)
    with pytest.raises(CheckpointError, match=f"(?s){part}"):
        open_source(folder)


@pytest.mark.parametrize("said", [{"tie_word_embeddings": None}, {"initializer_range": 0.0}], ids=str)
def test_a_config_may_leave_open_what_the_weights_do_not_need(said, native, folder):
    edit(folder, **said)
    assert_same_weights(open_source(native("tp2")), open_source(folder))
