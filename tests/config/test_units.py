"""Counts as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.config.units import format_count, parse_count


@given(st.integers(0, 10**15))
def test_counts_parse_back(number):
    assert parse_count(str(number)) == number
    assert parse_count(f"{number:,}") == number
    assert parse_count(f"{number}k") == number * 1000


@pytest.mark.parametrize(
    ("text", "value"), [("1.5T", 1_500_000_000_000), ("16M", 16_000_000), ("33.5B", 33_500_000_000)]
)
def test_counts_with_suffixes(text, value):
    assert parse_count(text) == value


@pytest.mark.parametrize("text", ["1.0001k", "-3", "x", "1.5", "3 apples", ""])
def test_what_is_no_count(text):
    with pytest.raises(ValueError):
        parse_count(text)


def test_counts_for_people():
    assert [format_count(n) for n in (999, 12_345, 16_777_216, 2 * 10**12)] == ["999", "12.35k", "16.78M", "2.00T"]
