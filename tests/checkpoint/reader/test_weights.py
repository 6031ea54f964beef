"""The names and shapes of a model's weights, and what does not hold them."""

import math

import numpy as np
import pytest

from megatron_sky.checkpoint.reader.lazy import LazyTensor
from megatron_sky.checkpoint.reader.weights import (
    OUTPUT_LAYER,
    WORD_EMBEDDING,
    canonical,
    put,
    units,
    validate_and_trim,
)
from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import CheckpointError
from megatron_sky.model.flops import num_parameters

BASE = {"preset": "tiny", "vocab_size": 100, "num_layers": 2}


def model(**fields) -> ModelConfig:
    return ModelConfig.model_validate(BASE | fields)


def tensor(shape: tuple[int, ...], dtype: str = "F32") -> LazyTensor:
    return LazyTensor(dtype, shape, lambda: np.zeros(shape, np.uint32), f"file: {shape}")


def whole(of: ModelConfig) -> dict[str, LazyTensor]:
    return {name: tensor(shape) for unit in units(of) for name, shape in unit.items()}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_embeddings": True},
        {"add_bias_linear": True, "normalization": "layernorm", "activation": "gelu"},
        {"position_embedding": "learned_absolute"},
        {"num_query_groups": 1, "kv_channels": 24},
    ],
)
def test_shapes_add_up_to_the_count_of_parameters(fields):
    of = model(**fields)
    assert sum(math.prod(tensor.shape) for tensor in whole(of).values()) == num_parameters(of)


def test_order_is_embedding_layers_output():
    parts = units(model())
    assert len(parts) == 4 and WORD_EMBEDDING in parts[0] and OUTPUT_LAYER in parts[-1]
    assert all(name.startswith("decoder.layers.1.") for name in parts[2])
    assert OUTPUT_LAYER not in units(model(tie_embeddings=True))[-1]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("decoder.layers.3.input_layernorm.weight", "decoder.layers.3.self_attention.linear_qkv.layer_norm_weight"),
        ("decoder.layers.3.pre_mlp_layernorm.bias", "decoder.layers.3.mlp.linear_fc1.layer_norm_bias"),
        ("decoder.final_layernorm.weight", "decoder.final_layernorm.weight"),
    ],
)
def test_norms_apart_have_the_fused_ones_names(name, expected):
    assert canonical(name) == expected == canonical(expected)


def test_two_of_one_name():
    weights: dict[str, LazyTensor] = {}
    put(weights, "a", tensor((1,)))
    with pytest.raises(CheckpointError, match=r"file: \(2,\): is a, and so is file: \(1,\)"):
        put(weights, "a", tensor((2,)))


def test_padding_rows_are_cut_off(tmp_path):
    weights = whole(model()) | {WORD_EMBEDDING: tensor((128, model().hidden_size))}
    trimmed = validate_and_trim(weights, model(), tmp_path)
    assert trimmed[WORD_EMBEDDING].shape == (100, model().hidden_size) and trimmed.keys() == weights.keys()


def test_all_that_is_wrong_is_told_together(tmp_path):
    weights = whole(model())
    del weights["decoder.layers.0.mlp.linear_fc2.weight"]
    weights["extra"] = tensor((7,))
    weights["decoder.final_layernorm.weight"] = tensor((3,))
    weights[OUTPUT_LAYER] = tensor(weights[OUTPUT_LAYER].shape, "I8")
    weights[WORD_EMBEDDING] = tensor((99, model().hidden_size))
    with pytest.raises(CheckpointError) as caught:
        validate_and_trim(weights, model(), tmp_path)
    text = str(caught.value)
    for part in (
        "linear_fc2.weight: is missing",
        "file: (7,): is no tensor of this model",
        "has shape [3]",
        "has dtype I8, weights are",
        "has shape [99, ",
    ):
        assert part in text


def test_more_layers_than_tensors_are_refused_before_any_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="is said to have 10,000 layers, but holds 1 tensors"):
        validate_and_trim({"a": tensor((1,))}, model(num_layers=10_000), tmp_path)
