"""Parameters and FLOPs against the report's own numbers."""

import pytest

from megatron_sky.config.schema import ModelConfig
from megatron_sky.model.flops import flops_per_token, num_parameters


def preset(name: str) -> ModelConfig:
    return ModelConfig(preset=name)


def test_skywork_13b_has_the_reports_parameters():
    assert num_parameters(preset("skywork_13b")) == 13_854_269_952  # "13.85 B"


def test_llama2_13b_has_its_published_parameters():
    assert num_parameters(preset("llama2_13b")) == 13_015_864_320


TABLE_10 = [  # model, tokens/s/GPU, TFLOP/s
    ("llama2_13b", 2045, 182.6),
    ("llama2_13b", 1928, 172.2),
    ("llama2_13b", 1936, 172.9),
    ("llama2_13b", 1964, 175.4),
    ("skywork_13b", 1873, 176.2),
    ("skywork_13b", 1775, 167.0),
    ("skywork_13b", 1776, 167.0),
    ("skywork_13b", 1828, 171.9),
    ("skywork_13b", 1417, 134.6),
]


@pytest.mark.parametrize(("name", "tokens_per_second", "tflops"), TABLE_10)
def test_the_reports_table_10_comes_out(name, tokens_per_second, tflops):
    assert tokens_per_second * flops_per_token(preset(name)) / 1e12 == pytest.approx(tflops, rel=0.02)


def test_padding_is_counted_only_when_asked():
    model = ModelConfig(preset="tiny", vocab_size=500)
    assert num_parameters(model, padded=True) - num_parameters(model) == 2 * 12 * 64


def test_a_frozen_weight_has_no_gradient_of_its_own():
    """A third of its products fall away; adapters have all of theirs."""
    from megatron_sky.config.schema import LoraConfig
    from megatron_sky.model.flops import lora_parameters

    model, lora = preset("tiny"), LoraConfig(rank=4)
    saved = 2.0 * num_parameters(model) - 6.0 * lora_parameters(model, lora)
    assert flops_per_token(model) - flops_per_token(model, lora) == saved
