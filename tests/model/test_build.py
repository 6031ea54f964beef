"""The built model: its parameters, its weights in every layout, and the backend it chose."""

import pytest

from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import ConfigError
from megatron_sky.model.backends import choose_backend
from megatron_sky.model.flops import num_parameters


def test_the_count_is_the_formulas(built, recipe):
    assert built(1)[0]["count"] == num_parameters(recipe().model, padded=True)


def test_gpt_count_is_the_formulas(built, recipe):
    gpt = [
        "model.position_embedding=learned_absolute",
        "model.normalization=layernorm",
        "model.activation=gelu",
        "model.add_bias_linear=true",
        "model.tie_embeddings=true",
    ]
    assert built(1, *gpt)[0]["count"] == num_parameters(recipe(*gpt).model, padded=True)


def test_backends_without_a_gpu():
    model = ModelConfig(preset="tiny")
    assert choose_backend(model, on_gpu=False) == ("torch", "this machine has no CUDA device")
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_backend(model.model_copy(update={"backend": "te"}), on_gpu=False)
