"""What a rank of Megatron-LM holds of a model."""

import pytest

from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.megatron.ranks import Layout, chunk_shapes, layout_of
from megatron_sky.errors import CheckpointError
from tests.convert.conftest import GPT2, MODEL


def test_order_of_parameters_without_and_with_fused_norms():
    model = ModelConfig(**MODEL)
    local = list(chunk_shapes(model, Layout(), stage=0, chunk=0, rows=768))
    fused = list(chunk_shapes(model, Layout(is_fused=True), stage=0, chunk=0, rows=768))
    assert [name.removeprefix("decoder.layers.0.") for name in local[1:5]] == [
        "self_attention.linear_qkv.layer_norm_weight",
        "self_attention.linear_proj.weight",
        "self_attention.linear_qkv.weight",
        "mlp.linear_fc1.layer_norm_weight",
    ]
    assert fused[1] == "decoder.layers.0.self_attention.linear_proj.weight"
    assert sorted(local) == sorted(fused)


def test_a_tied_model_has_a_copy_on_its_last_stage():
    model = ModelConfig(**MODEL | GPT2)
    last = chunk_shapes(model, Layout(tp_size=2, pp_size=2), stage=1, chunk=0, rows=768)
    assert last["output_layer.weight"] == (384, 32)
    assert "output_layer.weight" not in chunk_shapes(model, Layout(), stage=0, chunk=0, rows=768)
    assert last["decoder.layers.1.mlp.linear_fc2.weight"] == (32, 24)
    assert last["decoder.layers.1.mlp.linear_fc2.bias"] == (32,)


def test_uneven_first_and_last_stages():
    settings = {"pipeline_model_parallel_size": 4, "decoder_first_pipeline_num_layers": 1}
    layout = layout_of(settings | {"decoder_last_pipeline_num_layers": 1}, "there")
    model = ModelConfig(**MODEL | {"num_layers": 8})
    assert [layout.num_layers(model, stage) for stage in range(4)] == [1, 3, 3, 1]


def test_a_layout_by_hand_is_refused_by_name():
    with pytest.raises(CheckpointError, match=r"args.pipeline_model_parallel_layout = 'Et\*3\|tL'"):
        layout_of({"pipeline_model_parallel_layout": "Et*3|tL"}, "there")
