"""`megatron-sky from-args` as a user meets it."""

from functools import partial

import pytest

from megatron_sky.config import load_config
from tests.migrate.test_recipe import LLAMA_8B, LLAMA_70B


@pytest.fixture
def from_args(sky):
    """`from_args(...)`: (exit code, standard output, standard error)."""
    return partial(sky, "from-args")


def test_a_script_to_a_file(from_args, tmp_path):
    script, recipe = tmp_path / "train.sh", tmp_path / "recipe.yaml"
    script.write_text(LLAMA_8B)
    code, out, _ = from_args(script, "--out", recipe)
    assert code == 0 and f"{recipe} written" in out
    for title in ("mapped (", "no effect here (", "no counterpart ("):
        assert title in out
    assert load_config([recipe]).model.num_layers == 32
    code, _, err = from_args(script, "--out", recipe)
    assert code == 2 and "--overwrite" in err
    assert from_args(script, "--out", recipe, "--overwrite")[0] == 0


@pytest.mark.parametrize("given", [(LLAMA_70B,), tuple(LLAMA_70B.split()), ("--", *LLAMA_70B.split())])
def test_arguments_in_any_form(from_args, given, tmp_path):
    code, out, err = from_args(*given)
    assert code == 0 and "num_layers: 80" in out and "no counterpart (" in err
    (tmp_path / "recipe.yaml").write_text(out)
    assert load_config([tmp_path / "recipe.yaml"]).parallel.vpp_size == 4


def test_what_is_no_script(from_args, tmp_path):
    assert "is no file" in from_args(tmp_path / "nothing.sh")[2]
    (tmp_path / "empty.sh").write_text("echo hello\n")
    code, _, err = from_args(tmp_path / "empty.sh")
    assert code == 2 and "starts no command" in err and "fix:" in err


def test_the_same_order(from_args, tmp_path):
    arguments = "--num-layers 2 --data-path d --train-iters 10 --tokenizer-type NullTokenizer --vocab-size 99"
    code, out, _ = from_args(arguments, "--same-order", "--megatron", "0.16.1")
    assert code == 0 and "sampling: megatron" in out and "split: 969,30,1" in out and "vocab_size: 100" in out
    code, _, err = from_args(arguments, "--megatron", "new")
    assert code == 2 and "--megatron new: is no version" in err and "fix: give one as 0.16.1" in err
