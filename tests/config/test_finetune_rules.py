"""What fine-tuning can't be combined with is told by the field that is in its way."""

import pytest

from megatron_sky.config.finetune_rules import finetune_problems
from megatron_sky.config.schema import Config
from tests.config.recipes import BASE

CASES = [
    ({"finetune": {"base": "b"}, "checkpoint": {"init_from": "c"}}, ["checkpoint.init_from"]),
    ({"finetune": {"base": "b", "lora": {}}, "model": {"preset": "tiny", "backend": "te"}}, ["model.backend"]),
    ({"finetune": {"base": "b", "dpo": {}}, "parallel": {"cp_size": 2}}, ["parallel.cp_size"]),
    (
        {"finetune": {"base": "b", "dpo": {}}, "validation": {"reference_tokenizer": "t.model"}},
        ["validation.reference_tokenizer"],
    ),
    ({"finetune": {"base": "b", "lora": {}, "dpo": {}}}, []),
    ({}, []),
]


@pytest.mark.parametrize(("changes", "where"), CASES)
def test_each_rule(changes, where):
    assert [problem.where for problem in finetune_problems(Config.model_validate({**BASE, **changes}))] == where
