"""What the events of metrics.jsonl tell of sessions, the planned mixture and other models' losses.

An entry of another shape is left out and told in `notes`: a damaged line never hides the rest of a run.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from megatron_sky.monitor.metrics import EventRecord


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
    lm_loss: float


@dataclass(frozen=True)
class Stretch:
    """A part of the sampling plan: every source's share (0 to 1) at its start and its end, a straight line between."""

    session: str
    first_token: int
    end_token: int
    shares: dict[str, tuple[float, float]]


def read_sessions(events: Sequence[EventRecord], notes: list[str]) -> list[Session]:
    """The sessions as they were entered, in order; what a resume at an earlier step made void is left out."""
    found: list[tuple[int, Session]] = []
    for event in events:
        if event.event in ("start", "resume"):
            kept = as_number(event.fields.get("step", 0))
            found = [each for each in found if kept is None or each[0] <= kept]
        elif event.event == "session":
            for step, session in _entries([event.fields], _entered, "event session", notes):
                found = [each for each in found if _before(each[1], session)] + [(step, session)]
    sessions = [session for _, session in found]
    # A budget that was cut while its session ran is told by where the next one began.
    ends = [*(each.first_token for each in sessions[1:]), *(each.end_token for each in sessions[-1:])]
    return [replace(session, end_token=end) for session, end in zip(sessions, ends, strict=True)]


def read_references(data: dict, notes: list[str]) -> list[ReferenceLoss]:
    """Of a "data" event's fields."""
    return _entries(data.get("references"), _reference, "event data: references", notes)


def read_mixture(data: dict, notes: list[str]) -> list[Stretch]:
    """Of a "data" event's fields, in order of tokens."""
    found = _entries(data.get("mixture"), _stretch, "event data: mixture", notes)
    return sorted((each for each in found if each.first_token < each.end_token), key=lambda each: each.first_token)


def as_number(value: object) -> float | None:
    """A finite number of JSON, or None for whatever else stands there."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if -1e300 < value < 1e300 else None


def _entries(listed: object, read: Callable, what: str, notes: list[str]) -> list:
    if listed is None:
        return []
    if not isinstance(listed, list):
        notes.append(f"{what} left out: must be a list")
        return []
    found = []
    for number, entry in enumerate(listed, 1):
        try:
            found.append(read(entry))
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # what another shape can cause
            notes.append(f"{what}: entry {number} left out ({type(error).__name__}: {error})")
    return found


def _entered(fields: dict) -> tuple[int, Session]:
    name, tokens = str(fields["session"]), (_whole(fields["first_token"]), _whole(fields["end_token"]))
    return _whole(fields["step"]), Session(name, *tokens)


def _before(old: Session, new: Session) -> bool:
    """Whether `old` stays beside `new`: a session that is entered again, or from a changed recipe, takes its place."""
    return old.name != new.name and old.first_token < new.first_token


def _reference(entry: dict) -> ReferenceLoss:
    return ReferenceLoss(str(entry["model"]), str(entry["set"]), _finite(entry["lm_loss"]))


def _stretch(entry: dict) -> Stretch:
    shares = {str(name): (_finite(start), _finite(end)) for name, (start, end) in entry["shares"].items()}
    return Stretch(str(entry["session"]), _whole(entry["first_token"]), _whole(entry["end_token"]), shares)


def _finite(value: object) -> float:
    number = as_number(value)
    if number is None:
        raise ValueError(f"{value!r:.50} is no finite number")
    return number


def _whole(value: object) -> int:
    number = _finite(value)
    if not number.is_integer():
        raise ValueError(f"{value!r:.50} is no whole number")
    return int(number)
