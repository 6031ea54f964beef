"""Seeds: the same for the same place and step, different for any other."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.distributed.seeding import step_seed, tensor_seed


@given(st.integers(0, 2**40), st.integers(0, 10**6))
def test_seeds_fit_and_repeat(seed, step):
    assert 0 <= step_seed(seed, step, 0, 0, 0) < 2**31
    assert step_seed(seed, step, 1, 2, 3) == step_seed(seed, step, 1, 2, 3)
    assert 0 <= tensor_seed(seed, "key") < 2**63


def test_places_and_steps_differ():
    seeds = {
        step_seed(1, step, pp, dp, cp) for step in range(5) for pp in range(3) for dp in range(3) for cp in range(3)
    }
    assert len(seeds) == 5 * 27
    assert tensor_seed(1, "a") != tensor_seed(1, "b") != tensor_seed(2, "b")
