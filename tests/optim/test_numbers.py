"""The optimizer's numbers are the recipe's in every step, also after a checkpoint with others was loaded."""

from types import SimpleNamespace

import pytest

from megatron_sky.config.schema import OptimizerConfig
from megatron_sky.optim.update import set_numbers


@pytest.mark.parametrize("name", sorted(set(OptimizerConfig.model_fields) - {"clip_grad"}))  # which no group holds
def test_every_number_of_the_recipe_is_applied(name):
    groups = [{"wd_mult": 1.0}, {"wd_mult": 0.0, "betas": (0.1, 0.2), "eps": 0.3, "weight_decay": 0.4}]
    changed = 0.6
    set_numbers(SimpleNamespace(param_groups=groups), OptimizerConfig(**{name: changed}), lr=1.0)
    for group in groups:
        values = {"weight_decay": group["weight_decay"], "adam_eps": group["eps"]}
        values |= {"adam_beta1": group["betas"][0], "adam_beta2": group["betas"][1]}
        assert values[name] == (0.0 if name == "weight_decay" and group["wd_mult"] == 0 else changed)
