import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_sky.data.sampling.plan import BLOCK, build_plan
from megatron_sky.data.sampling.shares import SHARE_UNIT


@dataclass(frozen=True)
class Ramp:
    start: float
    end: float


def make(weights, *, total=5000, tokens=10**9, seq_length=16, seed=3, **more):
    tokens = tokens if isinstance(tokens, list) else [tokens] * len(weights)
    sources = [(f"s{i}", weight, count) for i, (weight, count) in enumerate(zip(weights, tokens, strict=True))]
    given = {"max_epochs": 5.0} | more
    return build_plan(sources, seq_length=seq_length, total_samples=total, seed=seed, **given)


def integral(plan, source, count):
    start, end = plan.shares[source]
    return (start * count + (end - start) * count * count / (2 * plan.length)) / SHARE_UNIT


positive = st.floats(0.001, 100)


weights = st.lists(
    st.one_of(positive, st.builds(Ramp, start=st.floats(0, 10), end=st.floats(0, 10))), min_size=0, max_size=9
).map(lambda some: [1.0, *some])


@settings(max_examples=60, deadline=None)
@given(weights, st.integers(1, 3000))
@example([1.0, 1.0, 1.25, 52.0, 52.0, 1.0, 3.0, Ramp(1.5, 0.0)], 242)  # a node given more than its share of the run
def test_counts_are_exact_steady_and_near_the_integral(mixture, total):
    plan = make(mixture, total=total)
    before = [0] * len(mixture)
    for count in range(0, total + 1, max(1, total // 200)):
        counts = plan._counts(count)
        assert sum(counts) == count
        assert all(now >= then for now, then in zip(counts, before, strict=True))
        for source, given_ in enumerate(counts):
            assert abs(given_ - integral(plan, source, count)) <= plan.count_error + 1e-6
        before = counts


@settings(max_examples=40, deadline=None)
@given(weights, st.integers(2, 300), st.integers(0, 10**6))
def test_every_sample_grows_one_source_by_one(mixture, total, skip):
    plan = make(mixture, total=10**9)
    before = plan._counts(skip)
    for count in range(skip + 1, skip + total):
        counts = plan._counts(count)
        assert sorted(now - then for now, then in zip(counts, before, strict=True))[-2:] in ([1], [0, 1])
        before = counts


@settings(max_examples=25, deadline=None)
@given(weights, st.integers(1, 4 * BLOCK), st.data())
def test_consumed_tells_what_locate_gave(mixture, total, data):
    plan = make(mixture, total=total)
    count = data.draw(st.integers(0, total))
    seen = Counter(plan.locate(number).source for number in range(count))
    assert plan.consumed(count) == [seen[i] for i in range(len(mixture))]


@settings(max_examples=25, deadline=None)
@given(weights, st.integers(1, 4 * BLOCK), st.data())
def test_one_sample_is_where_its_whole_block_has_it(mixture, total, data):
    number = data.draw(st.integers(0, total + BLOCK))
    plan = make(mixture, total=total)
    first = plan.locate(number)
    assert list(plan._blocks.values()) == [None], "no block is made for one sample"
    assert plan.locate(number) == first
    (block,) = plan._blocks.values()
    assert block is not None


def test_every_sequence_of_a_source_comes_once_an_epoch():
    plan = make([3.0, Ramp(0.0, 1.0)], tokens=[16 * 700 + 5, 16 * 40 + 1], total=2000, max_epochs=100)
    seen = [plan.locate(number) for number in range(2000)]
    assert len(set(seen)) == 2000
    for source in range(2):
        whole = plan.sequences_per_epoch(source)
        by_epoch = Counter(place.epoch for place in seen if place.source == source)
        for epoch in range(max(by_epoch)):
            assert by_epoch[epoch] == whole
        assert all(0 <= place.sequence < whole for place in seen if place.source == source)


def test_the_order_is_the_same_from_wherever_it_is_asked():
    def order(numbers):
        plan = make([1.0, 0.3, Ramp(0.1, 0.4)], total=3 * BLOCK + 17)
        return [plan.locate(number) for number in numbers]

    whole = order(range(3 * BLOCK + 17))
    assert order(range(2000, 2100)) == whole[2000:2100]
    assert order(reversed(range(3 * BLOCK + 17))) == whole[::-1]
    assert order([3 * BLOCK + 16]) == whole[-1:]


def test_seeds_give_other_orders_and_equal_seeds_equal_ones():
    places = [[make([1.0, 2.0], seed=seed).locate(n) for n in range(300)] for seed in (1, 1, 2)]
    assert places[0] == places[1] != places[2]


def test_offsets_reach_every_token_and_stay_inside():
    plan = make([1.0], tokens=16 * 10 + 8, total=10 * 200, max_epochs=1000)
    starts = [plan.token_offset(plan.locate(number)) for number in range(2000)]
    assert min(starts) == 0 and max(starts) + 16 + 1 == 16 * 10 + 8
    assert len({start % 16 for start in starts}) == 8
    for epoch in range(200):
        mine = sorted(starts[epoch * 10 : epoch * 10 + 10])
        assert all(b - a == 16 for a, b in pairwise(mine))


def test_ramps_reach_their_shares():
    plan = make([Ramp(0.9, 0.6), Ramp(0.1, 0.4)], total=100_000)
    early, late = plan._counts(1000)[1] / 1000, (plan._counts(100_000)[1] - plan._counts(99_000)[1]) / 1000
    assert early == pytest.approx(0.1, abs=0.003) and late == pytest.approx(0.4, abs=0.003)
    assert plan._counts(100_000) == [75_000, 25_000]


def test_overuse_and_short_sources_are_told_with_the_token():
    plan = make([1.0, 1.0, 0.0], tokens=[16 * 100 + 1, 10, 0], total=2000)
    used, short = plan.problems()
    assert (
        "s0" in str(used) and "10.00 times" in str(used) and "limit is reached at token 16,000 of 32,000" in str(used)
    )
    assert "less than one sequence" in str(short)
    assert make([1.0], tokens=16 * 400 + 1, total=2000).problems() == []


def test_a_run_that_stepped_over_samples_can_go_beyond_the_end():
    plan = make([1.0, Ramp(0.1, 0.3)], total=BLOCK + 100)
    seen = [plan.locate(number) for number in range(3 * BLOCK)]
    assert len(set(seen)) == len(seen)
    counts = Counter(place.source for place in seen)
    assert plan.consumed(3 * BLOCK) == [counts[0], counts[1]]
    beyond = Counter(place.source for place in seen[BLOCK + 100 :])
    assert beyond[1] / (2 * BLOCK - 100) == pytest.approx(0.3 / 1.3, abs=0.005)


def test_a_run_of_trillions_is_located_at_once():
    plan = make([1.0] * 14, total=3_200_000_000_000 // 4096, tokens=230_000_000_000, seq_length=4096)
    place = plan.locate(781_249_999)
    assert plan.problems() == [] and 0 <= plan.token_offset(place) < 230_000_000_000


def test_fingerprints_are_plain_and_differ_when_the_order_may():
    plain = make([1.0, Ramp(0.1, 0.2)]).fingerprint()
    assert json.loads(json.dumps(plain)) == plain == make([1.0, Ramp(0.1, 0.2)]).fingerprint()
    others = [make([1.0, Ramp(0.1, 0.3)]), make([1.0, Ramp(0.1, 0.2)], seed=4), make([1.0, Ramp(0.1, 0.2)], total=5001)]
    assert all(other.fingerprint() != plain for other in others)


def test_pure_modules_import_no_torch():
    code = (
        "import sys; from megatron_sky.data import synthetic; from megatron_sky.data.ingest import tokenize; "
        "from megatron_sky.data.sampling import plan; from megatron_sky.data.tokens import indexed, meta; "
        "from megatron_sky.tokenizer import kinds; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
