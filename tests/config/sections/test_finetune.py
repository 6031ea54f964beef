"""What a section about fine-tuning may say."""

import pytest
from pydantic import ValidationError

from megatron_sky.config.schema import FinetuneConfig, LoraConfig


def test_scale_and_defaults():
    assert LoraConfig(rank=4, alpha=8).scale == 2.0
    assert FinetuneConfig(base="a").lora is None and len(LoraConfig().targets) == 4


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"targets": []}, "names no linear"),
        ({"targets": ["linear_qkv", "linear_qkv"]}, "more than once: linear_qkv"),
        ({"targets": ["q_proj"]}, "linear_qkv"),
        ({"dropout": 1.0}, "less than 1"),
        ({"alpha": 0}, "greater than 0"),
    ],
)
def test_refusals(given, told):
    with pytest.raises(ValidationError, match=told):
        LoraConfig(**given)
