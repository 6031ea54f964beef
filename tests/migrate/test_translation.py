"""Keys of a recipe as they are put, and what is told of each."""

import pytest

from megatron_sky.migrate.arguments import Arguments, Untold
from megatron_sky.migrate.translation import TO_GIVE, Translation, Writer


@pytest.fixture
def writer() -> Writer:
    return Writer(Arguments(["--lr", "1e-3", "--data-path", *map(str, range(6))]), Translation())


def untold() -> int:
    raise Untold("depends on the cluster")


@pytest.mark.parametrize("value", [3, lambda: 3])
def test_a_value_or_what_is_reckoned(value, writer):
    writer.put("schedule.lr", value, "lr", "none")
    assert writer.done.recipe == {"schedule": {"lr": 3}} and writer.done.mapped == ["--lr 1e-3 -> schedule.lr: 3"]


def test_keys_of_one_section_stand_together(writer):
    writer.put("a.b.c", 1)
    writer.put("a.b.d", 2)
    assert writer.done.recipe == {"a": {"b": {"c": 1, "d": 2}}}
    assert writer.done.mapped[0] == "Megatron-LM's default -> a.b.c: 1"


@pytest.mark.parametrize("value", [untold, Untold("depends on the cluster")])
def test_what_is_untold_is_to_be_given_and_no_recipe_takes_it(value, writer):
    writer.put("train.tokens", value, "lr")
    assert writer.done.recipe == {"train": {"tokens": TO_GIVE}} and writer.done.mapped == []
    assert writer.done.to_give == ["train.tokens: depends on the cluster"]
    assert writer.done.recipe["train"]["tokens"] is not TO_GIVE, "each key has a list of its own"


def test_long_lists_are_counted(writer):
    writer.put("data.train", [{"name": "a" * 50}, {"name": "b" * 50}], "data-path")
    assert writer.done.mapped == ["--data-path 0 1 2 3 -> data.train: 2 of them"]
