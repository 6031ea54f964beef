"""Adapters apart from the weights beneath them. What a checkpoint of them holds: tests/trainer/test_finetune.py."""

from dataclasses import replace

import pytest

from megatron_sky.checkpoint.adapters import check_holds_model, without_adapters
from megatron_sky.checkpoint.description import AdapterBase, check_same_base, read_description
from megatron_sky.errors import CheckpointError
from tests.checkpoint.folders import write_checkpoint


def test_a_state_without_them():
    names = ["a.linear_qkv.weight", "a.linear_qkv.adapter.lora_a", "a.linear_qkv.adapter.lora_b", "adapter.x"]
    assert list(without_adapters(dict.fromkeys(names))) == ["a.linear_qkv.weight", "adapter.x"]


def test_adapters_are_no_model(tmp_path):
    check_holds_model(["embedding.word_embeddings.weight", "optimizer.state.param.adapters.0.x"], tmp_path)
    with pytest.raises(CheckpointError, match="holds adapters alone"):
        check_holds_model(["adapters.0.mlp.linear_fc1.lora_a"], tmp_path)


def test_another_base_is_refused(tmp_path):
    held = replace(read_description(write_checkpoint(tmp_path, 1, 9)), adapter=AdapterBase("base", "0123", 700))
    check_same_base(held, "0123", tmp_path)
    with pytest.raises(CheckpointError, match=r"belong to the model base \(0123\), and .* is another \(4567\)"):
        check_same_base(held, "4567", tmp_path)
