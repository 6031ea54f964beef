"""The tables of Megatron-LM's arguments: by name, and by prefix where a whole family is meant."""

import re

import pytest

from megatron_sky.migrate.flags import NO_COUNTERPART, NO_EFFECT, find


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("use-mcore-models", True),
        ("use-mcore-model", False),
        ("use-mcore-models-too", False),
        ("", False),
    ],
)
def test_a_name_is_meant_as_it_is(name, known):
    assert (find(NO_EFFECT, name) is not None) == known


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (NO_COUNTERPART, "rl-"),
        (NO_COUNTERPART, "rl-prompts-per-step"),
        (NO_COUNTERPART, "vision-pretraining-type"),
        (NO_EFFECT, "inference-batch-times-seqlen-threshold"),
    ],
)
def test_a_family_by_its_beginning(table, name):
    assert find(table, name)
    assert find(table, f"x{name}") is None


def test_the_whole_name_goes_before_the_family():
    table = {"rl-*": "another training", "rl-seed": "a seed"}
    assert find(table, "rl-seed") == "a seed" and find(table, "rl-other") == "another training"


def test_every_name_is_an_argument_and_says_why():
    for table in (NO_EFFECT, NO_COUNTERPART):
        for name, why in table.items():
            assert re.fullmatch(r"[a-z0-9_]+(-[A-Za-z0-9_]+)*(-?\*)?", name), name
            assert why and not why.endswith("."), name
