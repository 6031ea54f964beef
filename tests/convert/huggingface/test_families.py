"""How architectures name and arrange weights: split and join undo each other, and no tensor is named twice."""

import numpy as np
import pytest

from megatron_sky.checkpoint.reader import weights
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.huggingface.families import (
    GPT2,
    LLAMA,
    SKYWORK,
    architecture_for,
    check_architecture,
    row_runs,
    rule_for,
)
from megatron_sky.errors import CheckpointError

LLAMA_FIELDS = {"preset": "tiny", "num_layers": 2}
GPT2_FIELDS = LLAMA_FIELDS | {
    "position_embedding": "learned_absolute",
    "normalization": "layernorm",
    "activation": "gelu",
    "add_bias_linear": True,
    "num_query_groups": None,
}
CASES = [
    (LLAMA, LLAMA_FIELDS | {"num_query_groups": None}),
    (LLAMA, LLAMA_FIELDS | {"num_query_groups": 1}),
    (SKYWORK, LLAMA_FIELDS | {"num_query_groups": 2, "kv_channels": 24, "add_bias_linear": True}),
    (GPT2, GPT2_FIELDS),
]


@pytest.mark.parametrize(("architecture", "fields"), CASES)
def test_every_weight_there_and_back(architecture, fields):
    model, names, rng = ModelConfig.model_validate(fields), [], np.random.default_rng(0)
    for unit in weights.units(model):
        for name, shape in unit.items():
            rule = rule_for(name, model, architecture)
            whole = rng.integers(0, 1 << 16, shape, dtype=np.uint16)
            parts = rule.split(whole)
            assert [part.shape for part in parts] == list(rule.shapes) and rule.whole_shape == shape
            assert np.array_equal(rule.join([np.ascontiguousarray(part) for part in parts]), whole)
            runs = row_runs(name, model, architecture)
            assert bool(runs) != (architecture == GPT2)
            rows = [parts[part][first : first + count] for part, first, count in runs]
            assert not runs or np.array_equal(np.concatenate(rows), whole)
            names += rule.names
    assert len(set(names)) == len(names), "each tensor of the folder is of one weight"


def test_queries_keys_and_values_of_groups():
    """Per group its query heads, its key, its value."""
    model = ModelConfig.model_validate(
        LLAMA_FIELDS | {"hidden_size": 4, "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 1}
    )
    rule = rule_for("decoder.layers.1.self_attention.linear_qkv.weight", model, LLAMA)
    whole = np.repeat(np.arange(8)[:, None], 4, axis=1)
    query, key, value = (part[:, 0].tolist() for part in rule.split(whole))
    assert (query, key, value) == ([0, 1, 4, 5], [2, 6], [3, 7])
    assert rule.names[0] == "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(("architecture", "fields"), CASES)
def test_the_architecture_that_computes_the_same(architecture, fields):
    model = ModelConfig.model_validate(fields)
    assert architecture_for(model) == (LLAMA if architecture == SKYWORK else architecture)
    check_architecture(model, architecture)


@pytest.mark.parametrize(
    ("fields", "architecture"), [(LLAMA_FIELDS, GPT2), (GPT2_FIELDS, LLAMA), (GPT2_FIELDS, SKYWORK)]
)
def test_one_that_can_not_hold_it(fields, architecture):
    with pytest.raises(CheckpointError, match="can't hold this model\n  fix: use "):
        check_architecture(ModelConfig.model_validate(fields), architecture)


@pytest.mark.parametrize("change", [{"activation": "gelu"}, {"normalization": "layernorm"}])
def test_a_shape_that_none_has(change):
    with pytest.raises(CheckpointError, match="no architecture of transformers has this shape"):
        architecture_for(ModelConfig.model_validate(LLAMA_FIELDS | change))
