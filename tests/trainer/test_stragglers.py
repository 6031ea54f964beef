"""Slow ranks by their own work."""

from megatron_sky.trainer.stragglers import find_slow


def test_the_slow_rank_is_named():
    (slow,) = find_slow([(1.0, "a"), (1.1, "a"), (2.0, "b"), (0.9, "b")], ratio=1.5)
    assert (slow.rank, slow.host, slow.median_seconds) == (2, "b", 1.0)


def test_equal_ranks_are_not_slow():
    assert find_slow([(1.0, "a"), (1.2, "b")], ratio=1.5) == []


def test_of_two_ranks_the_slower_one():
    assert [each.rank for each in find_slow([(1.0, "a"), (2.0, "a")], ratio=1.5)] == [1]
