"""The learning rate and the batch size are functions of consumed tokens alone."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.config.schema import BatchRampup, ScheduleConfig
from megatron_sky.optim.schedule import global_batch_size_at, lr_at, run_length

TOTAL = 1000


def schedule(**fields) -> ScheduleConfig:
    return ScheduleConfig(**({"lr": 1.0, "min_lr": 0.1, "warmup_tokens": 100} | fields))


def test_skywork_stage_1a():
    stage = ScheduleConfig(style="cosine", lr=6e-4, min_lr=6e-5, warmup_tokens=33_500_000_000)
    total = 2 * 10**12
    assert lr_at(stage, 0, total) == 0.0
    assert lr_at(stage, 33_500_000_000, total) == pytest.approx(6e-4)
    middle = (total + 33_500_000_000) // 2
    assert lr_at(stage, middle, total) == pytest.approx((6e-4 + 6e-5) / 2)
    assert lr_at(stage, total, total) == pytest.approx(6e-5)


@pytest.mark.parametrize(
    ("fields", "at", "value"),
    [
        ({"style": "linear"}, 550, 0.55),
        ({"style": "constant"}, 900, 1.0),
        ({"style": "cosine", "decay_tokens": 500}, 700, 0.1),
        ({"style": "cosine"}, 50, 0.5),
        ({"style": "cosine", "warmup_start_lr": 0.2}, 50, 0.6),
        ({"style": "wsd", "wsd_decay_tokens": 200}, 799, 1.0),
        ({"style": "wsd", "wsd_decay_tokens": 200}, 900, 0.55),
        ({"style": "wsd", "wsd_decay_tokens": 200, "wsd_decay_style": "sqrt"}, 850, 0.55),
        ({"style": "wsd", "wsd_decay_tokens": 200, "wsd_decay_style": "exponential"}, 900, math.sqrt(0.1)),
        ({"style": "wsd", "wsd_decay_tokens": 200, "wsd_decay_style": "cosine"}, 900, 0.55),
        ({"style": "wsd", "wsd_decay_tokens": 200, "wsd_decay_style": "halving"}, 900, 0.1 + 0.9 * (math.sqrt(2) - 1)),
        ({"style": "wsd", "wsd_decay_tokens": 200, "wsd_decay_style": "halving", "min_lr": 0.0}, 1000, 0.0),
        ({"style": "inverse_sqrt"}, 50, 0.5),
        ({"style": "inverse_sqrt"}, 400, 0.5),
        ({"style": "inverse_sqrt", "min_lr": 0.6}, 400, 0.6),
        ({"style": "inverse_sqrt", "decay_tokens": 300}, 301, 0.1),
    ],
)
def test_shapes(fields, at, value):
    assert lr_at(schedule(**fields), at, TOTAL) == pytest.approx(value)


styles = st.sampled_from(["cosine", "linear", "constant", "wsd", "inverse_sqrt"])


@given(styles, st.integers(0, 3000), st.integers(0, 400), st.integers(1, 500))
def test_the_rate_stays_between_its_ends_and_never_rises_after_warmup(style, at, warmup, decay):
    warmup = max(warmup, int(style == "inverse_sqrt"))
    s = schedule(style=style, warmup_tokens=warmup, wsd_decay_tokens=decay if style == "wsd" else 0)
    assert 0.0 <= lr_at(s, at, TOTAL) <= 1.0
    if at >= warmup:
        assert lr_at(s, at, TOTAL) >= 0.1 - 1e-12
        assert lr_at(s, at + 1, TOTAL) <= lr_at(s, at, TOTAL) + 1e-12


def test_the_batch_ramps_in_equal_stages():
    rampup = BatchRampup(start_size=2, increment=2, tokens=300)
    assert [global_batch_size_at(8, rampup, at) for at in (0, 99, 100, 199, 200, 299, 300, 10**6)] == [
        2,
        2,
        4,
        4,
        6,
        6,
        8,
        8,
    ]
    assert global_batch_size_at(8, None, 0) == 8
    assert global_batch_size_at(8, BatchRampup(start_size=8, increment=2, tokens=300), 0) == 8


@given(
    st.integers(1, 5000),
    st.integers(1, 6),
    st.integers(0, 3),
    st.integers(1, 2000),
    st.integers(1, 7),
    st.integers(0, 40),
)
def test_run_length_is_what_counting_gives(total, start, stages, ramp_tokens, seq_length, done_steps):
    rampup = BatchRampup(start_size=start, increment=2, tokens=ramp_tokens)
    full = start + 2 * stages
    samples, steps, at_done = 0, 0, 0
    while samples * seq_length < total:
        if steps == done_steps:
            at_done = samples
        samples += global_batch_size_at(full, rampup, samples * seq_length)
        steps += 1
    told = {"seq_length": seq_length, "full_size": full, "rampup": rampup}
    assert run_length(total, **told) == (steps, samples)
    if done_steps < steps:
        assert run_length(total, **told, consumed_samples=at_done) == (steps - done_steps, samples)
