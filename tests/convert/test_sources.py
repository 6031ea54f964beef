"""Which files of a Hugging Face folder are read, and which tensors in them are weights."""

import json
import shutil

import pytest
import torch

from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from megatron_sky.errors import CheckpointError
from tests.convert.test_native import assert_same_weights

LAYERS = 4


@pytest.fixture
def gpt2_with_masks(hf, tmp_path):
    """`gpt2_with_masks(dtype, ending)`: a GPT-2 folder with the mask buffers that transformers saved once."""
    from safetensors.torch import load_file, save_file

    def make(dtype, ending):
        folder = tmp_path / f"masks_{ending}"
        folder.mkdir()
        shutil.copy(hf("gpt2") / "config.json", folder)
        shutil.copy(hf("gpt2") / "tokenizer.model", folder)
        tensors = load_file(hf("gpt2") / "model.safetensors")
        for layer in range(LAYERS):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.tril(torch.ones(32, 32)).to(dtype)[None, None]
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        if ending == "bin":
            torch.save(tensors, folder / "pytorch_model.bin")
        else:
            save_file(tensors, folder / "model.safetensors")
        return folder

    return make


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int32, torch.int64], ids=str)
def test_constants_beside_the_weights_may_be_integers(dtype, ending, gpt2_with_masks, hf, tmp_path):
    done = write_native(open_source(gpt2_with_masks(dtype, ending)), tmp_path / "native")
    assert_same_weights(open_source(hf("gpt2")), open_source(done.folder))


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_weight_of_integers_is_refused_by_name(ending, hf, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(hf("tp2"), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"].to(torch.int8)
    if ending == "bin":
        torch.save(tensors, tmp_path / "hf" / "pytorch_model.bin")
    else:
        save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"model.layers.1.mlp.up_proj.weight: has dtype I8.*quantised"):
        open_source(tmp_path / "hf")


def test_a_bin_file_of_other_things_than_tensors_is_refused_by_name(hf, tmp_path):
    shutil.copy(hf("tp2") / "config.json", tmp_path)
    torch.save({"model": {"lm_head.weight": torch.ones(2)}, "step": 3}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: model, step: is no tensor"):
        open_source(tmp_path)


def test_weight_files_are_looked_for_in_transformers_order(hf, tmp_path):
    """A whole safetensors file, then its index, then a whole .bin file, then its index; the rest is left over."""
    shutil.copytree(hf("tp2"), tmp_path / "hf")
    index = json.dumps({"weight_map": {"lm_head.weight": "gone-00001-of-00002.bin"}})
    (tmp_path / "hf" / "pytorch_model.bin.index.json").write_text(index)
    (tmp_path / "hf" / "pytorch_model.bin").write_bytes(b"left over")
    assert_same_weights(open_source(hf("tp2")), open_source(tmp_path / "hf"))
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf" / "one.safetensors")
    names = _names(tmp_path / "hf" / "one.safetensors")
    listed = json.dumps({"weight_map": dict.fromkeys(names, "one.safetensors")})
    (tmp_path / "hf" / "model.safetensors.index.json").write_text(listed)
    assert_same_weights(open_source(hf("tp2")), open_source(tmp_path / "hf"))
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: is no archive"):
        open_source(tmp_path / "hf")


def _names(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as opened:
        return list(opened.keys())
