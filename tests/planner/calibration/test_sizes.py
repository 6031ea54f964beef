"""The sizes that are measured."""

import pytest

from megatron_sky.planner.calibration.sizes import bytes_of_collectives, sizes_of
from megatron_sky.planner.measured import BETWEEN_RANKS, KINDS


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {*BETWEEN_RANKS, "step"}))
def test_each_kind_has_enough_sizes_for_its_terms(kind, on_gpu):
    sizes = sizes_of(kind, on_gpu)
    kind = KINDS[kind]
    assert all(len(row) == len(kind.sizes) for row in sizes) and len(set(sizes)) == len(sizes)
    assert len(sizes) >= len(kind.terms(*sizes[0]))


def test_a_gpu_has_larger_ones():
    assert max(bytes_of_collectives(True)) > max(bytes_of_collectives(False))
    assert max(sizes_of("loss", True)) > max(sizes_of("loss", False))
