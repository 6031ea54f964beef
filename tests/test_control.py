"""What a terminal or a script would obey is found, and shown."""

import pytest

from megatron_sky.control import find_control, visible


@pytest.mark.parametrize(
    "char", ["\n", "\x1b", "\x00", "\x7f", "\x9b", "\u2028", "\u202e", "\u2066", "\u200f", "\u061c"]
)
def test_a_control_character_is_found(char):
    assert find_control(f"中文 a{char}b") == ascii(char)
    assert find_control("中文 – é, a b/c") is None


def test_it_is_shown_and_lines_stay_lines():
    assert visible("a\x1b[2J\nb\t\u202e中") == "a\\x1b[2J\nb\t\\u202e中"
