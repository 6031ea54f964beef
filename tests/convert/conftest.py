"""Checkpoints of several layouts and models, each trained for two steps by the program's trainer, once a session."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.conftest import SEQ_LENGTH, VOCAB_SIZE
from tests.convert import workers

MODEL = {
    "vocab_size": VOCAB_SIZE,  # padded to 768
    "hidden_size": 32,
    "ffn_hidden_size": 48,
    "num_layers": 4,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "seq_length": SEQ_LENGTH,
}
GPT2 = {
    "position_embedding": "learned_absolute",
    "normalization": "layernorm",
    "norm_epsilon": 1e-5,
    "activation": "gelu",
    "add_bias_linear": True,
    "tie_embeddings": True,
    "num_query_groups": None,
}
# name -> (ranks, parallel section, changes to the model, number format)
KINDS = {
    "one": (1, {}, {}, "fp32"),
    "tp2": (2, {"tp_size": 2}, {}, "fp32"),
    "pp2": (2, {"pp_size": 2}, {}, "fp32"),
    "vpp2": (2, {"pp_size": 2, "vpp_size": 2}, {}, "fp32"),
    "tp2_pp2": (4, {"tp_size": 2, "pp_size": 2}, {}, "fp32"),
    "tied": (2, {"tp_size": 2}, {"tie_embeddings": True}, "fp32"),
    "biased": (1, {}, {"add_bias_linear": True, "num_query_groups": None, "kv_channels": 16}, "fp32"),
    "gpt2": (2, {"tp_size": 2}, GPT2, "fp32"),
    "bf16": (2, {"tp_size": 2}, {}, "bf16"),
    "unsharded": (1, {"distributed_optimizer": False}, {}, "fp32"),
    "unsharded_bf16": (2, {"tp_size": 2, "distributed_optimizer": False}, {}, "bf16"),
    "linear_rope": (1, {}, {"rope_scaling": {"kind": "linear", "factor": 2.0}}, "fp32"),
    "llama3_rope": (1, {}, {"rope_scaling": {"kind": "llama3", "factor": 8.0}, "rotary_base": 500_000.0}, "fp32"),
}


@pytest.fixture(scope="session")
def native(ranks, corpus, tmp_path_factory) -> Callable[[str], Path]:
    """`native("tp2")`: a native checkpoint of that kind (KINDS), with its optimizer, made when first asked for."""
    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("native")

    def make(kind: str) -> Path:
        if kind not in made:
            world_size, parallel, model, dtype = KINDS[kind]
            run_dir = root / kind
            path = root / f"{kind}.yaml"
            path.write_text(yaml.safe_dump(recipe_of(corpus, run_dir, parallel, model, dtype)))
            ranks(world_size, workers.train, str(path))
            made[kind] = run_dir / "checkpoints" / "step_0000002"
        return made[kind]

    return make


def recipe_of(corpus: Path, run_dir: Path, parallel: dict, model: dict, dtype: str) -> dict:
    return {
        "model": MODEL | model,
        "tokenizer": {"path": str(corpus / "tokenizer.model")},
        "data": {"train": [{"name": n, "path": str(corpus / "tokens/train" / n)} for n in ("en_web", "zh_web")]},
        "precision": {"dtype": dtype},
        "parallel": parallel,
        "schedule": {"lr": 3e-2},  # high, so that norms and biases leave their initial values
        "train": {"run_dir": str(run_dir), "tokens": 16 * SEQ_LENGTH, "global_batch_size": 8, "micro_batch_size": 2},
        "monitor": {"tensorboard": False},
    }


@pytest.fixture(scope="session")
def hf(native, tmp_path_factory) -> Callable[[str], Path]:
    """`hf("tp2")`: that checkpoint as a Hugging Face folder, made when first asked for."""
    from megatron_sky.convert.huggingface.folder import write_hf
    from megatron_sky.convert.sources import open_source

    made: dict[str, Path] = {}
    root = tmp_path_factory.mktemp("hf")

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_hf(open_source(native(kind)), root / kind).folder
        return made[kind]

    return make
