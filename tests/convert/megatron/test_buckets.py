"""Where parameters lie in the distributed optimizer's flat buffers."""

import pytest

from megatron_sky.convert.megatron.buckets import bucket_size_of, place, place_in

SIZES = {"a": 100, "b": 64, "c": 130}


def test_parameters_lie_in_reverse_and_begin_at_multiples_of_64():
    (bucket,) = place(SIZES, bucket_size=None)
    assert bucket.starts == {"c": 0, "b": 192, "a": 256} and bucket.size == 356


def test_a_bucket_ends_once_it_is_large_enough():
    assert [bucket.starts for bucket in place(SIZES, bucket_size=150)] == [{"c": 0, "b": 192}, {"a": 0}]


def test_a_tied_embedding_has_a_bucket_of_its_own():
    buckets = place(SIZES, bucket_size=None, alone=("b",))
    assert [bucket.starts for bucket in buckets] == [{"c": 0}, {"b": 0}, {"a": 0}]
    assert buckets[0].size == 192, "the place at which it would have begun"


@pytest.mark.parametrize("bucket_size,alone", [(None, ()), (150, ()), (None, ("b",))])
def test_known_sizes_give_the_same_places(bucket_size, alone):
    buckets = place(SIZES, bucket_size=bucket_size, alone=alone)
    assert place_in(SIZES, [bucket.size for bucket in buckets]) == buckets


@pytest.mark.parametrize("sizes", [[355], [357], [100], [356, 64], []])
def test_sizes_that_the_parameters_do_not_fill_are_seen(sizes):
    assert place_in(SIZES, sizes) is None


def test_bucket_sizes_of_megatron_lms_args():
    overlapped = {"overlap_grad_reduce": True, "data_parallel_size": 64}
    assert bucket_size_of({}, stage=0, chunk=0, num_parameters=9) is None
    assert bucket_size_of(overlapped, stage=0, chunk=0, num_parameters=9) == 64_000_000
    assert bucket_size_of(overlapped, stage=1, chunk=0, num_parameters=9) is None
    assert bucket_size_of(overlapped, stage=0, chunk=1, num_parameters=9) is None
    assert bucket_size_of(overlapped | {"ddp_bucket_size": 5}, stage=0, chunk=0, num_parameters=9) == 5
    assert bucket_size_of(overlapped | {"ddp_num_buckets": 3}, stage=0, chunk=0, num_parameters=9) == 3
