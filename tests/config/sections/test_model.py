"""The network's shape: presets, and what follows from the fields."""

import pytest
from pydantic import ValidationError

from megatron_sky.config.presets import PRESETS
from megatron_sky.config.sections.model import Fp8Config, ModelConfig, PrecisionConfig


def model(**fields) -> ModelConfig:
    return ModelConfig.model_validate({"preset": "tiny"} | fields)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_model_and_what_is_given_comes_before_it(name):
    preset = ModelConfig.model_validate({"preset": name})
    assert preset.hidden_size == PRESETS[name]["hidden_size"]
    assert ModelConfig.model_validate({"preset": name, "num_layers": 7}).num_layers == 7
    assert ModelConfig.model_validate(preset.model_dump()) == preset


def test_an_unknown_preset_names_the_known_ones():
    with pytest.raises(ValidationError, match=r"must be one of .*tiny"):
        model(preset="huge")


@pytest.mark.parametrize(
    ("fields", "groups", "head"),
    [
        ({"hidden_size": 64, "num_attention_heads": 4, "num_query_groups": None}, 4, 16),
        ({"hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 2}, 2, 16),
        ({"hidden_size": 64, "num_attention_heads": 4, "kv_channels": 24, "num_query_groups": 1}, 1, 24),
    ],
)
def test_heads(fields, groups, head):
    assert (model(**fields).query_groups, model(**fields).head_size) == (groups, head)


@pytest.mark.parametrize(("size", "multiple", "rows"), [(1, 128, 128), (128, 128, 128), (129, 128, 256), (100, 1, 100)])
def test_rows_of_the_embedding(size, multiple, rows):
    assert model(vocab_size=size, vocab_multiple=multiple).padded_vocab_size == rows


def test_fp8_by_its_recipe_alone():
    precision = PrecisionConfig.model_validate({"fp8": "tensorwise"})
    assert precision.fp8 == Fp8Config(recipe="tensorwise")
    assert str(precision) == "bf16 with fp8 products (tensorwise)" and str(PrecisionConfig(dtype="fp32")) == "fp32"
    with pytest.raises(ValidationError):
        PrecisionConfig.model_validate({"fp8": "narrow"})
