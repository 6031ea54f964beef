"""A Hugging Face folder's config.json and generation_config.json, and the recipe's `model` section, from each other.

Reading, a key that changes what the model computes and that no field of ours stands for is refused by name; nothing is
assumed where a key is missing except transformers' own defaults. The folder's Python files are never looked at.
"""

import json
from pathlib import Path

from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.huggingface.families import ARCHITECTURES, GPT2, LLAMA, SKYWORK
from megatron_sky.convert.model_section import build_model
from megatron_sky.errors import CheckpointError

CONFIG = "config.json"
GENERATION = "generation_config.json"
TORCH_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
_MODEL_TYPES = {LLAMA: "llama", SKYWORK: "skywork", GPT2: "gpt2"}
# The settings of LLaMA 3's scaling that megatron-core fixes.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


def build_config(model: ModelConfig, *, architecture: str, dtype: str, special_ids: dict[str, int]) -> dict:
    """The content of config.json. `special_ids`: `bos_token_id` and the like, as far as the tokenizer has them."""
    shape = _gpt2_shape(model) if architecture == GPT2 else _llama_shape(model)
    return {
        "architectures": [architecture],
        "model_type": _MODEL_TYPES[architecture],
        "vocab_size": model.vocab_size,
        **shape,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": TORCH_NAMES[dtype],
        "use_cache": True,
        "bos_token_id": special_ids.get("bos_token_id"),
        "eos_token_id": special_ids.get("eos_token_id"),
        "pad_token_id": special_ids.get("pad_token_id"),
    }


def build_generation_config(special_ids: dict[str, int]) -> dict:
    """The content of generation_config.json."""
    return {**special_ids, "do_sample": False}


def _llama_shape(model: ModelConfig) -> dict:
    theta, scaling = model.rotary_base, _scaling_keys(model)
    return {
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.query_groups,
        "head_dim": model.head_size,
        "max_position_embeddings": model.seq_length,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_epsilon,
        "rope_theta": theta,  # transformers 4 and most other tools read these two, transformers 5 the third
        "rope_scaling": scaling,
        "rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})},
        "attention_bias": model.add_bias_linear,
        "mlp_bias": model.add_bias_linear,
        "attention_dropout": 0.0,
    }


def _scaling_keys(model: ModelConfig) -> dict | None:
    scaling = model.rope_scaling
    if scaling is None:
        return None
    return {"rope_type": scaling.kind, "factor": scaling.factor} | (_LLAMA3 if scaling.kind == "llama3" else {})


def _gpt2_shape(model: ModelConfig) -> dict:
    return {
        "n_embd": model.hidden_size,
        "n_inner": model.ffn_hidden_size,
        "n_layer": model.num_layers,
        "n_head": model.num_attention_heads,
        "n_positions": model.seq_length,
        "activation_function": _TANH_GELU[0],  # what megatron-core's fused bias and GELU computes
        "layer_norm_epsilon": model.norm_epsilon,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "attn_pdrop": model.attention_dropout,
    }


