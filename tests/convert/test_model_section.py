"""A `model` section from another program's fields: whole, or an error that names each field."""

import pytest

from megatron_sky.convert.model_section import build_model
from megatron_sky.errors import CheckpointError

FIELDS = {
    "vocab_size": 100,
    "hidden_size": 32,
    "ffn_hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 4,
    "seq_length": 16,
}


def test_fields_make_a_model():
    model = build_model(FIELDS, "config.json")
    assert (model.hidden_size, model.num_layers, model.head_size) == (32, 2, 8)


def test_all_that_stands_in_the_way_is_named_with_the_place():
    fields = {name: value for name, value in FIELDS.items() if name != "num_layers"} | {"hidden_size": "wide"}
    with pytest.raises(CheckpointError, match=r"^config\.json: describes no model:") as caught:
        build_model(fields, "config.json")
    assert "hidden_size = 'wide'" in str(caught.value) and "num_layers: is required" in str(caught.value)


def test_a_field_that_no_model_has():
    with pytest.raises(CheckpointError, match="hidden_sise"):
        build_model(FIELDS | {"hidden_sise": 32}, "config.json")
