"""Epochs become a budget of whole steps, counted in the rows of mask files."""

import pytest

from megatron_sky.config.epochs import MASK_HEADER_BYTES, fill_from_epochs
from megatron_sky.data.tokens.mask import HEADER


def recipe(folder, epochs, **more):
    return {
        "model": {"seq_length": 8},
        "data": {"train": [{"name": "a", "path": str(folder / "a.bin")}]},
        "train": {"global_batch_size": 4} | more,
        "finetune": {"base": "b", "epochs": epochs},
    }


@pytest.mark.parametrize(("epochs", "steps"), [(1, 2), (2, 5), ("0.5", 1), (0.01, 1)])
def test_whole_steps_and_no_more_than_the_epochs_give(tmp_path, epochs, steps):
    (tmp_path / "a.mask").write_bytes(bytes(HEADER.size + 8 * 10 + 1))  # ten rows
    tree = recipe(tmp_path, epochs)
    assert fill_from_epochs(tree) == [] and tree["train"]["tokens"] == steps * 4 * 8
    assert HEADER.size == MASK_HEADER_BYTES


def test_a_budget_that_is_said_gives_way_but_where_the_samples_are_missing(tmp_path):
    tree = recipe(tmp_path, 3, tokens="1K")
    assert fill_from_epochs(tree) == [] and tree["train"]["tokens"] == "1K"
    (tmp_path / "a.mask").write_bytes(bytes(HEADER.size + 8 * 8 + 1))
    assert fill_from_epochs(tree) == [] and tree["train"]["tokens"] == 6 * 4 * 8


@pytest.mark.parametrize("broken", [{"data": None}, {"model": {}}, {"train": {"global_batch_size": "x"}}])
def test_what_is_no_recipe_is_left_to_its_sections(tmp_path, broken):
    assert fill_from_epochs(recipe(tmp_path, 1) | broken) == []


def test_missing_samples_are_told(tmp_path):
    (problem,) = fill_from_epochs(recipe(tmp_path, 1))
    assert problem.where == "finetune.epochs" and "a.mask" in problem.rule
