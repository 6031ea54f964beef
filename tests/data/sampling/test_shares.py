"""Whole counts of every source: equal to exact arithmetic, from the best tree, in bounded time."""

import math
import random
import time

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from megatron_sky.data.sampling.shares import SHARE_UNIT, Node, apportion, best_tree, error_bound

share = st.one_of(st.just(0), st.integers(1, 50), st.integers(0, SHARE_UNIT // 2))


@given(share, share, share, share, st.integers(1, 10**11), st.floats(0, 1), st.integers(0, 60))
def test_a_stretch_is_split_as_its_numbers_one_by_one(start, end, other_start, other_end, total, place, count):
    assume(start + other_start or end + other_end)
    left, right = Node(start, end, leaf=0), Node(other_start, other_end, leaf=1)
    node = Node(start + other_start, end + other_end, children=(left, right))
    first = int(place * total * (node.start + node.end) / 2 / SHARE_UNIT)
    counts = node.split(first, count, total).tolist()
    assert counts == [node.split_one(number, total) for number in range(first, first + count + 1)]


def leaves(weights: list[float]) -> list[Node]:
    return [Node(part, part, leaf=i) for i, part in enumerate(apportion(weights)) if part]


def every_tree(nodes: list[Node]) -> list[Node]:
    """The trees that are chosen from, by the definition: sorted anew for every pair."""
    ordered = sorted(nodes, key=lambda node: (node.start + node.end, node.leaf))
    trees = []
    for apart in range(len(ordered)):
        rest = ordered[apart:]
        while len(rest) > 1:
            rest.sort(key=lambda node: node.start + node.end)
            rest = [join(rest[0], rest[1]), *rest[2:]]
        tree = rest[0]
        for leaf in reversed(ordered[:apart]):
            tree = join(leaf, tree)
        trees.append(tree)
    return trees


def join(left: Node, right: Node) -> Node:
    return Node(left.start + right.start, left.end + right.end, children=(left, right))


powers = st.integers(0, 29).map(lambda power: 2.0**-power)
weight = st.one_of(st.sampled_from([1.0, 2.0, 3.0]), powers, st.floats(0.01, 9))


@given(st.lists(weight, min_size=1, max_size=24))
def test_the_tree_is_the_first_with_the_smallest_bound(weights):
    nodes = leaves(weights)
    assert best_tree(nodes) == min(every_tree(nodes), key=error_bound)


def test_a_thousand_sources_take_no_time_to_speak_of():
    """It was a minute: a tree for every number of sources set apart, and every pair by sorting all."""
    draw = random.Random(1)
    nodes = leaves([draw.paretovariate(1) for _ in range(1400)])
    began = time.process_time()
    assert error_bound(best_tree(nodes)) < 1.1
    assert time.process_time() - began < 5


def test_shares_sum_to_the_unit():
    assert sum(apportion([1, 1, 1])) == SHARE_UNIT and apportion([0, 3]) == [0, SHARE_UNIT]
    with pytest.raises(AssertionError):
        apportion([0.0, 0.0])
    assert all(math.floor(SHARE_UNIT / 7) <= part <= math.ceil(SHARE_UNIT / 7) for part in apportion([1] * 7))
