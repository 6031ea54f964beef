"""Megatron-LM's arguments: flags with values, and what a value is that they do not tell."""

import pytest

from megatron_sky.migrate.arguments import (
    Arguments,
    Untold,
    is_number,
    known,
    number_or_variable,
    parse,
    split_launcher,
    split_words,
)


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("--a 1 --b x y --c", {"a": ["1"], "b": ["x", "y"], "c": []}),
        ("--a=1 --b=", {"a": ["1"], "b": [""]}),
        ("--a 1 --a 2", {"a": ["2"]}),
        ("before --a -3", {"a": ["-3"]}),
        ("--a=x=y -- --b", {"a": ["x=y", "--"], "b": []}),
        ("", {}),
    ],
)
def test_flags_and_values(words, given):
    assert parse(words.split()) == given


def test_what_is_asked_for_is_noted():
    args = Arguments(["lead", "--lr", "1e-3", "--bf16", "--split", "99", "1"])
    assert args.has("none", "bf16") and not args.has("none") and args.leading == ["lead"]
    assert args.one("lr", float) == 1e-3 and args.one("none", int, 7) == 7 and args.several("split", int) == [99, 1]
    assert args.used == {"lr", "bf16", "split"} and args.read == {"lr": 1, "split": 2}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--lr"], "--lr has no value"),
        (["--lr", "fast"], "--lr fast is no number"),
        (["--lr", "$(cat lr)"], r"--lr \$\(cat lr\) is not computed"),
        (["--lr", "$1"], "is not computed"),
        ([], "--lr is not given"),
        (["--lr", "${LR}"], r"is reckoned from --lr \$\{LR\}"),
    ],
)
def test_a_number_to_reckon_with_is_told_or_said_why_not(words, why):
    with pytest.raises(Untold, match=why):
        Arguments(words).number("lr", float)


def test_a_default_stands_in_for_a_flag_that_is_not_given():
    assert Arguments([]).number("lr", float, 0.5) == 0.5
    assert Arguments(["--lr", "1"]).number("lr", float, 0.5) == 1.0


def test_a_variable_stays_the_text_it_is():
    assert Arguments(["--lr", "${LR}"]).one("lr", float) == "${LR}"
    assert known("lr", 3) == 3


def test_words_that_may_hold_arguments_are_told():
    args = Arguments(["${MORE}", "--bf16", "${EXTRA}", "--lr", "${LR}", "$(x)", "--no-thing", "${A}"])
    args.has("bf16")
    args.one("lr", float)
    assert args.open_words() == [
        ("${MORE}", "before the first argument"),
        ("${EXTRA}", "after --bf16"),
        ("$(x)", "after --lr"),
        ("${A}", "after --no-thing"),
    ]


@pytest.mark.parametrize(
    ("words", "launcher", "script"),
    [
        ("torchrun --nproc-per-node 8 pretrain.py --lr 1", {"nproc_per_node": ["8"]}, ["--lr", "1"]),
        ("--lr 1", {}, ["--lr", "1"]),
        ("python train.py", {}, []),
    ],
)
def test_the_launcher_and_the_script(words, launcher, script):
    assert split_launcher(words.split()) == (launcher, script)


@pytest.mark.parametrize(
    ("text", "words"), [("0.5 'a b' c", ["0.5", "a b", "c"]), ("it's one", ["it's", "one"]), ("", [])]
)
def test_words_of_one_that_is_several(text, words):
    assert split_words(text) == words


@pytest.mark.parametrize(
    ("values", "expected"), [(["8"], 8), (["${N}"], "${N}"), (["gpu"], None), (["-1"], None), ([], None), (None, None)]
)
def test_a_number_of_the_launcher_or_its_variable(values, expected):
    assert number_or_variable({} if values is None else {"n": values}, "n") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("1", True), ("-1e-3", True), (2.5, True), ("inf", False), ("nan", False), ("x", False), (["1"], False)],
)
def test_finite_numbers(value, expected):
    assert is_number(value) == expected
