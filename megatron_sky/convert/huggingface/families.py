"""How each Hugging Face architecture names and arranges the weights: one table, read in both directions.

A `Rule` ties one weight (`weights`) to the tensors that hold it in a Hugging Face folder; `split` and `join` are each
other's inverse. The table of names and shapes is in docs/conversion.md.

    llama    LlamaForCausalLM, and SkyworkForCausalLM, whose published folders bear LLaMA's names
    gpt2     GPT2LMHeadModel: learned positions, LayerNorm, GELU, biases; its matrices are stored transposed
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from megatron_sky.checkpoint.reader import weights
from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import CheckpointError

LLAMA, SKYWORK, GPT2 = "LlamaForCausalLM", "SkyworkForCausalLM", "GPT2LMHeadModel"
ARCHITECTURES = (LLAMA, SKYWORK, GPT2)

_LLAMA_NAMES = {
    "self_attention.linear_qkv.layer_norm_": ("input_layernorm.",),
    "self_attention.linear_qkv.": ("self_attn.q_proj.", "self_attn.k_proj.", "self_attn.v_proj."),
    "self_attention.linear_proj.": ("self_attn.o_proj.",),
    "mlp.linear_fc1.layer_norm_": ("post_attention_layernorm.",),
    "mlp.linear_fc1.": ("mlp.gate_proj.", "mlp.up_proj."),
    "mlp.linear_fc2.": ("mlp.down_proj.",),
}
_GPT2_NAMES = {
    "self_attention.linear_qkv.layer_norm_": ("ln_1.",),
    "self_attention.linear_qkv.": ("attn.c_attn.",),
    "self_attention.linear_proj.": ("attn.c_proj.",),
    "mlp.linear_fc1.layer_norm_": ("ln_2.",),
    "mlp.linear_fc1.": ("mlp.c_fc.",),
    "mlp.linear_fc2.": ("mlp.c_proj.",),
}
_OUTER = {
    LLAMA: {
        weights.WORD_EMBEDDING: "model.embed_tokens.weight",
        "decoder.final_layernorm.weight": "model.norm.weight",
        weights.OUTPUT_LAYER: "lm_head.weight",
    },
    GPT2: {
        weights.WORD_EMBEDDING: "transformer.wte.weight",
        weights.POSITION_EMBEDDING: "transformer.wpe.weight",
        "decoder.final_layernorm.weight": "transformer.ln_f.weight",
        "decoder.final_layernorm.bias": "transformer.ln_f.bias",
        weights.OUTPUT_LAYER: "lm_head.weight",
    },
}

Arrays = list[np.ndarray]


@dataclass(frozen=True)
class Rule:
    """One weight, of `whole_shape`, and the Hugging Face tensors that hold it, and the two ways between them."""

    whole_shape: tuple[int, ...]
    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    split: Callable[[np.ndarray], Arrays]
    join: Callable[[Arrays], np.ndarray]


def architecture_for(model: ModelConfig) -> str:
    """The architecture of transformers that computes what `model` computes. Raises CheckpointError when none does."""
    llama = {"position_embedding": "rope", "normalization": "rmsnorm", "activation": "swiglu"}
    gpt2 = {
        "position_embedding": "learned_absolute",
        "normalization": "layernorm",
        "activation": "gelu_exact" if model.activation == "gelu_exact" else "gelu",
        "add_bias_linear": True,
        "query_groups": model.num_attention_heads,
        "head_size": model.hidden_size // model.num_attention_heads,
    }
    for architecture, demands in ((LLAMA, llama), (GPT2, gpt2)):
        if all(getattr(model, name) == value for name, value in demands.items()):
            return architecture
    shown = {name: getattr(model, name) for name in gpt2}
    raise CheckpointError(
        f"no architecture of transformers has this shape: {shown}\n  fix: {LLAMA} needs {llama}; {GPT2} needs {gpt2}"
    )


def check_architecture(model: ModelConfig, architecture: str) -> None:
    """Raises CheckpointError when `architecture` can't hold `model`."""
    own = architecture_for(model)
    if architecture not in ((LLAMA, SKYWORK) if own == LLAMA else (own,)):
        raise CheckpointError(f"architecture = {architecture!r}: can't hold this model\n  fix: use {own}")


