"""Parameters and FLOPs of a model, as arithmetic: no torch.

FLOPs per trained token: 6 N + 12 L h s, with N all parameters (input embedding included), L layers, h hidden size
(heads x head size), s sequence length: forward and backward of every matrix product, and of the attention scores and
values without discounting the causal half. This is the definition behind the Skywork report's table 10 (its rows come
out within 2 %); recomputed activations are not counted, so MFU falls when recomputation is on. Beneath adapters it is
4 N + 6 A + 12 L h s, with A the adapters' parameters: a frozen weight has no gradient, a third of its products.
"""

from megatron_sky.config.schema import LoraConfig, ModelConfig


def num_parameters(model: ModelConfig, padded: bool = False) -> int:
    """Parameters of the whole model; `padded` counts the embedding's padding rows too."""
    vocab = model.padded_vocab_size if padded else model.vocab_size
    h, f = model.hidden_size, model.ffn_hidden_size
    embedding = vocab * h * (1 if model.tie_embeddings else 2)
    if model.position_embedding == "learned_absolute":
        embedding += model.seq_length * h
    return embedding + model.num_layers * _layer_parameters(model, h, f) + _norm(model)


def flops_per_token(model: ModelConfig, lora: LoraConfig | None = None) -> float:
    """Floating-point operations of forward and backward per trained token (source: the module's docstring).

    `lora`: adapters alone are trained.
    """
    attention = 12.0 * model.num_layers * model.num_attention_heads * model.head_size * model.seq_length
    if lora is None:
        return 6.0 * num_parameters(model) + attention
    return 4.0 * num_parameters(model) + 6.0 * lora_parameters(model, lora) + attention


def lora_parameters(model: ModelConfig, lora: LoraConfig) -> int:
    """Parameters of all adapters."""
    return round(model.num_layers * lora_layer_parameters(model, lora))


def lora_layer_parameters(model: ModelConfig, lora: LoraConfig, tp_size: int = 1) -> float:
    """Parameters of one layer's adapters on one tensor-parallel rank: B of a column-parallel linear and A of a
    row-parallel one are split, the other halves are whole."""
    h, heads = model.hidden_size, model.num_attention_heads * model.head_size
    sizes = {  # (the half that is whole, the one that is split)
        "linear_qkv": (h, heads + 2 * model.query_groups * model.head_size),
        "linear_proj": (h, heads),
        "linear_fc1": (h, model.ffn_hidden_size * (2 if model.activation == "swiglu" else 1)),
        "linear_fc2": (h, model.ffn_hidden_size),
    }
    return lora.rank * sum(sizes[target][0] + sizes[target][1] / tp_size for target in lora.targets)


def _layer_parameters(model: ModelConfig, h: int, f: int) -> int:
    q = model.num_attention_heads * model.head_size
    kv = 2 * model.query_groups * model.head_size
    f1 = 2 * f if model.activation == "swiglu" else f
    weights = h * (q + kv) + q * h + h * f1 + f * h
    biases = (q + kv) + h + f1 + h if model.add_bias_linear else 0
    return weights + biases + 2 * _norm(model)


def _norm(model: ModelConfig) -> int:
    return model.hidden_size * (2 if model.normalization == "layernorm" else 1)
