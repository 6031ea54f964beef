"""What the events of metrics.jsonl tell of sessions, the planned mixture and other models' losses.

An entry of another shape is left out and told in `notes`: a damaged line never hides the rest of a run.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

from pydantic import Field

from megatron_sky.monitor.metrics import EventRecord
from megatron_sky.records import BadRecord, read_record

_LARGEST = 1e300  # of numbers that can be drawn
Number = Annotated[float, Field(gt=-_LARGEST, lt=_LARGEST)]
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """A session that the run has entered, on its axis of consumed tokens."""

    name: str
    first_token: int
    end_token: int


@dataclass(frozen=True)
class ReferenceLoss:
    """Another model's loss on a validation set, in nats per token."""

    model: str
    set: str
    lm_loss: Number


@dataclass(frozen=True)
class Stretch:
    """A part of the sampling plan: every source's share (0 to 1) at its start and its end, a straight line between."""

    session: str
    first_token: int
    end_token: int
    shares: dict[str, tuple[Number, Number]]


@dataclass(frozen=True)
class _Entered:
    """A "session" event's fields."""

    step: int
    session: str
    first_token: int
    end_token: int


def read_sessions(events: Sequence[EventRecord], notes: list[str]) -> list[Session]:
    """The sessions as they were entered, in order; what a resume at an earlier step made void is left out."""
    entered: list[_Entered] = []
    for event in events:
        if event.event in ("start", "resume"):
            kept = as_number(event.fields.get("step", 0))
            entered = [session for session in entered if kept is None or session.step <= kept]
        elif event.event == "session":
            for new in _entries([event.fields], _Entered, "event session", notes):
                # A session that is entered again, or from a changed recipe, takes the other's place.
                earlier = [old for old in entered if old.session != new.session and old.first_token < new.first_token]
                entered = [*earlier, new]
    sessions = [Session(entry.session, entry.first_token, entry.end_token) for entry in entered]
    # A budget that was cut while its session ran is told by where the next one began.
    ends = [*(session.first_token for session in sessions[1:]), *(session.end_token for session in sessions[-1:])]
    return [replace(session, end_token=end) for session, end in zip(sessions, ends, strict=True)]


def read_references(data: dict[str, object], notes: list[str]) -> list[ReferenceLoss]:
    """Of a "data" event's fields."""
    return _entries(data.get("references"), ReferenceLoss, "event data: references", notes)


def read_mixture(data: dict[str, object], notes: list[str]) -> list[Stretch]:
    """Of a "data" event's fields, in order of tokens."""
    stretches = _entries(data.get("mixture"), Stretch, "event data: mixture", notes)
    return sorted((one for one in stretches if one.first_token < one.end_token), key=lambda one: one.first_token)


def as_number(value: object) -> float | None:
    """A finite number of JSON, or None for whatever else stands there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -_LARGEST < value < _LARGEST else None


def _entries(listed: object, kind: type[T], what: str, notes: list[str]) -> list[T]:
    if listed is None:
        return []
    if not isinstance(listed, list):
        notes.append(f"{what} left out: must be a list")
        return []
    entries = []
    for number, entry in enumerate(listed, 1):
        try:
            entries.append(read_record(kind, entry))
        except BadRecord as error:
            notes.append(f"{what}: entry {number} left out ({error})")
    return entries
