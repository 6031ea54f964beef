"""A Hugging Face folder's config.json and generation_config.json, and the recipe's `model` section, from each other.

Reading, a key that changes what the model computes and that no field of ours stands for is refused by name; nothing is
assumed where a key is missing except transformers' own defaults. The folder's Python files are never looked at. What
says nothing of the weights (stop tokens, sampling settings, notes of other tools) a native checkpoint keeps as it was,
in the folder `hugging_face`, and an export gives it back.
"""

from dataclasses import dataclass
from pathlib import Path

from megatron_sky.checkpoint.reader.lazy import TORCH_NAMES
from megatron_sky.config.schema import ModelConfig
from megatron_sky.convert.huggingface.families import ARCHITECTURES, GPT2, LLAMA, SKYWORK
from megatron_sky.convert.json_object import read_object
from megatron_sky.convert.model_section import build_model
from megatron_sky.errors import CheckpointError

CONFIG = "config.json"
GENERATION = "generation_config.json"
KEPT = "hugging_face"  # of a native checkpoint: where the two files of the folder that it came from lie
_MODEL_TYPES = {LLAMA: "llama", SKYWORK: "skywork", GPT2: "gpt2"}
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys that tell of the folder itself: where it was, what wrote it and in which number format, which of its code to run.
_OF_THE_FOLDER = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "auto_map"}
# The settings of LLaMA 3's scaling that megatron-core fixes.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TANH_GELU = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Settings:
    """The content of config.json, and of generation_config.json where the folder has one."""

    config: dict
    generation: dict | None


def read_settings(folder: Path) -> Settings:
    """Raises CheckpointError naming a file that is missing or can't be read."""
    return Settings(
        read_object(folder / CONFIG), read_object(folder / GENERATION) if (folder / GENERATION).exists() else None
    )


def build_config(
    model: ModelConfig, *, architecture: str, dtype: str, special_ids: dict[str, int], kept: Settings | None
) -> dict:
    """The content of config.json.

    `special_ids`: `bos_token_id` and the like, as far as the tokenizer has them. `kept`: the folder that the model came
    from, whose ids go before those, and whose further keys stay.
    """
    shape = _gpt2_shape(model) if architecture == GPT2 else _llama_shape(model)
    built = {
        "architectures": [architecture],
        "model_type": _MODEL_TYPES[architecture],
        "vocab_size": model.vocab_size,
        **shape,
        "initializer_range": model.init_std,
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": TORCH_NAMES[dtype],
    }
    if kept is None:
        return built | {"use_cache": True} | {name: special_ids.get(name) for name in _TOKEN_IDS}
    return built | {name: value for name, value in kept.config.items() if name not in built.keys() | _OF_THE_FOLDER}


def build_generation_config(special_ids: dict[str, int], kept: Settings | None) -> dict | None:
    """The content of generation_config.json; None where the folder that the model came from had none, since a new one
    would hide what its config.json says of generation."""
    return {**special_ids, "do_sample": False} if kept is None else kept.generation


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
        "attention_dropout": model.attention_dropout,
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
        "activation_function": "gelu" if model.activation == "gelu_exact" else _TANH_GELU[0],
        "layer_norm_epsilon": model.norm_epsilon,
        "resid_pdrop": model.hidden_dropout,
        "embd_pdrop": model.hidden_dropout,
        "attn_pdrop": model.attention_dropout,
    }


def describe_model(settings: Settings, folder: Path) -> tuple[ModelConfig, str]:
    """(the model that config.json describes, its architecture). Raises CheckpointError naming what isn't supported."""
    path, config = folder / CONFIG, settings.config
    listed = config.get("architectures")
    if not isinstance(listed, list) or len(listed) != 1 or listed[0] not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: architectures = {listed!r}: isn't supported\n  fix: one of {', '.join(ARCHITECTURES)}"
        )
    (architecture,) = listed
    if config.get("quantization_config") is not None:
        raise CheckpointError(f"{path}: describes quantised weights\n  fix: convert the unquantised checkpoint")
    reader = _Reader(path, config)
    fields = _read_gpt2(reader) if architecture == GPT2 else _read_llama(reader)
    tied = config.get("tie_word_embeddings", architecture == GPT2)
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

    def count(self, key: str, default: int) -> int:
        value = self.get(key, default)
        if type(value) is not int:
            raise CheckpointError(f"{self.path}: {key} = {value!r}: must be a whole number")
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
    reader.demand("partial_rotary_factor", (None, 1.0), None)
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
        "attention_dropout": reader.get("attention_dropout", 0.0),
    }


def _read_rope(reader: _Reader) -> tuple[object, dict | None]:
    """(rotary_base, rope_scaling of a `model` section)."""
    for key in ("rope_parameters", "rope_scaling"):
        if not isinstance(reader.content.get(key) or {}, dict):
            raise CheckpointError(f"{reader.path}: {key} = {reader.content[key]!r}: must be a table or null")
    parameters = reader.content.get("rope_parameters") or {}
    theta = parameters.get("rope_theta") or reader.get("rope_theta", 10_000.0)
    given = reader.content.get("rope_scaling") or parameters
    where = f"{reader.path}: rope_scaling = {given}"
    if given.get("partial_rotary_factor") not in (None, 1.0):
        raise CheckpointError(f"{where}: partial_rotary_factor must be 1.0; heads rotated in part aren't supported")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind not in ("linear", "llama3"):
        raise CheckpointError(f"{where}: only linear and llama3 scaling are supported")
    if kind == "llama3" and any(given.get(key) != value for key, value in _LLAMA3.items()):
        raise CheckpointError(f"{where}: megatron-core's llama3 scaling has {_LLAMA3} and no other values")
    if given.get("factor") is None:
        raise CheckpointError(f"{where}: names no factor")
    return theta, {"kind": kind, "factor": given["factor"]}


def _read_gpt2(reader: _Reader) -> dict:
    gelu = reader.demand("activation_function", (*_TANH_GELU, "gelu"), _TANH_GELU[0])
    reader.demand("scale_attn_weights", (True,), True)
    reader.demand("scale_attn_by_inverse_layer_idx", (False,), False)
    hidden = reader.count("n_embd", 768)
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
        "activation": "gelu" if gelu in _TANH_GELU else "gelu_exact",
        "add_bias_linear": True,
    }