def read_config(folder: Path) -> tuple[ModelConfig, str]:
    """(the model that config.json describes, its architecture). Raises CheckpointError naming what isn't supported."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        (architecture,) = found["architectures"]
    except FileNotFoundError:
        raise CheckpointError(f"{path}: is missing\n  fix: give a whole Hugging Face folder") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: names no architecture, or can't be read: {error}") from error
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: architectures = {architecture!r}: isn't supported\n  fix: one of {', '.join(ARCHITECTURES)}"
        )
    reader = _Reader(path, found)
    fields = _read_gpt2(reader) if architecture == GPT2 else _read_llama(reader)
    if found.get("quantization_config") is not None:
        raise CheckpointError(f"{path}: describes quantised weights\n  fix: convert the unquantised checkpoint")
    tied = found.get("tie_word_embeddings", architecture == GPT2)
    tied = False if tied is None else tied  # as transformers takes null
    return build_model(fields | {"vocab_size": reader.get("vocab_size"), "tie_embeddings": tied}, path), architecture


class _Reader:
    """Takes keys out of a config.json, with errors that name the file and the key."""

    def __init__(self, path: Path, content: dict):
        self.path, self.content = path, content

    def get(self, key: str, default: object = None) -> object:
        value = self.content.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"{self.path}: {key}: is missing")
        return value

    def demand(self, key: str, allowed: tuple, default: object) -> object:
        """The value of `key`, which must be one of `allowed`."""
        value = self.content.get(key, default)
        if value not in allowed:
            shown = " or ".join(map(repr, allowed))
            raise CheckpointError(f"{self.path}: {key} = {value!r}: must be {shown}; what it asks for isn't supported")
        return value


def _read_llama(reader: _Reader) -> dict:
    reader.demand("hidden_act", ("silu", "swish"), "silu")
    bias = reader.demand("attention_bias", (True, False), False)
    if reader.demand("mlp_bias", (True, False), False) != bias:
        raise CheckpointError(f"{reader.path}: attention_bias and mlp_bias differ, which isn't supported")
    heads = reader.get("num_attention_heads")
    theta, scaling = _read_rope(reader)
    return {
        "hidden_size": reader.get("hidden_size"),
        "ffn_hidden_size": reader.get("intermediate_size"),
        "num_layers": reader.get("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_query_groups": reader.get("num_key_value_heads", heads),
        "kv_channels": reader.content.get("head_dim"),
        "seq_length": reader.get("max_position_embeddings", 2048),
        "norm_epsilon": reader.get("rms_norm_eps", 1e-6),
        "init_std": reader.content.get("initializer_range") or 0.02,  # 0: no word on it, the weights are there
        "rotary_base": theta,
        "rope_scaling": scaling,
        "add_bias_linear": bias,
    }


def _read_rope(reader: _Reader) -> tuple[float, dict | None]:
    """(rotary_base, rope_scaling of a `model` section)."""
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(reader.content.get(key) or {}, dict):
            raise CheckpointError(f"{reader.path}: {key} = {reader.content[key]!r}: must be a table or null")
    parameters = reader.content.get("rope_parameters") or {}
    theta = parameters.get("rope_theta") or reader.get("rope_theta", 10_000.0)
    given = reader.content.get("rope_scaling") or parameters
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return theta, None
    where = f"{reader.path}: rope_scaling = {given}"
    if kind not in ("linear", "llama3"):
        raise CheckpointError(f"{where}: only linear and llama3 scaling are supported")
    if kind == "llama3" and any(given.get(key) != value for key, value in _LLAMA3.items()):
        raise CheckpointError(f"{where}: megatron-core's llama3 scaling has {_LLAMA3} and no other values")
    if given.get("factor") is None:
        raise CheckpointError(f"{where}: names no factor")
    return theta, {"kind": kind, "factor": given["factor"]}


def _read_gpt2(reader: _Reader) -> dict:
    reader.demand("activation_function", _TANH_GELU, _TANH_GELU[0])
    reader.demand("scale_attn_weights", (True,), True)
    reader.demand("scale_attn_by_inverse_layer_idx", (False,), False)
    hidden = reader.get("n_embd", 768)
    return {
        "hidden_size": hidden,
        "ffn_hidden_size": reader.content.get("n_inner") or 4 * hidden,
        "num_layers": reader.get("n_layer", 12),
        "num_attention_heads": reader.get("n_head", 12),
        "seq_length": reader.get("n_positions", 1024),
        "norm_epsilon": reader.get("layer_norm_epsilon", 1e-5),
        "init_std": reader.content.get("initializer_range") or 0.02,  # 0: no word on it, the weights are there
        "hidden_dropout": reader.get("resid_pdrop", 0.1),
        "attention_dropout": reader.get("attn_pdrop", 0.1),
        "position_embedding": "learned_absolute",
        "normalization": "layernorm",
        "activation": "gelu",
        "add_bias_linear": True,
    }