def rule_for(name: str, model: ModelConfig, architecture: str) -> Rule:
    """The rule of the weight `name`."""
    family = GPT2 if architecture == GPT2 else LLAMA
    shape = next(unit[name] for unit in _unit_of(name, model))
    if not name.startswith(weights.LAYERS):
        return _plain(_OUTER[family][name], shape)
    number, _, inner = name.removeprefix(weights.LAYERS).partition(".")
    prefix = f"transformer.h.{number}." if family == GPT2 else f"model.layers.{number}."
    table = _GPT2_NAMES if family == GPT2 else _LLAMA_NAMES
    stem = max((name for name in table if inner.startswith(name)), key=len)
    names = tuple(f"{prefix}{name}{inner.removeprefix(stem)}" for name in table[stem])
    if stem == "self_attention.linear_qkv.":
        return _gpt2_attention(names[0], shape, model) if family == GPT2 else _attention(names, shape, model)
    if len(names) == 2:
        half = (shape[0] // 2, *shape[1:])
        return Rule(shape, names, (half, half), lambda a: [a[: half[0]], a[half[0] :]], np.concatenate)
    if family == GPT2 and len(shape) == 2:
        return _transposed(names[0], shape)
    return _plain(names[0], shape)


def rows_of(name: str, rows: np.ndarray, model: ModelConfig) -> Arrays:
    """`rows`, one for each output of LLaMA's linear `name`, for each of the tensors that hold it (`rule_for`)."""
    names = rule_for(name, model, LLAMA).names
    if "linear_qkv." in name:
        return _attention(names, rows.shape, model).split(rows)
    return np.split(rows, len(names))


def row_runs(name: str, model: ModelConfig, architecture: str) -> list[tuple[int, int, int]]:
    """What `join` of the weight's rule does, row after row: (part, its first row, number of rows) of each run of rows.

    Empty where the weight is not made of whole rows, as GPT-2's transposed ones.
    """
    if architecture == GPT2:
        return []
    rule = rule_for(name, model, architecture)
    ends = np.cumsum([shape[0] for shape in rule.shapes])
    numbers = np.split(np.arange(ends[-1]), ends[:-1])
    of_rows = _attention(rule.names, (int(ends[-1]),), model) if len(numbers) == 3 else rule
    order = of_rows.join(numbers)
    cuts = np.flatnonzero((np.diff(order) != 1) | np.isin(order[1:], ends)) + 1
    runs = []
    for run in np.split(order, cuts):
        part = int(np.searchsorted(ends, run[0], side="right"))
        runs.append((part, int(run[0] - numbers[part][0]), len(run)))
    return runs


def _unit_of(name: str, model: ModelConfig):
    """The unit that holds `name`, built alone: a model has many layers and this is asked once a tensor."""
    if name.startswith(weights.LAYERS):
        inner = name.removeprefix(weights.LAYERS).partition(".")[2]
        yield {name: weights.layer(model)[inner]}
    else:
        first, *_, last = weights.units(model.model_copy(update={"num_layers": 1}))
        yield first | last


def _plain(name: str, shape: tuple[int, ...]) -> Rule:
    return Rule(shape, (name,), (shape,), lambda array: [array], lambda arrays: arrays[0])


def _transposed(name: str, shape: tuple[int, ...]) -> Rule:
    def turn(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T)

    return Rule(shape, (name,), (shape[::-1],), lambda array: [turn(array)], lambda arrays: turn(arrays[0]))


def _attention(names: tuple[str, ...], shape: tuple[int, ...], model: ModelConfig) -> Rule:
    """q, k and v as three matrices, against one matrix with each group's queries, key and value together."""
    groups, size, rest = model.query_groups, model.head_size, shape[1:]
    per_group = model.num_attention_heads // groups
    q_shape, kv_shape = (groups * per_group * size, *rest), (groups * size, *rest)

    def split(array: np.ndarray) -> Arrays:
        grouped = array.reshape(groups, per_group + 2, size, *rest)
        parts = grouped[:, :per_group], grouped[:, per_group], grouped[:, per_group + 1]
        return [part.reshape(s) for part, s in zip(parts, (q_shape, kv_shape, kv_shape), strict=True)]

    def join(arrays: Arrays) -> np.ndarray:
        grouped = np.empty((groups, per_group + 2, size, *rest), arrays[0].dtype)
        grouped[:, :per_group] = arrays[0].reshape(groups, per_group, size, *rest)
        grouped[:, per_group] = arrays[1].reshape(groups, size, *rest)
        grouped[:, per_group + 1] = arrays[2].reshape(groups, size, *rest)
        return grouped.reshape(shape)

    return Rule(shape, names, (q_shape, kv_shape, kv_shape), split, join)


def _gpt2_attention(name: str, shape: tuple[int, ...], model: ModelConfig) -> Rule:
    """All queries, then all keys, then all values in one transposed matrix."""
    inner = _attention(("q", "k", "v"), shape, model)
    cuts = np.cumsum([part[0] for part in inner.shapes])[:-1]

    def split(array: np.ndarray) -> Arrays:
        return [np.ascontiguousarray(np.concatenate(inner.split(array)).T)]

    def join(arrays: Arrays) -> np.ndarray:
        return inner.join(np.split(arrays[0].T, cuts))

    return Rule(shape, (name,), (shape[::-1],), split, join)
