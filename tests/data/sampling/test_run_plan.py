"""Plans that follow one another: sessions, changed blends, and runs that are resumed in any of them."""

import json
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_sky.data.sampling.plan import build_plan
from megatron_sky.data.sampling.run_plan import RunPlan, continue_plan, tokens_given
from megatron_sky.data.sampling.shares import SHARE_UNIT
from megatron_sky.errors import ConfigError


@dataclass(frozen=True)
class Ramp:
    start: float
    end: float


positive = st.floats(0.001, 100)


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


def test_tokens_given_are_those_drawn_so_far():
    plan = in_sessions(({"a": 1.0}, 1000), ({"b": 1.0, "d": 1.0}, 1800))
    assert tokens_given(plan.fingerprint(), 1000) == {"a": 16_000, "b": 0, "c": 0, "d": 0, "e": 0}
    assert tokens_given(plan.fingerprint(), 1400)["d"] == pytest.approx(16 * 200, abs=16)
    assert tokens_given({"sampling": "megatron"}, 10) == {}
