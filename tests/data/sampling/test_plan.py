import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megatron_sky.data.sampling.permutation import Permutation
from megatron_sky.data.sampling.plan import BLOCK, build_plan
from megatron_sky.data.sampling.run_plan import RunPlan, continue_plan, tokens_given
from megatron_sky.data.sampling.shares import SHARE_UNIT
from megatron_sky.errors import ConfigError


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


@st.composite
def segments(draw):
    """Blends of a run, each with the sample at which it begins; sources come and go."""
    cuts = sorted(draw(st.sets(st.integers(1, 3999), max_size=4)))
    names = st.sets(st.sampled_from("abcde"), min_size=1)
    weight = st.one_of(positive, st.builds(Ramp, start=st.floats(0.01, 10), end=st.floats(0.01, 10)))
    return [(cut, {name: draw(weight) for name in sorted(draw(names))}) for cut in [0, *cuts]]


TOKENS = {"a": 16 * 5000 + 1, "b": 16 * 900 + 9, "c": 16 * 77 + 5, "d": 16 * 4000 + 3, "e": 16 * 300 + 1}


def blend(mixture, *, total=4000, tokens=TOKENS, **more):
    given_ = {"seq_length": 16, "seed": 3, "max_epochs": 100.0} | more
    sources = [(name, weight, tokens[name]) for name, weight in mixture.items()]
    return RunPlan((build_plan(sources, total_samples=total, **given_),))


@settings(max_examples=12, deadline=None)
@given(segments())
def test_a_blend_that_changes_repeats_and_skips_nothing(run):
    plan, given_ = blend(run[0][1]), {name: [] for name in TOKENS}
    for number, (begin, mixture) in enumerate(run):
        end = run[number + 1][0] if number + 1 < len(run) else 4000
        if number:
            plan = continue_plan(json.loads(json.dumps(plan.fingerprint())), blend(mixture), begin)
            assert plan.segments[-1].first_sample == begin or mixture == run[number - 1][1]
        for sample in range(begin, end):
            place = plan.locate(sample)
            given_[plan.sources[place.source].name].append((place.epoch, place.sequence))
        told = dict(zip((s.name for s in plan.sources), plan.consumed(end), strict=True))
        assert all(told[name] == len(given_[name]) for name in told)
    for name, seen in given_.items():
        alone = blend({name: 1.0})
        assert seen == [(place.epoch, place.sequence) for place in map(alone.locate, range(len(seen)))]


def test_an_unchanged_blend_is_no_new_segment():
    plan = blend({"a": 1.0, "b": Ramp(0.1, 0.2)})
    again = continue_plan(plan.fingerprint(), blend({"a": 1.0, "b": Ramp(0.1, 0.2)}), 700)
    assert again.fingerprint() == plan.fingerprint()
    changed = continue_plan(plan.fingerprint(), blend({"a": 1.0}), 700)
    assert continue_plan(changed.fingerprint(), blend({"a": 1.0}), 900).fingerprint() == changed.fingerprint()
    assert [source.name for source in changed.segments[-1].retired] == ["b"]


def test_a_ramp_goes_on_where_it_was_in_a_new_segment():
    plan = continue_plan(
        blend({"a": 9.0, "b": 1.0}).fingerprint(), blend({"a": Ramp(0.9, 0.6), "b": Ramp(0.1, 0.4)}), 2000
    )
    assert [start / SHARE_UNIT for start, _ in plan.segments[-1].shares] == [pytest.approx(0.75), pytest.approx(0.25)]


def test_a_longer_run_keeps_what_was_given():
    plan = blend({"a": 1.0, "b": 1.0})
    longer = continue_plan(plan.fingerprint(), blend({"a": 1.0, "b": 1.0}, total=8000), 4000)
    assert longer.consumed(4000) == plan.consumed(4000) and longer.consumed(8000) == [4000, 4000]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "data.seed"),
        ({"seq_length": 17}, "model.seq_length"),
        ({"tokens": TOKENS | {"a": 1000}}, r"data.train\[a\]: held 80,001 tokens before, now 1,000"),
    ],
)
def test_changes_that_would_repeat_data_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        continue_plan(blend({"a": 1.0}).fingerprint(), blend({"a": 1.0}, **change), 100)


