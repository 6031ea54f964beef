"""8-bit numerics against a float64 reference: scales, casts, products and the history of amax."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.model import fp8
from megatron_sky.model.fp8 import E4M3, E5M2

FORMATS = {E4M3: (3, -6, 448.0), E5M2: (2, -14, 57344.0)}  # mantissa bits, smallest normal exponent, largest value
formats = pytest.mark.parametrize("dtype", FORMATS, ids=str)
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


def reference_cast(value: float, scale: float, dtype: torch.dtype) -> float:
    """The nearest value of the format, ties to even, and the largest one where it is too large: in float64."""
    mantissa_bits, smallest_exponent, largest = FORMATS[dtype]
    x = value * scale
    if x == 0:
        return 0.0
    exponent = max(math.frexp(x)[1] - 1, smallest_exponent)
    step = 2.0 ** (exponent - mantissa_bits)
    return math.copysign(min(abs(round(x / step) * step), largest), x)


@formats
@given(amax=st.floats(min_value=0.0, max_value=2.0**127, width=32))
def test_the_scale_is_the_largest_power_of_two_that_fits(dtype, amax):
    scale = fp8.scale_of(torch.tensor(amax), dtype).item()
    largest = FORMATS[dtype][2]
    if amax == 0:
        assert scale == 1.0
        return
    mantissa, exponent = math.frexp(scale)
    assert mantissa == 0.5 and -126 <= exponent - 1 <= 126
    assert scale * amax <= largest or scale == 2.0**-126
    assert 2 * scale * amax > largest or scale == 2.0**126


@formats
def test_an_amax_that_says_nothing_gives_no_scale(dtype):
    assert fp8.scale_of(torch.tensor([0.0, math.inf, math.nan]), dtype).tolist() == [1.0, 1.0, 1.0]


@formats
@given(values=st.lists(finite, min_size=1, max_size=30), power=st.integers(-20, 20))
def test_casts_round_to_nearest_even_and_saturate(dtype, values, power):
    scale = 2.0**power
    got = fp8.cast(torch.tensor(values, dtype=torch.float32), torch.tensor(scale), dtype).float().tolist()
    held = [x for x in values if abs(x) * scale < 3e38]  # beyond it, fp32 itself overflows: still the largest value
    assert all(math.isfinite(x) for x in got)
    if len(held) == len(values):
        assert got == [reference_cast(x, scale, dtype) for x in values]


@formats
def test_what_is_too_large_becomes_the_largest_value(dtype):
    largest = FORMATS[dtype][2]
    got = fp8.cast(torch.tensor([1e30, -1e30, math.inf, -math.inf, math.nan]), torch.tensor(1.0), dtype).float()
    assert got[:4].tolist() == [largest, -largest, largest, -largest] and got[4].isnan()


@given(seed=st.integers(0, 2**31), m=st.integers(1, 5), n=st.integers(1, 5), k=st.integers(1, 40), hybrid=st.booleans())
def test_the_product_is_that_of_the_cast_numbers(seed, m, n, k, hybrid):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(m, k, generator=generator) * 10.0 ** torch.randint(-6, 6, (1,), generator=generator)
    b = torch.randn(n, k, generator=generator)
    a_dtype = fp8.formats("hybrid" if hybrid else "e4m3")[fp8.GRAD]
    a_scale, b_scale = fp8.scale_of(fp8.amax_of(a), a_dtype), fp8.scale_of(fp8.amax_of(b), E4M3)
    got = fp8.product(fp8.cast(a, a_scale, a_dtype), a_scale, fp8.cast(b, b_scale, E4M3), b_scale, torch.float32)
    wide_a = np.array(
        [[reference_cast(x, a_scale.item(), a_dtype) / a_scale.item() for x in row] for row in a.tolist()]
    )
    wide_b = np.array([[reference_cast(x, b_scale.item(), E4M3) / b_scale.item() for x in row] for row in b.tolist()])
    exact = wide_a @ wide_b.T
    slack = 1e-6 * (np.abs(wide_a) @ np.abs(wide_b).T) + 1e-30  # fp32's accumulation
    assert (np.abs(got.numpy() - exact) <= slack).all()


def test_the_product_is_torchs_own():
    """`torch._scaled_mm`, which a GPU runs, exists for CPUs too: same arguments, same numbers."""
    a, b = torch.randn(32, 64), torch.randn(48, 64)
    a_scale, b_scale = fp8.scale_of(fp8.amax_of(a), E4M3), fp8.scale_of(fp8.amax_of(b), E4M3)
    narrow = fp8.cast(a, a_scale, E4M3), fp8.cast(b, b_scale, E4M3)
    ours = fp8.product(narrow[0], a_scale, narrow[1], b_scale, torch.float32)
    theirs = torch._scaled_mm(
        narrow[0],
        narrow[1].t(),
        scale_a=a_scale.reciprocal(),
        scale_b=b_scale.reciprocal(),
        out_dtype=torch.float32,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


amaxes = st.lists(
    st.lists(st.one_of(st.floats(0, 1e6, width=32), st.just(math.inf)), min_size=12, max_size=12),
    min_size=1,
    max_size=9,
)


@given(steps=amaxes, length=st.integers(1, 5), algorithm=st.sampled_from(["max", "most_recent"]))
def test_history_and_scales_follow_the_steps(steps, length, algorithm):
    history = torch.zeros(1, 4, 3, length)
    kept: list[list[float]] = [[0.0] * length for _ in range(12)]  # the reference, in Python's float64
    for step in steps:
        history = fp8.pushed(history, torch.tensor(step).view(1, 4, 3))
        for held, amax in zip(kept, step, strict=True):
            held.insert(0, amax if math.isfinite(amax) else held[0])
            held.pop()
    assert history.view(12, length).tolist() == kept
    expected = fp8.expected_amax(history, algorithm).flatten().tolist()
    assert expected == [max(held) if algorithm == "max" else held[0] for held in kept]
