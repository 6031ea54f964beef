"""Every argument of Megatron-LM's parser has an answer: mapped, without effect here, or refused with the reason."""

import pytest

from megatron_sky.migrate.flags import NO_COUNTERPART, NO_EFFECT
from megatron_sky.migrate.recipe import translate
from tests.megatron_lm import argument_names

LISTED = argument_names.read()
BASE = (
    "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --global-batch-size 8 --lr 1e-3 "
    "--train-iters 10 --vocab-size 99 --data-path d --save r"
)
NEEDS = {
    "num-query-groups": "--group-query-attention",
    "rope-": "--use-rope-scaling --position-embedding-type rope",
    "rotary-": "--position-embedding-type rope",
    "initial-loss-scale": "--fp16",
    "fp8-": "--fp8-format hybrid",
    "first-last-layers-bf16": "--fp8-format hybrid",
    "lr-wsd": "--lr-decay-style WSD",
    "wandb-exp-name": "--wandb-project p",
    "profile-": "--profile",
}


def test_the_list_is_of_several_versions():
    versions = {version for known in LISTED.values() for version in known}
    assert versions == {"0.16.1", "0.17.1", "0.18.2", "0.19.1", "0.20.0"}
    assert len(LISTED) > 900


@pytest.mark.parametrize("name", LISTED)
def test_it_has_an_answer(name):
    needs = [word for start, text in NEEDS.items() if name.startswith(start) for word in text.split()]
    done = translate([*BASE.split(), *(word for word in needs if word != f"--{name}"), f"--{name}", "1"])
    told = [*done.mapped, *done.no_effect, *done.no_counterpart, *done.to_give]
    assert any(f"--{name}" in line for line in told), "nothing is said of it"
    assert f"--{name} 1: unknown" not in done.no_counterpart


def test_an_argument_has_one_answer():
    assert not NO_EFFECT.keys() & NO_COUNTERPART.keys()
