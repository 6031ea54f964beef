"""Smoothing and thinning keep what matters of a curve."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_sky.report.drawing import _tick, short_count, smooth, thin

curves = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200)
# The machine may be busy with other work: slow draws are no failure of ours.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@patient
@given(values=curves, window=st.integers(1, 50))
def test_smoothing_stays_within_the_curve_and_keeps_its_ends(values, window):
    smoothed = smooth(values, window)
    assert len(smoothed) == len(values)
    assert min(values) - 1e-3 <= smoothed.min() and smoothed.max() <= max(values) + 1e-3
    assert smoothed[0] == pytest.approx(values[0], abs=1e-3) and smoothed[-1] == pytest.approx(values[-1], abs=1e-3)


@patient
@given(length=st.integers(1, 100), window=st.integers(1, 30), slope=st.floats(-10, 10))
def test_a_straight_line_is_not_bent(length, window, slope):
    line = slope * np.arange(length) + 3.0
    np.testing.assert_allclose(smooth(line, window), line, atol=1e-8)


def test_smoothing_leaves_out_what_is_not_finite():
    np.testing.assert_allclose(smooth([1.0, math.nan, 3.0], 3), [1.0, 2.0, 3.0])
    assert math.isnan(smooth([math.inf], 3)[0])


@patient
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=500), stretches=st.integers(2, 40))
def test_thinning_keeps_ends_and_extremes_in_order(values, stretches):
    x, y = thin(list(range(len(values))), values, stretches)
    assert len(x) <= 2 * stretches
    assert (x[0], x[-1]) == (0, len(values) - 1) and (np.diff(x) > 0).all()
    assert (y.min(), y.max()) == (min(values), max(values))
    assert [values[int(place)] for place in x] == list(y)


def test_thinning_keeps_gaps():
    values = [1.0] * 100 + [math.nan] * 100 + [2.0] * 100
    _, y = thin(range(300), values, 30)
    assert np.isnan(y).any() and np.nanmax(y) == 2.0


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (6e-4, "6e-4"), (1.25e-5, "1.25e-5"), (0.25, "0.25"), (9000, "9000"), (12_500, "12.5k"), (3e12, "3T")],
)
def test_ticks(value, text):
    assert _tick(value) == text


def test_short_count():
    assert [short_count(value) for value in (0, 950, 1500, 2.5e6, 1e9)] == ["0", "950", "1.5k", "2.5M", "1B"]
