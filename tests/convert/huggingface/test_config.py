"""config.json and the `model` section, from each other: what is written reads back, what isn't supported is named."""

import json

import pytest

from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.huggingface.config import (
    Settings,
    build_config,
    build_generation_config,
    describe_model,
    read_settings,
)
from megatron_sky.convert.huggingface.families import GPT2, LLAMA, SKYWORK
from megatron_sky.errors import CheckpointError
from tests.convert.huggingface.conftest import GPT2_CONFIG, LLAMA_CONFIG

MODELS = {
    LLAMA: {"preset": "tiny", "num_query_groups": 1, "kv_channels": 24, "tie_embeddings": True, "rotary_base": 5e5},
    SKYWORK: {"preset": "tiny", "rope_scaling": {"kind": "llama3", "factor": 8.0}, "add_bias_linear": True},
    GPT2: {
        "preset": "tiny",
        "position_embedding": "learned_absolute",
        "normalization": "layernorm",
        "activation": "gelu",
        "add_bias_linear": True,
        "num_query_groups": None,
        "tie_embeddings": True,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
    },
}


def described(config: dict, tmp_path) -> ModelConfig:
    return describe_model(Settings(config, None), tmp_path)[0]


@pytest.mark.parametrize("architecture", MODELS)
def test_what_is_written_reads_back(architecture, tmp_path):
    model = ModelConfig.model_validate(MODELS[architecture])
    config = build_config(model, architecture=architecture, dtype="BF16", special_ids={"eos_token_id": 2}, kept=None)
    again, named = describe_model(Settings(json.loads(json.dumps(config)), None), tmp_path)
    assert named == architecture and config["torch_dtype"] == "bfloat16"
    assert (config["eos_token_id"], config["pad_token_id"]) == (2, None)
    same = ("vocab_size", "hidden_size", "query_groups", "head_size", "num_layers", "tie_embeddings", "rotary_base")
    for name in (*same, "rope_scaling", "add_bias_linear", "norm_epsilon", "activation", "normalization"):
        assert getattr(again, name) == getattr(model, name), name


def test_gelu_by_erf_has_a_name_of_its_own(tmp_path):
    model = ModelConfig.model_validate(MODELS[GPT2] | {"activation": "gelu_exact"})
    config = build_config(model, architecture=GPT2, dtype="BF16", special_ids={}, kept=None)
    assert config["activation_function"] == "gelu"
    assert describe_model(Settings(json.loads(json.dumps(config)), None), tmp_path)[0].activation == "gelu_exact"


def test_keys_that_say_nothing_of_the_weights_come_back():
    kept = Settings({"eos_token_id": 7, "hidden_size": 1, "torch_dtype": "float16", "note": "x"}, {"top_p": 0.9})
    model = ModelConfig.model_validate(MODELS[LLAMA])
    config = build_config(model, architecture=LLAMA, dtype="F32", special_ids={"eos_token_id": 2}, kept=kept)
    assert (config["eos_token_id"], config["note"]) == (7, "x"), "the folder's own ids go before the tokenizer's"
    assert config["hidden_size"] == model.hidden_size and config["torch_dtype"] == "float32"
    assert build_generation_config({"eos_token_id": 2}, kept) == {"top_p": 0.9}
    assert build_generation_config({}, Settings({}, None)) is None
    assert build_generation_config({"eos_token_id": 2}, None) == {"eos_token_id": 2, "do_sample": False}


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLAMA_CONFIG, {"architectures": ["MistralForCausalLM"]}, "isn't supported"),
        (LLAMA_CONFIG, {"architectures": []}, "isn't supported"),
        (LLAMA_CONFIG, {"architectures": None}, "isn't supported"),
        (LLAMA_CONFIG, {"quantization_config": {"bits": 4}}, "quantised"),
        (LLAMA_CONFIG, {"hidden_act": "gelu"}, "hidden_act = 'gelu': must be 'silu' or 'swish'"),
        (LLAMA_CONFIG, {"mlp_bias": True}, "attention_bias and mlp_bias differ"),
        (LLAMA_CONFIG, {"hidden_size": None}, "hidden_size: is missing"),
        (LLAMA_CONFIG, {"hidden_size": "wide"}, "hidden_size = 'wide'"),
        (LLAMA_CONFIG, {"rope_scaling": 3}, "rope_scaling = 3: must be a table or null"),
        (LLAMA_CONFIG, {"rope_scaling": {"rope_type": "yarn", "factor": 2}}, "only linear and llama3"),
        (LLAMA_CONFIG, {"rope_scaling": {"type": "linear"}}, "names no factor"),
        (LLAMA_CONFIG, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "no other values"),
        (LLAMA_CONFIG, {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        (GPT2_CONFIG, {"activation_function": "relu"}, "activation_function"),
        (GPT2_CONFIG, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        (GPT2_CONFIG, {"n_embd": "16"}, "n_embd = '16': must be a whole number"),
        (GPT2_CONFIG, {"n_embd": True}, "n_embd = True: must be a whole number"),
    ],
)
def test_what_is_not_supported_is_named(base, changes, message, tmp_path):
    with pytest.raises(CheckpointError, match=message) as caught:
        described(base | changes, tmp_path)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"rope_scaling": None}, None),
        ({"rope_scaling": {"rope_type": "default"}}, None),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, ("linear", 2.0)),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6}}, ("linear", 4.0)),
    ],
)
def test_scaling_in_every_spelling(changes, expected, tmp_path):
    scaling = described(LLAMA_CONFIG | changes, tmp_path).rope_scaling
    assert (scaling and (scaling.kind, scaling.factor)) == expected


def test_a_folder_with_and_without_settings_of_generation(tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json: is missing"):
        read_settings(tmp_path)
    (tmp_path / "config.json").write_text('{"a": 1}')
    assert read_settings(tmp_path) == Settings({"a": 1}, None)
    (tmp_path / "generation_config.json").write_text('{"b": 2}')
    assert read_settings(tmp_path) == Settings({"a": 1}, {"b": 2})
