"""`[ ... ]` and `[[ ... ]]`: true, false, or not decided; held against bash where it is."""

import subprocess

import pytest

from megatron_sky.migrate.conditions import Operand, judge, operand, operand_or_sign

UNKNOWN = operand(None)


def items(*words: str | None):
    return [operand_or_sign(word) for word in words]


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("",),
        ("a",),
        ("-z", ""),
        ("-n", "a"),
        ("a", "=", "a"),
        ("a", "!=", "a"),
        ("1", "-eq", "01"),
        ("2", "-gt", "10"),
        ("-3", "-le", "-3"),
        ("!", "a"),
        ("!", "", "-o", "a"),
        ("!", "a", "-a", ""),
        ("!", "a", "-a", "", "-o", "b"),
        ("a", "-a", ""),
        ("", "-o", "", "-o", "b"),
        ("a", "-o", "b", "-a", ""),
        ("(", "", "-o", "b", ")"),
        ("-z",),
        ("=",),
    ],
)
def test_as_bash_does(words):
    code = subprocess.run(["bash", "-c", '[ "$@" ]', "bash", *words], check=False).returncode
    assert judge(items(*words)) == (code == 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((None,), None),
        (("-z", None), None),
        ((None, "=", "a"), None),
        (("!", None), None),
        ((None, "-a", ""), False),
        ((None, "-o", "a"), True),
        ((None, "-o", ""), None),
        ((None, "-a", "a"), None),
        (("-f", "a"), None),  # a file of another machine
        (("a", "-nt", "b"), None),
        (("a", "-eq", "1"), None),  # bash stops there
        (("a", "b"), None),
    ],
)
def test_what_is_not_decided(words, expected):
    assert judge(items(*words)) is expected


def test_patterns_are_for_double_brackets_alone():
    assert judge([operand("abc"), "==", Operand("a*", "a*")]) is True
    assert judge([operand("abc"), "==", operand("a*")]) is False
    assert judge([operand("a*"), "==", operand("a*")]) is True
    assert judge([operand("abc"), "!=", Operand("a*", None)]) is None


def test_signs_of_double_brackets():
    assert judge([operand("a"), "&&", operand("")]) is False
    assert judge([operand(""), "||", operand("a")]) is True
    assert judge([UNKNOWN, "||", UNKNOWN]) is None


def test_the_items_stay_as_they_are():
    given = items("a", "=", "a")
    judge(given)
    assert given == items("a", "=", "a")
