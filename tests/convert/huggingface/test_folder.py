"""Native checkpoints of every layout to Hugging Face: transformers loads them and computes the same."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import same_bits
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.sources import open_source
from tests.conftest import VOCAB_SIZE
from tests.convert import workers
from tests.convert.conftest import KINDS

transformers = pytest.importorskip("transformers")


def hf_logits(folder) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([workers.TOKENS])).logits[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_computes_the_same(kind, native, hf, ranks):
    ours = ranks(1, workers.logits, str(native(kind)))[0]
    theirs = hf_logits(hf(kind))
    assert theirs.shape == (len(workers.TOKENS), VOCAB_SIZE)
    assert np.abs(ours - theirs).max() <= (2e-5 if kind == "gpt2" else 1e-5)  # GELU's formula is rounded otherwise
    assert np.ptp(ours) > 0.5  # logits that say something


@pytest.mark.parametrize("kind", ["one", "bf16", "gpt2"])
def test_number_format_and_generation_settings_are_kept(kind, hf):
    folder = hf(kind)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto")
    assert model.dtype == (torch.bfloat16 if kind == "bf16" else torch.float32)
    assert (model.generation_config.bos_token_id, model.generation_config.eos_token_id) == (1, 2)
    assert model.config.vocab_size == VOCAB_SIZE


def test_files_are_split_between_layers_and_listed(native, tmp_path):
    source = open_source(native("tp2"))
    done = write_hf(source, tmp_path / "hf", file_size=60_000)
    files = sorted(path.name for path in done.folder.glob("*.safetensors"))
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((done.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == source.num_bytes
    from safetensors import safe_open

    for file in files:
        with safe_open(done.folder / file, "pt") as opened:
            assert {name for name, where in index["weight_map"].items() if where == file} == set(opened.keys())
    assert np.abs(hf_logits(done.folder) - hf_logits(write_hf(source, tmp_path / "whole").folder)).max() == 0


def test_skywork_naming_differs_in_config_alone(native, hf, tmp_path):
    skywork = write_hf(open_source(native("tp2")), tmp_path / "skywork", architecture="SkyworkForCausalLM").folder
    config = json.loads((skywork / "config.json").read_text())
    assert config["architectures"] == ["SkyworkForCausalLM"] and config["model_type"] == "skywork"
    assert (skywork / "model.safetensors").read_bytes() == (hf("tp2") / "model.safetensors").read_bytes()
    again = open_source(skywork)
    assert again.architecture == "SkyworkForCausalLM"
    for name, tensor in open_source(native("tp2")).weights.items():
        assert same_bits(tensor.load(), again.weights[name].load())


def test_every_layout_holds_the_same_shapes_without_padding(native):
    for kind in ("one", "tp2", "pp2", "vpp2", "tp2_pp2"):
        source = open_source(native(kind))
        expected = {name: shape for unit in weights.units(source.model) for name, shape in unit.items()}
        assert {name: tensor.shape for name, tensor in source.weights.items()} == expected
        assert source.weights[weights.OUTPUT_LAYER].shape[0] == VOCAB_SIZE


def test_neither_torch_nor_megatron_core_is_imported(native, tmp_path):
    code = (
        "import sys; from megatron_sky.cli.convert import app\n"
        f"try: app(['to-hf', {str(native('one'))!r}, {str(tmp_path / 'hf')!r}])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'torch', 'megatron'} & set(sys.modules), 'imported'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "hf" / "config.json").is_file()
