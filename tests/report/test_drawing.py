"""Smoothing and thinning keep what matters of a curve."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_sky.report.drawing import (
    LINE_STYLES,
    Marks,
    count_labels,
    draw_marks,
    new_figure,
    smooth,
    thin,
    tick_labels,
)

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
    ("values", "labels"),
    [
        ((0, 0.25, 9000), ["0", "0.25", "9000"]),
        ((0, 8000, 12_500), ["0", "8k", "12.5k"]),
        ((0, 3e-4, 6e-4), ["0", "3e-4", "6e-4"]),
        ((0.0005, 0.001, 0.0035, 0.004), ["0.5e-3", "1e-3", "3.5e-3", "4e-3"]),
        ((1e-19, 0.002, 0.004), ["0", "0.002", "0.004"]),
        ((-0.5, 0.5), ["-0.5", "0.5"]),
        ((), []),
    ],
)
def test_ticks_of_an_axis_have_one_form(values, labels):
    assert tick_labels(values) == labels


def test_counts_of_an_axis_have_one_unit():
    assert count_labels((0, 950)) == ["0", "950"]
    assert count_labels((0, 500, 1500)) == ["0", "0.5k", "1.5k"]
    assert count_labels((0, 5e8, 1e9)) == ["0", "0.5B", "1B"]
    assert count_labels([3e12]) == ["3T"]


def test_a_picture_words_its_ticks_together():
    figure, axes = new_figure("learning rate")
    axes.set_yticks([0, 0.0005, 0.001])
    figure.canvas.draw()
    assert [each.get_text() for each in axes.get_yticklabels()] == ["0", "0.5e-3", "1e-3"]


def test_a_resume_looks_in_the_legend_as_in_the_picture():
    _, axes = new_figure("loss")
    (entry,) = draw_marks(axes, Marks(resumes=[5]))
    assert LINE_STYLES[entry.line] == axes.lines[0].get_linestyle()
