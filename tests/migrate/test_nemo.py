"""Megatron Bridge's and NeMo 2's configurations: every key has an answer."""

import json
import re
from copy import deepcopy
from pathlib import Path

import pytest

from megatron_sky.config import strict_yaml
from megatron_sky.migrate.nemo import translate_configuration
from megatron_sky.migrate.nemo_keys import GATES
from tests.recipes import config_of

KEYS = json.loads((Path(__file__).parent / "bridge_keys.json").read_text(encoding="utf-8"))
"""Section -> key -> default, of Megatron Bridge 0.6 and the megatron-core beside it."""
SILU = {"_target_": "torch.nn.functional.silu", "_call_": False}
LLAMA = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 176,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 16,
    "seq_length": 128,
    "vocab_size": 1000,
    "should_pad_vocab": True,
    "normalization": "RMSNorm",
    "activation_func": SILU,
    "gated_linear_unit": True,
    "add_bias_linear": False,
    "share_embeddings_and_output_weights": False,
    "position_embedding_type": "rope",
    "rotary_base": 500000.0,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
}


def bridge(**sections: dict) -> dict:
    """A whole configuration, as Megatron Bridge writes it, with some of its keys changed."""
    tree = deepcopy(KEYS)
    tree["model"] |= LLAMA
    tree["train"] |= {"train_iters": 10, "global_batch_size": 8, "micro_batch_size": 1}
    tree["optimizer"] |= {"lr": 1e-3, "min_lr": 1e-4, "clip_grad": 0.0}
    tree["dataset"] |= {"blend": [["a/web", "a/books"], [0.7, 0.3]], "random_seed": 1234, "split": "90,10,0"}
    tree["checkpoint"]["save"] = "runs/bridge"
    for section, keys in sections.items():
        tree[section] = tree[section] | keys
    return tree


def answers(done) -> list[str]:
    return [*done.mapped, *done.no_effect, *done.no_counterpart, *done.to_give]


def test_a_whole_configuration():
    done = translate_configuration(bridge(), name="run_config.yaml", same_order=True)
    assert not done.no_counterpart and not done.to_give
    config = config_of(json.dumps(done.recipe))
    model = config.model
    assert (model.num_query_groups, model.ffn_hidden_size, model.activation) == (2, 176, "swiglu")
    assert (model.normalization, model.rotary_base, model.tie_embeddings) == ("rmsnorm", 500_000, False)
    assert (model.hidden_dropout, model.vocab_multiple, config.optimizer.clip_grad) == (0.0, 128, 0.0)
    assert [(source.path, source.weight) for source in config.data.train] == [("a/web", 0.7), ("a/books", 0.3)]
    assert config.data.megatron.split == "90,10,0"
    assert config.train.tokens == 10 * 8 * 128 and config.schedule.lr == 1e-3
    assert "model.hidden_size 64 -> model.hidden_size: 64" in done.mapped
    assert not any("--" in line.partition(":")[0] for line in answers(done))


SAID_ELSEWHERE = {
    "model": "gated_linear_unit bias_activation_fusion init_method should_pad_vocab params_dtype",  # by activation_func
    "dataset": "seq_length sequence_length data_path blend_per_split context_parallel_size",  # by the model and blend
    "train": "eval_iters",  # by validation
    "optimizer": "barrier_with_L1_time",  # by logger
    "tokenizer": "vocab_size make_vocab_size_divisible_by tensor_model_parallel_size",  # by the model
}
"""Keys that another one stands for in `bridge()`."""


