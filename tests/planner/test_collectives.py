"""Collectives on a cluster's links."""

import pytest

from megatron_sky.planner.collectives import Group, all_reduce, bandwidth, scatter_or_gather, send
from megatron_sky.planner.hardware import cluster_of, coefficients, find_gpu

C = coefficients()
A800 = cluster_of(find_gpu("a800"))
GIGABYTE = 1e9


def test_a_group_within_a_node_has_its_links():
    assert bandwidth(Group(8, 1), A800, C) == 200e9 * C["link_efficiency"]
    assert bandwidth(Group(4, 2), A800, C) == bandwidth(Group(8, 1), A800, C)


def test_groups_that_cross_nodes_share_the_network():
    whole, each = bandwidth(Group(64, 1), A800, C), bandwidth(Group(64, 8), A800, C)
    assert whole == min(200e9 * C["link_efficiency"], 100e9 * C["network_efficiency"])
    assert each == pytest.approx(100e9 / 8 * C["network_efficiency"])


def test_one_rank_moves_nothing():
    assert scatter_or_gather(GIGABYTE, Group(1, 8), A800, C) == 0


def test_an_all_reduce_is_both():
    group = Group(8, 1)
    assert all_reduce(GIGABYTE, group, A800, C) == 2 * scatter_or_gather(GIGABYTE, group, A800, C)
    share = GIGABYTE * 7 / 8 / bandwidth(group, A800, C)
    assert scatter_or_gather(GIGABYTE, group, A800, C) == pytest.approx(share, rel=0.01)


def test_sends_within_a_node_are_faster():
    assert send(GIGABYTE, 4, A800, C) < send(GIGABYTE, 256, A800, C) / 5


def test_a_better_network_helps_where_it_is_crossed():
    better = cluster_of(find_gpu("a800"), node_gb_per_s=400)
    assert scatter_or_gather(GIGABYTE, Group(64, 8), better, C) < scatter_or_gather(GIGABYTE, Group(64, 8), A800, C)
    assert scatter_or_gather(GIGABYTE, Group(8, 1), better, C) == scatter_or_gather(GIGABYTE, Group(8, 1), A800, C)
