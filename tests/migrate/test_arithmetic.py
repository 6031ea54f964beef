"""Bash's arithmetic, beside what bash itself computes."""

import os
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.migrate.arithmetic import Unknown, evaluate

BASH = shutil.which("bash", path=os.defpath)
BINARY = ["+", "-", "*", "/", "%", "**", "<<", ">>", "<", "<=", ">", ">=", "==", "!=", "&", "^", "|", "&&", "||"]
ASSIGN = ["=", "+=", "-=", "*=", "/=", "%=", "<<=", ">>=", "&=", "^=", "|="]
LEAVES = ["0", "1", "2", "3", "7", "010", "0x1F", "16#ff", "2#101", "a", "b", "c", "a++", "b--", "++a", "--b"]


def value_of(text: str) -> list[str] | None:
    variables = {"a": "3", "b": "-2", "c": ""}
    try:
        return [str(evaluate(text, variables.__getitem__, variables.__setitem__)), *variables.values()]
    except Unknown:
        return None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 ? 2 : 3", "2 3 -2 "),
        ("0 ? a++ : (b = 5)", "5 3 5 "),
        ("a > 2 ? a << 3 : a >> 1", "24 3 -2 "),
        ("0 && a++ || 1", "1 3 -2 "),
        ("-2 ** 2, 2 ** 3 ** 2", "512 3 -2 "),
        ("-7 / 2 + -7 % 2", "-4 3 -2 "),
        ("a *= a++ + 1", "12 12 -2 "),
        ("---b", "3 3 -3 "),
        ("!a + ~b", "1 3 -2 "),
        ("c + 1", "1 3 -2 "),
        ("", "0 3 -2 "),
    ],
)
def test_values(text, expected):
    assert value_of(text) == expected.split(" ")


@pytest.mark.parametrize("text", ["1 / 0", "2 ** -1", "08", "1 +", "(1", "1 = 2", "x[0]", "1 ? 2", "$x", "2 ** 63"])
def test_what_has_no_value_is_unknown(text):
    assert value_of(text) is None


@pytest.mark.parametrize("text", ["(" * 5000 + "1", "!" * 5000 + "1", "1?" * 900, "1" * 5000, "+1" * 4000])
def test_what_is_long_or_deep_is_unknown(text):
    assert value_of(text) is None


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    two = st.tuples(inner, inner, inner)
    return st.one_of(
        st.tuples(inner, st.sampled_from(BINARY), inner).map(" ".join),
        st.tuples(st.sampled_from("-+!~"), inner).map("".join),
        inner.map("({})".format),
        two.map(lambda parts: "{} ? {} : {}".format(*parts)),
        st.tuples(st.sampled_from("abc"), st.sampled_from(ASSIGN), inner).map(lambda parts: f"({''.join(parts)})"),
    )


@pytest.mark.skipif(BASH is None, reason="no bash")
@given(st.lists(st.recursive(st.sampled_from(LEAVES), larger, max_leaves=8), min_size=1, max_size=60))
@settings(max_examples=20, derandomize=True)
def test_random_expressions_have_bashs_values(texts):
    script = "".join(f'(a=3 b=-2 c=; v=$(({text})) && echo "$v $a $b $c") 2>/dev/null || echo\n' for text in texts)
    lines = subprocess.run([BASH], input=script, capture_output=True, text=True, check=True).stdout.split("\n")
    for text, line in zip(texts, lines, strict=False):
        value = value_of(text)
        assert value is None or not line or " ".join(value) == line, text
