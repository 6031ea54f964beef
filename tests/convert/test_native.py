"""Hugging Face folders to native checkpoints: bit for bit, and loadable in any layout."""

import json
import shutil

import numpy as np
import pytest
import yaml

from megatron_sky.checkpoint import store
from megatron_sky.checkpoint.reader import weights
from megatron_sky.checkpoint.reader.lazy import same_bits
from megatron_sky.checkpoint.reader.torch_dist import read_stored
from megatron_sky.convert.huggingface.folder import write_hf
from megatron_sky.convert.native import write_native
from megatron_sky.convert.sources import open_source
from tests.convert import workers
from tests.convert.conftest import KINDS, recipe_of
from tests.slow import slow_except

transformers = pytest.importorskip("transformers")


def assert_same_weights(a, b) -> None:
    assert a.weights.keys() == b.weights.keys()
    for name, tensor in a.weights.items():
        assert tensor.dtype == b.weights[name].dtype and same_bits(tensor.load(), b.weights[name].load()), name


@pytest.mark.parametrize("kind", slow_except(KINDS, "tp2", "tied"))
def test_the_round_trip_is_exact(kind, native, hf, tmp_path):
    there = open_source(hf(kind))
    back = open_source(write_native(there, tmp_path / "back").folder)
    before = open_source(native(kind))
    assert_same_weights(before, back)
    shown = ("padded_vocab_size", "head_size", "query_groups", "rope_scaling", "tie_embeddings", "norm_epsilon")
    for name in shown:
        assert getattr(back.model, name) == getattr(before.model, name)
    assert back.tokenizer.read_bytes() == before.tokenizer.read_bytes()
    store.verify(tmp_path / "back")


@pytest.mark.parametrize("kind", ["tp2", "tied", "gpt2"])
def test_megatron_core_computes_the_same_with_what_came_back(kind, native, hf, ranks, tmp_path):
    back = write_native(open_source(hf(kind)), tmp_path / "back").folder
    before, after = (ranks(1, workers.logits, str(folder))[0] for folder in (native(kind), back))
    assert np.array_equal(before, after)


LAYOUTS = [(1, {}), (2, {"tp_size": 2}), (2, {"pp_size": 2, "vpp_size": 2}), (4, {"tp_size": 2, "pp_size": 2})]


@pytest.mark.slow
def test_a_run_starts_from_it_in_any_layout(hf, ranks, corpus, tmp_path):
    back = write_native(open_source(hf("tp2")), tmp_path / "back", file_size=60_000).folder
    losses = [first_loss(back, tmp_path / str(n), corpus, ranks, *layout) for n, layout in enumerate(LAYOUTS)]
    assert losses == pytest.approx([losses[0]] * len(LAYOUTS), abs=1e-5)
    assert abs(losses[0] - np.log(700)) > 0.02  # not a fresh model's


def first_loss(back, run_dir, corpus, ranks, world_size: int, parallel: dict) -> float:
    """The loss of the first step of a run that starts from `back`."""
    recipe = recipe_of(corpus, run_dir, parallel, {}, "fp32") | {"checkpoint": {"init_from": str(back)}}
    recipe["train"]["max_steps"] = 1
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(recipe))
    ranks(world_size, workers.train, str(path))
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return next(line["lm_loss"] for line in lines if line["kind"] == "train")


def test_padding_rows_are_made_anew_for_the_target(hf, tmp_path):
    done = write_native(open_source(hf("tp2")), tmp_path / "back", vocab_multiple=64)
    stored = read_stored(done.folder)
    assert stored[weights.WORD_EMBEDDING].shape == (704, 32)
    assert "vocab_multiple: 64" in (done.folder / "config.yaml").read_text()
    assert open_source(done.folder).weights[weights.WORD_EMBEDDING].shape == (700, 32)


def test_bin_files_are_read_without_unpickling(native, hf, tmp_path):
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(hf("tp2") / "config.json", folder)
    tensors = load_file(hf("tp2") / "model.safetensors")
    names = sorted(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[:20], "pytorch_model-00002-of-00002.bin": names[20:]}
    for file, listed in halves.items():
        torch.save({name: torch.nn.Parameter(tensors[name]) for name in listed}, folder / file)
    index = {"weight_map": {name: file for file, listed in halves.items() for name in listed}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert_same_weights(open_source(native("tp2")), open_source(folder))


@pytest.mark.slow
def test_transformers_own_folders_are_read(ranks, tmp_path):
    """Folders that transformers wrote, with its own spellings of the config."""
    import torch

    llama = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    gpt2 = transformers.GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    for name, config in (("llama", llama), ("gpt2", gpt2)):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        model.save_pretrained(tmp_path / name)
        done = write_native(open_source(tmp_path / name), tmp_path / f"{name}_native")
        ours = ranks(1, workers.logits, str(done.folder))[0]
        with torch.no_grad():
            theirs = model(torch.tensor([workers.TOKENS])).logits[0].numpy()
        assert np.abs(ours - theirs).max() <= 1e-5


def test_the_published_skywork_folder_is_read_without_its_code(native, hf, tmp_path):
    folder = tmp_path / "skywork"
    write_hf(open_source(native("tp2")), folder, architecture="SkyworkForCausalLM")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_skywork.SkyworkForCausalLM"}
    for key in ("rope_parameters", "head_dim", "mlp_bias", "attention_bias"):
        del config[key]  # keys of later years
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling_skywork.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    done = write_native(open_source(folder), tmp_path / "back")
    assert_same_weights(open_source(native("tp2")), open_source(done.folder))
    assert not (tmp_path / "ran").exists()
