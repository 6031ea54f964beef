"""Ranks and places are two names for the same thing, and every layout reads the same samples."""

from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.config.schema import ParallelConfig
from megatron_sky.distributed.topology import Layout, samples_of_microbatch

sizes = st.integers(1, 5)
layouts = st.builds(Layout, tp_size=sizes, pp_size=sizes, cp_size=sizes, dp_size=sizes)


@given(layouts)
def test_rank_and_coordinates_are_inverse(layout):
    places = [layout.coordinates(rank) for rank in range(layout.world_size)]
    assert len(set(places)) == layout.world_size
    assert [layout.rank(place) for place in places] == list(range(layout.world_size))


@given(layouts)
def test_tensor_parallel_ranks_are_neighbours(layout):
    for rank in range(layout.world_size):
        assert layout.coordinates(rank).tp_rank == rank % layout.tp_size


@given(first=st.integers(0, 10**12), dp_size=st.integers(1, 6), mbs=st.integers(1, 4), count=st.integers(1, 5))
def test_a_step_reads_each_sample_once_in_any_layout(first, dp_size, mbs, count):
    read = [
        sample
        for rank in range(dp_size)
        for index in range(count)
        for sample in samples_of_microbatch(first, index, micro_batch_size=mbs, dp_size=dp_size, dp_rank=rank)
    ]
    assert sorted(read) == list(range(first, first + dp_size * mbs * count))


def test_layout_of_a_recipe():
    layout = Layout.of(ParallelConfig(tp_size=2, pp_size=2), 16)
    assert (layout.dp_size, layout.world_size, str(layout)) == (4, 16, "TP2 x PP2 x DP4")
    assert str(Layout()) == "one process"
