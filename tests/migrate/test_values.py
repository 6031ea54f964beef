"""A script's variables, with what is not known of them; two ways that a script may go, joined."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_sky.migrate.values import (
    ARGUMENTS,
    State,
    blend,
    decided,
    flags,
    holds_text,
    is_known,
    maybes,
    plain,
    settled,
    under,
    unknown,
    unset,
    unset_names,
)


def numbers():
    return itertools.count().__next__


def test_what_is_known():
    assert is_known("a b") and is_known(["a", "b"]) and not is_known(["a", unknown()]) and not is_known(unset("A"))
    assert decided(f"a{unset('B')}c") == "ac" and decided(f"a{unknown()}") is None
    assert unset_names(f"{unset('A')}/{unset('B')}{unknown('C')}") == ["A", "B"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        (unset("A"), "${A}"),
        (unset("1"), "$1"),
        (unknown(), "$(...)"),
        (f"a{unknown('B')}c", "a${B}c"),
    ],
)
def test_as_a_recipe_has_it(text, shown):
    assert plain(text) == shown


def test_a_word_that_is_not_known_is_the_variable_from_there_on():
    assert settled("A", unknown()) == unknown("A") and settled("A", f"x{unset('1')}") == unknown("A")
    assert settled("A", unset("1")) == unset("A")
    assert settled("A", f"{unknown()} b") == f"{unknown()} b" and settled("A", [unknown()]) == [unknown()]


def test_names_of_arguments_in_a_value():
    assert flags("--lr 1e-3 --bf16 x--no --lr 2 '--q'") == ["--lr", "--bf16", "--q"]
    assert flags(["--a", "b"]) == ["--a"] and flags(None) == []
    assert holds_text("a") and not holds_text(unknown("A")) and not holds_text(None) and not holds_text([])


words = st.lists(st.sampled_from(["--a", "--b", "1", "2", "x y"]), max_size=6)


@given(words, words)
def test_of_two_blended_each_is_found_again(ours, theirs):
    both = blend(ours, theirs, numbers())
    present = set().union(*map(maybes, both)) if both else set()
    for expected, number in ((ours, 0), (theirs, 1)):
        alone = present & {number} if len(present) == 2 or ours != theirs else set()
        if len(present) < 2 and ours != theirs:  # only one of them has something of its own
            alone = present if len(expected) == max(len(ours), len(theirs)) else set()
        kept = [word for word in (under(word, alone) for word in both) if word is not None]
        assert " ".join(kept).split() == " ".join(expected).split()


def test_equal_lists_have_no_marks():
    assert blend(["--a", "1"], ["--a", "1"], numbers()) == ["--a", "1"]
    assert [maybes(word) for word in blend(["--a", "1"], ["--a", "2"], numbers())] == [set(), {0}, {1}]


def test_a_copy_shares_nothing_that_changes():
    state = State()
    state.put("A", "1")
    state.local.append({"A": None})
    other = state.copy()
    other.put("A", "2")
    other.exported.add("A")
    other.functions["f"] = 1
    other.local[-1]["B"] = "x"
    assert state.values == {ARGUMENTS: [], "A": "1"} and not state.exported and not state.functions
    assert state.local == [{"A": None}]


def test_what_both_ways_agree_on_stays_known():
    ours = State()
    for name, value in (("SAME", "1"), ("OTHER", "1"), ("MORE", "--lr 1"), ("MINE", "1")):
        ours.put(name, value)
    theirs = ours.copy()
    theirs.put("OTHER", "2")
    theirs.put("MORE", "--lr 1 --bf16")
    theirs.unset("MINE")
    ours.exported, theirs.exported = {"A", "B"}, {"B"}
    lost = ours.join(theirs, numbers())
    assert ours.get("SAME") == "1" and ours.get("OTHER") == unknown("OTHER") and lost == {"OTHER": [], "MINE": []}
    assert plain(str(ours.get("MORE"))) == "--lr 1 --bf16" and ours.exported == {"B"}


def test_what_bash_sets_itself_is_not_known():
    state = State()
    state.put("RANDOM", "4")
    assert state.get("RANDOM") == unknown("RANDOM") and state.get("HOSTNAME") == unknown("HOSTNAME")
    assert state.get("NONE") is None
    state.blind = True
    assert state.get("NONE") == unknown("NONE")


def test_a_functions_own_variables_cover_those_of_the_script():
    state = State()
    state.put("A", "outer")
    state.local.append({})
    state.cover("A")
    assert state.get("A") is None
    state.put("A", "inner")
    state.cover("A")
    assert state.get("A") == "inner", "covered once"
    state.uncover()
    assert state.get("A") == "outer" and state.local == []


def test_what_can_not_be_assigned_is_not_known():
    state = State(fixed={"A"}, never={"B"})
    state.put("A", "1")
    state.put("B", "1")
    assert state.get("A") == unknown("A") and state.get("B") == unknown("B")
    state.unset("B")
    assert state.get("B") == unknown("B")
