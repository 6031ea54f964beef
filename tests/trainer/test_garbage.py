"""Garbage has its timetable."""

import gc
import itertools

from megatron_sky.trainer.garbage import GarbageCollection


def test_garbage_has_its_timetable():
    before = gc.isenabled()
    with GarbageCollection(3) as garbage:
        assert not gc.isenabled()
        counts = [gc.get_stats()[2]["collections"]]
        for step in range(1, 7):
            garbage.maybe_collect(step)
            counts.append(gc.get_stats()[2]["collections"])
    assert [after - earlier for earlier, after in itertools.pairwise(counts)] == [0, 0, 1, 0, 0, 1]
    assert gc.isenabled() == before
    with GarbageCollection(None):
        assert gc.isenabled() == before
