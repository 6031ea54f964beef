"""Model shapes by name: `model.preset: skywork_13b` fills every field of the shape that the recipe does not give.

Sources: Skywork-13B technical report, tables 3 (Skywork-13B, LLaMA2-13B) and 9 (appendix A), and the models' own
configuration. They live here, not beside the model, because a recipe is resolved and checked without torch.
"""

_LLAMA = {
    "position_embedding": "rope",
    "rotary_base": 10_000.0,
    "normalization": "rmsnorm",
    "norm_epsilon": 1e-6,
    "activation": "swiglu",
    "add_bias_linear": False,
    "tie_embeddings": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "seq_length": 4096,
}

PRESETS: dict[str, dict] = {
    "skywork_13b": _LLAMA
    | {
        "vocab_size": 65_536,
        "hidden_size": 4608,
        "ffn_hidden_size": 12_288,
        "num_layers": 52,
        "num_attention_heads": 36,
    },
    "llama2_13b": _LLAMA
    | {
        "vocab_size": 32_000,
        "hidden_size": 5120,
        "ffn_hidden_size": 13_824,
        "num_layers": 40,
        "num_attention_heads": 40,
        "norm_epsilon": 1e-5,
    },
    "llama_7b": _LLAMA
    | {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "ffn_hidden_size": 11_008,
        "num_layers": 32,
        "num_attention_heads": 32,
    },
    "gpt_7b": {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "ffn_hidden_size": 16_384,
        "num_layers": 32,
        "num_attention_heads": 32,
        "position_embedding": "learned_absolute",
        "normalization": "layernorm",
        "norm_epsilon": 1e-5,
        "activation": "gelu",
        "add_bias_linear": True,
        "tie_embeddings": True,
        "hidden_dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_length": 4096,
    },
    "tiny": _LLAMA
    | {
        "vocab_size": 512,
        "hidden_size": 64,
        "ffn_hidden_size": 192,
        "num_layers": 4,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "seq_length": 64,
    },
}
