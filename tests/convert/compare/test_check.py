"""The comparison by logits: agreement, and the first layer and tensor where two checkpoints part."""

import json
import shutil

import numpy as np
import pytest

from megatron_sky.convert.compare.check import compare
from megatron_sky.errors import CheckpointError
from tests.slow import slow_except

pytest.importorskip("transformers")


def compare_in_a_rank(info, *paths, **options):
    """megatron-core wants a process prepared before it is imported; a rank is."""
    report = compare(*paths, **options)
    return report, str(report), report.agree


@pytest.mark.parametrize("kind", slow_except(["tp2", "gpt2", "tied", "llama3_rope", "linear_rope", "bf16"], "tp2"))
def test_a_conversion_agrees(kind, native, hf, ranks):
    report, text, agree = ranks(1, compare_in_a_rank, native(kind), hf(kind))[0]
    assert agree and report.largest_difference <= 2e-5, text
    assert report.next_token_agreement == 1.0 and report.first_divergence is None
    assert report.num_tokens > 100 and [name for name, _ in report.stages][:2] == ["embedding", "layer 0"]


def test_two_native_checkpoints_are_compared(native, ranks):
    report, text, agree = ranks(1, compare_in_a_rank, native("tp2"), native("tp2"))[0]
    assert agree and report.largest_difference == 0.0, text


@pytest.fixture
def damaged(hf, tmp_path):
    """`damaged(change)`: the Hugging Face folder of "tp2" with its tensors changed by `change(tensors)`."""
    from safetensors.torch import load_file, save_file

    def make(change):
        folder = tmp_path / "damaged"
        shutil.copytree(hf("tp2"), folder)
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def swap_heads(tensors):
    """Queries of two heads exchanged, as by a wrong order of groups."""
    name = "model.layers.2.self_attn.q_proj.weight"
    tensors[name] = tensors[name].roll(8, 0).contiguous()


def swap_gate_and_up(tensors):
    gate, up = (f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up"))
    tensors[gate], tensors[up] = tensors[up].clone(), tensors[gate].clone()


def scale_head(tensors):
    tensors["lm_head.weight"] *= 1.5


def shift_embedding(tensors):
    tensors["model.embed_tokens.weight"] += 0.5


@pytest.mark.parametrize(
    ("change", "where", "cause"),
    [
        (swap_heads, "layer 2", "decoder.layers.2.self_attention.linear_qkv.weight"),
        (swap_gate_and_up, "layer 1", "decoder.layers.1.mlp.linear_fc1.weight"),
        (scale_head, "final norm or output", "output_layer.weight"),
        (shift_embedding, "embedding", "embedding.word_embeddings.weight"),
    ],
)
def test_the_first_difference_is_named(change, where, cause, native, damaged, ranks):
    report, text, agree = ranks(1, compare_in_a_rank, native("tp2"), damaged(change))[0]
    assert not agree and report.first_divergence == where
    assert report.causes[0].startswith(cause) and len(report.causes) == 1
    assert f"part at: {where}" in text and "DIFFER" in text and np.isfinite(report.largest_difference)


def test_a_config_that_differs_is_named(native, hf, ranks, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(hf("tp2"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config["rope_parameters"]["rope_theta"] = 500.0
    (folder / "config.json").write_text(json.dumps(config))
    report, _, agree = ranks(1, compare_in_a_rank, native("tp2"), folder)[0]
    assert not agree and report.first_divergence == "layer 0"
    assert report.causes == ["rotary_base: 10000.0 in A, 500.0 in B"]


def test_another_tokenizer_is_named(native, hf, ranks, tmp_path):
    folder = tmp_path / "hf"
    shutil.copytree(hf("tp2"), folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"] = content["model"]["merges"][5:]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    report, _, agree = ranks(1, compare_in_a_rank, native("tp2"), folder)[0]
    assert not agree and "different ids" in report.tokenizer_note


@pytest.mark.slow
def test_models_of_different_sizes_are_refused(native, hf):
    with pytest.raises(CheckpointError, match="models of different sizes"):
        compare(native("one"), _narrower(hf("one")))


def _narrower(folder):
    """A folder of another width, made from transformers' own class."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(str(folder))
    config.hidden_size, config.head_dim = 16, 4
    out = folder.parent / "narrower"
    transformers.LlamaForCausalLM(config).save_pretrained(out)
    return out
