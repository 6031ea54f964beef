"""Orders of any size: one to one, and without a pattern."""

from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.data.sampling.permutation import Permutation


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers())
def test_permutation_is_a_bijection(size, key):
    order = Permutation(size, str(key))
    assert sorted(map(order, range(size))) == list(range(size))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2**40), st.integers(), st.lists(st.integers(0, 2**40 - 1), min_size=2, max_size=40))
def test_permutation_of_any_size_stays_inside_and_is_one_to_one(size, key, items):
    order = Permutation(size, str(key))
    distinct = {item % size for item in items}
    images = {order(item) for item in distinct}
    assert len(images) == len(distinct) and all(0 <= image < size for image in images)


def test_the_network_can_be_undone_at_2_to_the_40():
    """Each round is undone by itself, so the network is a bijection whatever the size; shown by undoing it."""
    from megatron_sky.data.sampling.permutation import _mix

    order = Permutation(2**40, "k")
    for item in (0, 1, 2**39 + 12345, 2**40 - 1):
        image = order._network(item)
        high, low = image >> order._low_bits, image & order._low_mask
        for number in reversed(range(order.ROUNDS)):
            if number % 2:
                low ^= _mix(high, order._keys[number]) & order._low_mask
            else:
                high ^= _mix(low, order._keys[number]) & order._high_mask
        assert high << order._low_bits | low == item


def test_permutations_look_random():
    size = 1000
    fixed = [sum(Permutation(size, f"k{key}")(i) == i for i in range(size)) for key in range(30)]
    follows = [
        sum(order(i + 1) == order(i) + 1 for i in range(size - 1))
        for order in (Permutation(size, f"k{k}") for k in range(30))
    ]
    assert 0.6 < sum(fixed) / 30 < 1.5 and 0.6 < sum(follows) / 30 < 1.5  # both are 1 for a random permutation
