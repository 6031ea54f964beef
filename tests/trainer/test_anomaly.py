"""Spikes and numbers that are not finite."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.config.schema import ResilienceConfig
from megatron_sky.trainer.anomaly import FINE, NONFINITE, SPIKE, AnomalyDetector, robust_zscore


def detector(**fields) -> AnomalyDetector:
    found = AnomalyDetector(ResilienceConfig(**{"on_spike": "skip", "spike_window": 32} | fields))
    draw = random.Random(1)
    for step in range(40):
        found.accept(4.0 - 0.01 * step + draw.gauss(0, 0.02), 1.0 + draw.gauss(0, 0.1))
    return found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(bad):
    assert detector().judge(bad, 1.0).kind == NONFINITE
    verdict = detector().judge(3.0, bad)
    assert verdict.kind == NONFINITE and "grad_norm" in verdict.reason


def test_an_overflow_of_fp16_is_no_fault_but_its_loss_may_be():
    assert detector().judge(3.6, None).kind == FINE
    assert detector().judge(9.0, None).kind == FINE  # nothing is applied
    assert detector().judge(math.nan, None).kind == NONFINITE


def test_spikes_of_either_number():
    assert detector().judge(9.0, 1.0).kind == SPIKE
    verdict = detector().judge(3.7, 50.0)
    assert verdict.kind == SPIKE and "grad_norm = 50" in verdict.reason


def test_ordinary_steps_are_fine():
    found = detector()
    assert found.judge(3.6, 1.1).kind == FINE
    assert found.judge(0.5, 0.1).kind == FINE  # far below is no spike
    assert detector(on_spike="ignore").judge(9.0, 50.0).kind == FINE


def test_a_young_window_can_not_tell():
    found = AnomalyDetector(ResilienceConfig(on_spike="stop", spike_window=32))
    found.accept(4.0, 1.0)
    assert found.judge(400.0, 1.0).kind == FINE


@given(st.lists(st.floats(0.1, 100), min_size=8, max_size=64), st.floats(0.5, 2.0))
def test_the_score_does_not_depend_on_the_unit(seen, unit):
    value = max(seen) * 3
    scaled = robust_zscore(value * unit, [each * unit for each in seen])
    assert scaled == pytest.approx(robust_zscore(value, seen), rel=1e-6)
