"""The weights of a model under one set of names: what every source gives and every writer takes. No torch.

Names are megatron-core's checkpoint keys with the layer's number put in: `decoder.layers.7.mlp.linear_fc1.weight`. A
pre-norm bears the name of the layer it precedes (`linear_qkv.layer_norm_weight`), as Transformer Engine fuses them; a
checkpoint that keeps norms apart names the same tensors otherwise (`ALIASES`). Shapes, with h hidden size, d head size,
n query heads, g key/value groups, f inner width, V the true vocabulary (never padding):

    embedding.word_embeddings.weight      [V, h]
    embedding.position_embeddings.weight  [s, h]            learned positions only
    self_attention.linear_qkv.weight      [(n + 2g) d, h]   per group: its n/g query heads, its key, its value
    self_attention.linear_proj.weight     [h, n d]
    mlp.linear_fc1.weight                 [2f, h]           SwiGLU: gate rows, then up rows; GELU: [f, h]
    mlp.linear_fc2.weight                 [h, f]
    decoder.final_layernorm.weight        [h]
    output_layer.weight                   [V, h]            absent when tied
"""

from collections.abc import Iterable
from pathlib import Path

from megatron_sky.checkpoint.reader.lazy import WEIGHT_FORMATS, LazyTensor
from megatron_sky.config.schema import ModelConfig
from megatron_sky.errors import CheckpointError

WORD_EMBEDDING = "embedding.word_embeddings.weight"
POSITION_EMBEDDING = "embedding.position_embeddings.weight"
OUTPUT_LAYER = "output_layer.weight"
LAYERS = "decoder.layers."
MODEL_SPACE = "optimizer.state."
"""What the keys of an optimizer's tensors begin with where they stand under the names of their weights."""
VOCABULARY_ROWS = (WORD_EMBEDDING, OUTPUT_LAYER)

# Names within a layer under which a checkpoint with separate norms keeps them.
ALIASES = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}


def canonical(name: str) -> str:
    """A layer tensor's name in this module's spelling, whether its norm is fused or separate."""
    for alias, fused in ALIASES.items():
        head, match, tail = name.partition(alias)
        if match:
            return head + fused + tail
    return name


def put(weights: dict[str, LazyTensor], name: str, tensor: LazyTensor) -> None:
    """Enters a tensor under its canonical name. Raises CheckpointError where another has that name already."""
    if name in weights:
        raise CheckpointError(
            f"{tensor.place}: is {name}, and so is {weights[name].place}\n  fix: restore the checkpoint from a copy"
        )
    weights[name] = tensor


def units(model: ModelConfig) -> list[dict[str, tuple[int, ...]]]:
    """Name -> shape of every weight, in order: one dict for the embeddings, one per layer, one for the output."""
    h = model.hidden_size
    first: dict[str, tuple[int, ...]] = {WORD_EMBEDDING: (model.vocab_size, h)}
    if model.position_embedding == "learned_absolute":
        first[POSITION_EMBEDDING] = (model.seq_length, h)
    last = _norm("decoder.final_layernorm.", model)
    if not model.tie_embeddings:
        last[OUTPUT_LAYER] = (model.vocab_size, h)
    layers = [
        {f"{LAYERS}{number}.{name}": shape for name, shape in layer(model).items()}
        for number in range(model.num_layers)
    ]
    return [first, *layers, last]


def layer(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the weights of one layer, without `decoder.layers.N.`."""
    h, f = model.hidden_size, model.ffn_hidden_size
    q, kv = model.num_attention_heads * model.head_size, 2 * model.query_groups * model.head_size
    return (
        _norm("self_attention.linear_qkv.layer_norm_", model)
        | _linear("self_attention.linear_qkv.", model, q + kv, h)
        | _linear("self_attention.linear_proj.", model, h, q)
        | _norm("mlp.linear_fc1.layer_norm_", model)
        | _linear("mlp.linear_fc1.", model, 2 * f if model.activation == "swiglu" else f, h)
        | _linear("mlp.linear_fc2.", model, h, f)
    )


def _linear(prefix: str, model: ModelConfig, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}weight": (rows, columns)}
    return shapes | ({f"{prefix}bias": (rows,)} if model.add_bias_linear else {})


def _norm(prefix: str, model: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{prefix}weight": (model.hidden_size,)}
    return shapes | ({f"{prefix}bias": (model.hidden_size,)} if model.normalization == "layernorm" else {})


def check_num_layers(model: ModelConfig, num_tensors: int, where: Path) -> None:
    """Raises CheckpointError where a model is said to have more layers than there are tensors, before any is named."""
    if model.num_layers > num_tensors:
        raise CheckpointError(
            f"{where}: is said to have {model.num_layers:,} layers, but holds {num_tensors:,} tensors\n"
            "  fix: restore its description, or the weights that are missing"
        )


def validate_and_trim(weights: dict[str, LazyTensor], model: ModelConfig, where: Path) -> dict[str, LazyTensor]:
    """`weights` with the vocabulary's padding rows cut off, which are then exactly the weights that `model` has.

    Raises CheckpointError naming every tensor that is missing, unknown, or of a shape that contradicts the model.
    """
    check_num_layers(model, len(weights), where)
    expected = {name: shape for unit in units(model) for name, shape in unit.items()}
    wrong = [f"{name}: is missing" for name in expected if name not in weights]
    wrong += [f"{weights[name].place}: is no tensor of this model" for name in weights if name not in expected]
    trimmed = {}
    for name, shape in expected.items():
        if name not in weights:
            continue
        tensor = weights[name]
        if not tensor.is_weight:
            wrong.append(f"{tensor.place}: {no_weight(tensor)}")
        if name in VOCABULARY_ROWS and tensor.shape[1:] == shape[1:] and tensor.shape[0] >= shape[0]:
            tensor = tensor.rows(0, shape[0])
        if tensor.shape != shape:
            wrong.append(f"{tensor.place}: has shape {list(tensor.shape)}, the model's is {list(shape)}")
        trimmed[name] = tensor
    if wrong:
        raise CheckpointError(f"{where}: does not hold the weights of the model it describes:\n{_listed(wrong)}")
    return trimmed


def no_weight(tensor: LazyTensor) -> str:
    """What is wrong with a tensor that stands where a weight must, in a number format that weights have not."""
    formats = ", ".join(WEIGHT_FORMATS)
    return f"has dtype {tensor.dtype}, weights are {formats}: convert a checkpoint that isn't quantised"


def _listed(lines: Iterable[str], limit: int = 20) -> str:
    lines = list(lines)
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  {line}" for line in lines[:limit] + more)
