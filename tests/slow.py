"""Which of a test's parameters are left to the whole suite."""

from collections.abc import Iterable

import pytest


def slow_except(values: Iterable, *quick: object) -> list:
    """The values as parameters of a test, all but `quick` marked slow."""
    values = list(values)
    assert set(quick) <= set(values), "a quick value that the test does not have"
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
