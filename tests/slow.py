"""Tests that take more than a few seconds, and when they run.

| marks | `pytest -m "not slow"` | rows b to d of `.ci/run` | `pytest` |
|---|---|---|---|
| none | yes | yes | yes |
| slow, every_row | - | yes | yes |
| slow | - | - | yes |
"""

from collections.abc import Callable, Iterable

import pytest


def slow_in_every_row(test: Callable) -> Callable:
    """Marks a test that is slow, and that each set of versions shall pass."""
    return pytest.mark.slow(pytest.mark.every_row(test))


def slow_except(values: Iterable, *quick: object) -> list:
    """The values as parameters of a test, all but `quick` marked slow."""
    values = list(values)
    assert set(quick) <= set(values), "a quick value that the test does not have"
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]
