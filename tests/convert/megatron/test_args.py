"""Megatron-LM's settings as a model section: every one that makes another function is refused by its name."""

import ast
import importlib.util
from pathlib import Path

import pytest

from megatron_sky.convert.megatron.args import _REQUIRED, model_fields
from megatron_sky.errors import CheckpointError
from tests.convert.megatron.test_split_files import SETTINGS

OTHER_FUNCTIONS = {
    "no_rope_freq": 4,
    "softmax_type": "off-by-one",
    "softmax_scale": 0.5,
    "activation_func_clamp_value": 7.0,
    "glu_linear_offset": 1.0,
    "attention_output_gate": True,
    "linear_attention_freq": [1, 1, 1, 0],
    "experimental_attention_variant": "dsa",
    "heterogeneous_layers_config_path": "blocks.json",
    "heterogeneous_layers_config_encoded_json": "{}",
    "qk_l2_norm": True,
    "quick_geglu": True,
    "layernorm_zero_centered_gamma": True,
    "use_mup": True,
    "mup_output_mult": 0.25,
    "hybrid_layer_pattern": "M*M*",
    "window_size": (128, 0),
    "spec": ["my_specs", "layer_spec"],
}


@pytest.mark.parametrize("name", OTHER_FUNCTIONS)
def test_a_setting_that_makes_another_function_is_refused_by_name(name):
    with pytest.raises(CheckpointError, match=f"args.{name} = "):
        model_fields(SETTINGS | {name: OTHER_FUNCTIONS[name]}, "here")


def test_neutral_values_are_accepted():
    plain = model_fields(SETTINGS, "here")
    for place in range(max(map(len, _REQUIRED.values()))):
        neutral = {name: values[min(place, len(values) - 1)] for name, values in _REQUIRED.items()}
        assert model_fields(SETTINGS | neutral, "here") == plain


# Fields that the reader takes, by megatron-core's names or Megatron-LM's for the same.
READ = {
    *("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "ffn_hidden_size", "kv_channels"),
    *("hidden_dropout", "attention_dropout", "layernorm_epsilon", "normalization", "init_method_std"),
    *("add_bias_linear", "add_qkv_bias", "gated_linear_unit", "activation_func", "bias_activation_fusion"),
}
# Fields of a kind that is refused whole.
OF_REFUSED_KINDS = (
    *("mtp_", "moe_", "dsa_", "linear_", "mamba_", "use_mamba", "use_grouped_gemm", "mup_", "qk_clip"),
    *("window_attn_skip_freq", "experimental_attention_variant_loss", "hetereogenous_dist_checkpoint"),
)
# Fields that choose kernels, number formats, memory, places, training, or generation.
SAME_FUNCTION = (
    *("num_layers_in_", "pipeline_model_parallel_layout", "account_for_", "attention_backend", "flash_", "fp32_"),
    *("activation_func_fp8", "log_", "test_mode", "calculate_per_token_loss", "init_m", "output_layer_init", "use_te_"),
    *("embedding_init", "attention_softmax_in_fp32", "disable_", "masked_softmax_fusion", "persist_", "memory_"),
    *("apply_query_key_layer_scaling",),  # divides the scores before the softmax, which multiplies them again
    *("bias_dropout_fusion", "apply_rope_fusion", "use_fused_", "fused_", "use_transformer_engine_", "recompute_"),
    *("distribute_", "fp8", "fp4", "tp_only_", "first_last_layers_bf16", "num_layers_at_", "use_kitchen", "kitchen_"),
    *("high_priority_", "cp_comm_type", "enable_cuda_graph", "cuda_graph_", "external_cuda_graph", "inference_"),
    *("clone_", "config_logger_dir", "batch_invariant_mode", "symmetric_", "nccl_", "use_inference_", "mlp_chunks_"),
    *("quant_recipe", "transformer_impl", "fine_grained_", "offload_", "min_offloaded_", "delay_offload_"),
    *("delta_offload_", "activation_offload_"),
)


def test_every_field_of_the_installed_megatron_core_is_accounted_for():
    """A new version's field is looked at before a checkpoint of it is taken for a model that it may not be."""
    root = Path(importlib.util.find_spec("megatron.core").origin).parent
    tree = ast.parse((root / "transformer/transformer_config.py").read_text(encoding="utf-8"))
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TransformerConfig")
    fields = {node.target.id for node in config.body if isinstance(node, ast.AnnAssign)}
    assert len(fields) > 100
    known = (*OF_REFUSED_KINDS, *SAME_FUNCTION)
    assert sorted(name for name in fields - READ - _REQUIRED.keys() if not name.startswith(known)) == []
