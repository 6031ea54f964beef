"""What conditions that are not decided leave open in a recipe."""

import pytest

from megatron_sky.errors import ConfigError
from megatron_sky.migrate.readings import translate_script
from megatron_sky.migrate.shell import read_script
from megatron_sky.migrate.text import recipe_text


def test_a_key_on_which_the_ways_differ_is_still_to_give():
    script = read_script('A=""\nif [ -f old ]; then A="--adam-beta2 0.9"; fi\npython t.py --num-layers 2 $A')
    done = translate_script(script)
    assert done.recipe["optimizer"]["adam_beta2"] == ["TO GIVE"] and done.recipe["model"]["num_layers"] == 2
    assert any("0.999 or 0.9" in text and "[ -f old ]" in text for text in done.to_give)


@pytest.mark.parametrize(
    "set_anew", [". conf.sh", "read LR", "for i in $(ls); do LR=$i; done", "printf -v LR 2", "((LR++))"]
)
def test_what_may_have_changed_a_value_is_never_the_old_one(set_anew):
    words = read_script(f"LR=1\n{set_anew}\npython t.py --lr $LR").words
    assert words[-1] == ("2" if set_anew == "((LR++))" else "${LR}")


def test_a_value_of_several_lines_stays_in_its_comment():
    done = translate_script(read_script("python t.py --lr 'x\nmodel: {}'"))
    head = recipe_text(done, "a\nb").split("\nmodel:\n")[0]
    assert all(line.startswith("# ") for line in head.split("\n"))


@pytest.mark.parametrize("script", ["A=1\n" * 200_000, "(" * 20_000])
def test_a_script_that_nobody_writes_is_refused(script):
    with pytest.raises(ConfigError, match="no more than"):
        read_script(script)