@pytest.mark.parametrize("section", KEYS)
def test_every_key_has_an_answer(section):
    """With another value than its default it is named, or is of a feature that is off."""
    for key, default in KEYS[section].items():
        number = isinstance(default, int | float) and default != float("inf")
        value = not default if isinstance(default, bool) else default + 3 if number else "x"
        tree = bridge()
        tree |= {"mixed_precision": None, "comm_overlap": None} | {section: tree[section] | {key: value}}
        lines = answers(translate_configuration(tree, name="a"))
        assert not any(line.endswith(": unknown") for line in lines), (key, lines)
        silent = value is False or any(key.startswith(tuple(starts.split())) for starts, _, _ in GATES)
        named = any(f"{section}.{key} " in re.sub("[:,]", " ", line) for line in lines)
        assert named or silent or key in SAID_ELSEWHERE.get(section, "").split(), key


def test_a_key_of_no_version_is_told():
    done = translate_configuration(bridge(model={"warp_drive": 9}), name="a", same_order=True)
    assert done.no_counterpart == ["model.warp_drive 9: unknown"]


@pytest.mark.parametrize(
    ("section", "keys", "told"),
    [
        ("model", {"num_moe_experts": 8, "moe_router_topk": 2}, "model.moe_router_topk 2: another model"),
        ("model", {"activation_func": "relu"}, "model.activation_func gated relu: another model"),
        ("model", {"qk_layernorm": True}, "model.qk_layernorm: another model"),
        ("optimizer", {"optimizer": "muon"}, "optimizer.optimizer muon: another optimizer"),
        ("scheduler", {"end_weight_decay": 0.5}, "scheduler.end_weight_decay 0.5: weight decay is constant"),
        ("ddp", {"use_megatron_fsdp": True}, "ddp.use_megatron_fsdp: data parallelism is the distributed optimizer"),
    ],
)
def test_what_has_no_counterpart(section, keys, told):
    done = translate_configuration(bridge(**{section: keys}), name="a")
    assert any(line.startswith(told) for line in done.no_counterpart)


def test_layout_precision_and_a_blend_for_each_split():
    tree = bridge(
        model={"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2, "sequence_parallel": True},
        dataset={"blend": None, "blend_per_split": [[["a"], None], [["v"], None], None], "random_seed": 7},
        ddp={"use_distributed_optimizer": True, "overlap_grad_reduce": True},
        train={"train_iters": 12, "train_samples": 100},
    )
    tree["mixed_precision"] = "bf16_mixed"
    tree["peft"] = {"_target_": "megatron.bridge.peft.lora.LoRA", "dim": 8}
    done = translate_configuration(tree, name="a")
    assert (
        done.recipe["parallel"] | {"tp_size": 2, "pp_size": 2, "distributed_optimizer": True} == done.recipe["parallel"]
    )
    assert done.recipe["precision"] == {"dtype": "bf16", "grad_reduce_in_fp32": True}
    assert done.recipe["model"]["vocab_multiple"] == 256
    assert done.recipe["validation"]["sets"] == [{"name": "v", "path": "v"}]
    assert (done.recipe["data"]["seed"], done.recipe["train"]["seed"]) == (7, 1234)
    assert done.recipe["train"]["tokens"] == 100 * 128
    assert any(line.startswith("peft") and line.endswith("adapters") for line in done.no_counterpart)


def test_gelu_is_exact_unless_it_is_fused():
    for fused, kind in ((False, "gelu_exact"), (True, "gelu")):
        gelu = {"activation_func": "gelu", "gated_linear_unit": False, "add_bias_linear": True}
        done = translate_configuration(bridge(model=gelu | {"bias_activation_fusion": fused}), name="a")
        assert done.recipe["model"]["activation"] == kind


def test_the_command(sky, tmp_path):
    given, recipe = tmp_path / "run_config.yaml", tmp_path / "recipe.yaml"
    given.write_text(strict_yaml.dump(bridge()), encoding="utf-8")
    code, out, _ = sky("from-nemo", given, "--out", recipe, "--same-order")
    assert code == 0 and "mapped (" in out and "sampling: megatron" in recipe.read_text(encoding="utf-8")
    code, _, err = sky("from-nemo", given, "--out", recipe)
    assert code == 2 and "--overwrite" in err
    assert sky("from-nemo", tmp_path / "nothing.yaml")[0] == 2
