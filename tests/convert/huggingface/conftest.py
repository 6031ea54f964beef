"""Small Hugging Face folders of random weights, written as other programs write them: no training, no converter."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, INNER, HEADS, VOCAB, LENGTH = 2, 16, 24, 2, 40, 32
LLAMA_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": LENGTH,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
GPT2_CONFIG = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": LENGTH,
    "vocab_size": VOCAB,
}


def llama_tensors(layers: int = LAYERS) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCAB, HIDDEN),
        "model.norm.weight": torch.randn(HIDDEN),
        "lm_head.weight": torch.randn(VOCAB, HIDDEN),
    }
    for number in range(layers):
        prefix = f"model.layers.{number}."
        tensors |= {f"{prefix}{norm}_layernorm.weight": torch.randn(HIDDEN) for norm in ("input", "post_attention")}
        tensors |= {f"{prefix}self_attn.{part}_proj.weight": torch.randn(HIDDEN, HIDDEN) for part in "qkvo"}
        tensors |= {f"{prefix}mlp.{part}_proj.weight": torch.randn(INNER, HIDDEN) for part in ("gate", "up")}
        tensors[f"{prefix}mlp.down_proj.weight"] = torch.randn(HIDDEN, INNER)
    return tensors


def gpt2_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shapes = {"attn.c_attn": (HIDDEN, 3 * HIDDEN), "attn.c_proj": (HIDDEN, HIDDEN)}
    shapes |= {"mlp.c_fc": (HIDDEN, 4 * HIDDEN), "mlp.c_proj": (4 * HIDDEN, HIDDEN)}
    tensors = {"wte.weight": torch.randn(VOCAB, HIDDEN), "wpe.weight": torch.randn(LENGTH, HIDDEN)}
    for norm in ("ln_f", *(f"h.{number}.ln_{one}" for number in range(LAYERS) for one in (1, 2))):
        tensors |= {f"{norm}.weight": torch.randn(HIDDEN), f"{norm}.bias": torch.randn(HIDDEN)}
    for number in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"h.{number}.{name}.weight"] = torch.randn(shape)
            tensors[f"h.{number}.{name}.bias"] = torch.randn(shape[1])
    return {f"transformer.{name}": tensor for name, tensor in tensors.items()}


def write_folder(folder: Path, config: dict, *files: dict[str, torch.Tensor], index: dict | None = None) -> Path:
    """One file of tensors, or several with an index (`index`: its entries that are not as the files are)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        held = {name: file for file, tensors in zip(names, files, strict=True) for name in tensors}
        listed = {name: file for name, file in (held | (index or {})).items() if file is not None}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    for name, tensors in zip(names, files, strict=True):
        save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, folder / name)
    return folder


@pytest.fixture
def llama(tmp_path) -> Callable[..., Path]:
    """`llama(change, **config)`: a folder whose tensors `change(tensors)` changes, with these keys in config.json."""

    def make(change: Callable[[dict], object] = lambda tensors: None, **config) -> Path:
        tensors = llama_tensors()
        change(tensors)
        return write_folder(tmp_path / "llama", LLAMA_CONFIG | config, tensors)

    return make


@pytest.fixture
def gpt2(tmp_path) -> Callable[..., Path]:
    """The same of GPT-2's architecture."""

    def make(change: Callable[[dict], object] = lambda tensors: None, **config) -> Path:
        tensors = gpt2_tensors()
        change(tensors)
        return write_folder(tmp_path / "gpt2", GPT2_CONFIG | config, tensors)

    return make
