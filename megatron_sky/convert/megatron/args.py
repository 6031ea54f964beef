"""The settings that Megatron-LM saves with a checkpoint (`args`), read as the recipe's `model` section.

Megatron-LM writes no other description of the model. What our model has no word for is refused by name.
"""

from megatron_sky.errors import CheckpointError

# name -> the values with which the function is the one that our model computes; any other is another model. These are
# all such settings of megatron-core 0.16.1 to 0.19 and of Megatron-LM's model builders, a test holds it. Settings that
# only round otherwise, train otherwise or place the work otherwise are not here, nor those of a kind refused whole
# (experts, latent attention, hybrid layers).
_REQUIRED = {
    # positions
    "rotary_percent": (1.0,),
    "rotary_interleaved": (False,),
    "no_rope_freq": (None, 0),
    "mrope_section": (None,),
    # attention
    "softmax_scale": (None,),
    "softmax_type": ("vanilla",),
    "attention_output_gate": (False,),
    "window_size": (None,),
    "qk_layernorm": (False,),
    "qk_l2_norm": (False,),
    "multi_latent_attention": (False,),
    "experimental_attention_variant": (None,),
    "linear_attention_freq": (None,),
    # feed-forward
    "openai_gelu": (False,),
    "squared_relu": (False,),
    "quick_geglu": (False,),
    "glu_linear_offset": (0.0,),
    "activation_func_clamp_value": (None,),
    "num_experts": (None, 0),
    "num_moe_experts": (None, 0),
    # norms and scales
    "apply_layernorm_1p": (False,),
    "layernorm_zero_centered_gamma": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "use_mup": (False,),
    "mup_output_mult": (1.0,),
    # layers
    "mtp_num_layers": (None, 0),
    "is_hybrid_model": (False,),
    "hybrid_layer_pattern": (None,),
    "hybrid_override_pattern": (None,),
    "heterogeneous_block_specs": (False,),
    "heterogeneous_layers_config_path": (None, ""),
    "heterogeneous_layers_config_encoded_json": (None, ""),
    "retro_add_retriever": (False,),
    "spec": (None,),
}


def model_fields(args: dict, where: str) -> dict:
    """The fields of a ModelConfig but `vocab_size`, from Megatron-LM's settings. Raises CheckpointError."""
    _refuse_unsupported(args, where)
    reader = _Reader(args, where)
    heads = reader.get("num_attention_heads")
    swiglu = reader.get("swiglu", False)
    bias = reader.get("add_bias_linear", True)
    if (reader.get("add_qkv_bias", False) or bias) != bias:
        raise CheckpointError(f"{where}: add_qkv_bias = True with add_bias_linear = False isn't supported")
    gelu = "gelu" if bias and reader.get("bias_gelu_fusion", True) else "gelu_exact"  # only the fused one is by tanh
    return {
        "hidden_size": reader.get("hidden_size"),
        "ffn_hidden_size": reader.get("ffn_hidden_size"),
        "num_layers": reader.get("num_layers"),
        "num_attention_heads": heads,
        "num_query_groups": reader.get("num_query_groups") if reader.get("group_query_attention", False) else heads,
        "kv_channels": args.get("kv_channels"),
        "seq_length": reader.get("max_position_embeddings"),
        "position_embedding": _position(reader),
        "rotary_base": reader.get("rotary_base", 10_000.0),
        "rope_scaling": _rope_scaling(reader),
        "normalization": str(reader.get("normalization", "LayerNorm")).lower(),
        "norm_epsilon": args.get("norm_epsilon") or reader.get("layernorm_epsilon", 1e-5),
        "activation": "swiglu" if swiglu else gelu,
        "add_bias_linear": bias,
        "tie_embeddings": not reader.get("untie_embeddings_and_output_weights", False),
        "hidden_dropout": reader.get("hidden_dropout", 0.0),
        "attention_dropout": reader.get("attention_dropout", 0.0),
        "init_std": reader.get("init_method_std", 0.02),
    }


class _Reader:
    def __init__(self, args: dict, where: str):
        self.args, self.where = args, where

    def get(self, name: str, default: object = None) -> object:
        value = self.args.get(name)
        value = default if value is None else value
        if value is None:
            fix = "describe the model with --recipe FILE"
            raise CheckpointError(f"{self.where}: args.{name} is missing\n  fix: {fix}")
        return value


def _refuse_unsupported(args: dict, where: str) -> None:
    wrong = [
        f"  args.{name} = {args[name]!r}, supported: {' or '.join(map(repr, allowed))}"
        for name, allowed in _REQUIRED.items()
        if name in args and args[name] not in allowed
    ]
    if wrong:
        raise CheckpointError(f"{where}: is a model of another kind:\n" + "\n".join(wrong))


def _position(reader: _Reader) -> str:
    kind = reader.get("position_embedding_type", "learned_absolute")
    if reader.args.get("use_rotary_position_embeddings"):  # the older spelling
        kind = "rope"
    if kind not in ("rope", "learned_absolute"):
        raise CheckpointError(f"{reader.where}: args.position_embedding_type = {kind!r} isn't supported")
    return str(kind)


def _rope_scaling(reader: _Reader) -> dict | None:
    if reader.args.get("use_rope_scaling"):
        return {"kind": "llama3", "factor": reader.get("rope_scaling_factor", 8.0)}
    factor = reader.args.get("rotary_seq_len_interpolation_factor")
    return {"kind": "linear", "factor": factor} if factor else None
