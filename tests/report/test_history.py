"""What the events tell of sessions, mixture and other models' losses; what can't be understood is told, not fatal."""

import pytest

from megatron_sky.monitor.metrics import EventRecord
from megatron_sky.report.history import (
    ReferenceLoss,
    Session,
    Stretch,
    as_number,
    read_mixture,
    read_references,
    read_sessions,
)


def events(*told):
    return [EventRecord(name, 0.0, fields) for name, fields in told]


def entered(step, session, first, end):
    return "session", {"step": step, "session": session, "first_token": first, "end_token": end}


ONE, TWO = entered(0, "one", 0, 300), entered(3, "two", 300, 500)


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ([ONE, TWO], ["one", "two"]),
        ([ONE, TWO, ("resume", {"step": 2})], ["one"]),
        ([ONE, TWO, ("resume", {"step": 3})], ["one", "two"]),
        ([ONE, TWO, ("resume", {"step": 2}), entered(4, "two", 400, 500)], ["one", "two"]),
        ([ONE, TWO, ("start", {"step": 0}), ONE], ["one"]),
        ([ONE, TWO, ("resume", {"step": 3}), entered(3, "second", 300, 500)], ["one", "second"]),
        ([("resume", {"step": 3}), TWO], ["two"]),
        ([], []),
    ],
    ids=["in order", "made void", "kept", "entered again", "from the start again", "renamed", "one alone", "none"],
)
def test_sessions_as_the_run_has_them(told, names):
    notes = []
    found = read_sessions(events(*told), notes)
    assert [each.name for each in found] == names and notes == []


def test_a_session_entered_again_has_its_new_bounds():
    found = read_sessions(events(ONE, TWO, ("resume", {"step": 2}), entered(4, "two", 400, 600)), [])
    assert found == [Session("one", 0, 400), Session("two", 400, 600)]


@pytest.mark.parametrize(
    "fields",
    [{}, {"step": 0}, {"step": 0, "session": "x", "first_token": "a", "end_token": 1}, dict(ONE[1], end_token=1.5)],
)
def test_a_session_of_another_shape_is_told(fields):
    notes = []
    assert read_sessions(events(("session", fields)), notes) == []
    assert len(notes) == 1 and notes[0].startswith("event session: entry 1 left out")


def test_references():
    notes = []
    listed = [
        {"model": "A", "set": "code", "lm_loss": 2},
        {"model": "B", "set": "code", "lm_loss": float("nan")},
        {"model": "C"},
        None,
        {"model": "D", "set": "code", "lm_loss": 10**400},
    ]
    assert read_references({"references": listed}, notes) == [ReferenceLoss("A", "code", 2.0)]
    assert [note.split(" left out")[0] for note in notes] == [
        f"event data: references: entry {n}" for n in (2, 3, 4, 5)
    ]


def test_mixture_in_order_of_tokens():
    def stretch(first, end, **shares):
        return {"session": "s", "first_token": first, "end_token": end, "shares": shares}

    notes = []
    listed = [stretch(5, 9, code=[0.1, 0.4]), stretch(0, 5, code=[1, 1]), stretch(9, 9, code=[1, 1])]
    found = read_mixture({"mixture": listed}, notes)
    assert found == [Stretch("s", 0, 5, {"code": (1.0, 1.0)}), Stretch("s", 5, 9, {"code": (0.1, 0.4)})]
    assert notes == []
    assert read_mixture({"mixture": [stretch(0, 1, code=[1]), {"shares": 3}, 7]}, notes) == [] and len(notes) == 3


@pytest.mark.parametrize("listed", [{"a": 1}, "text", 3])
def test_what_is_no_list_is_told(listed):
    notes = []
    assert read_mixture({"mixture": listed}, notes) == [] and read_references({"references": listed}, notes) == []
    assert [note.split(":")[1] for note in notes] == [" mixture left out", " references left out"]


def test_without_them():
    notes = []
    assert read_mixture({}, notes) == [] and read_references({}, notes) == [] and notes == []


def test_numbers():
    assert [as_number(each) for each in (1, 2.5, True, "1", None, [1], 10**400)] == [1.0, 2.5, *[None] * 5]
    assert as_number(float("inf")) is None and as_number(float("nan")) is None