def in_sessions(*sessions):
    """(mixture, its end) each; a mixture names every source."""
    starts = [0, *(end for _, end in sessions)]
    return RunPlan.of_sessions(
        [
            build_plan(
                [(name, mixture.get(name, 0.0), TOKENS[name]) for name in TOKENS],
                seq_length=16,
                seed=3,
                max_epochs=100.0,
                first_sample=start,
                total_samples=end,
            )
            for (mixture, end), start in zip(sessions, starts, strict=False)
        ]
    )


@st.composite
def staged(draw):
    ends = sorted(draw(st.sets(st.integers(1, 3000), min_size=1, max_size=4)))
    mixtures = st.dictionaries(st.sampled_from(list(TOKENS)), st.one_of(positive, st.builds(Ramp, positive, positive)))
    return [(draw(mixtures) | {"a": 1.0}, end) for end in ends]


@settings(max_examples=12, deadline=None)
@given(staged(), st.integers(0, 2999))
def test_sessions_repeat_and_skip_nothing_and_resume_in_each(sessions, stop):
    plan, given_ = in_sessions(*sessions), {name: [] for name in TOKENS}
    end = sessions[-1][1]
    stop = min(stop, end)
    resumed = continue_plan(json.loads(json.dumps(plan.fingerprint())), in_sessions(*sessions), stop)
    assert resumed.fingerprint() == plan.fingerprint()
    for sample in range(end):
        place = plan.locate(sample)
        assert sample < stop or resumed.locate(sample) == place
        given_[plan.sources[place.source].name].append((place.epoch, place.sequence))
    assert plan.consumed(end) == [len(given_[name]) for name in TOKENS]
    for name, seen in given_.items():
        alone = blend({name: 1.0})
        assert seen == [(place.epoch, place.sequence) for place in map(alone.locate, range(len(seen)))]


def test_a_session_that_changes_is_taken_up_and_those_to_come_follow():
    old = in_sessions(({"a": 1.0}, 1000), ({"b": 1.0}, 1800), ({"c": 1.0}, 1850))
    new = in_sessions(({"a": 1.0}, 1000), ({"b": 1.0, "d": 1.0}, 1800), ({"e": 1.0}, 2000))
    plan = continue_plan(old.fingerprint(), new, 1400)
    assert [segment.first_sample for segment in plan.segments] == [0, 1000, 1400, 1800]
    assert dict(zip(TOKENS, plan.consumed(2000), strict=True)) == {"a": 1000, "b": 600, "c": 0, "d": 200, "e": 200}
    assert continue_plan(plan.fingerprint(), new, 1400).fingerprint() == plan.fingerprint()
    assert continue_plan(plan.fingerprint(), new, 1900).fingerprint() == plan.fingerprint()


def test_a_ramp_goes_over_its_session():
    plan = in_sessions(({"a": 1.0}, 1000), ({"a": Ramp(0.9, 0.6), "b": Ramp(0.1, 0.4)}, 3000))
    shares = [[round(end / SHARE_UNIT, 6) for end in share] for share in plan.segments[1].shares]
    assert shares[:2] == [[0.9, 0.6], [0.1, 0.4]]
    assert plan.consumed(3000)[1] == pytest.approx(500, abs=1)


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


def test_tokens_given_are_those_drawn_so_far():
    plan = in_sessions(({"a": 1.0}, 1000), ({"b": 1.0, "d": 1.0}, 1800))
    assert tokens_given(plan.fingerprint(), 1000) == {"a": 16_000, "b": 0, "c": 0, "d": 0, "e": 0}
    assert tokens_given(plan.fingerprint(), 1400)["d"] == pytest.approx(16 * 200, abs=16)
    assert tokens_given({"sampling": "megatron"}, 10) == {}
