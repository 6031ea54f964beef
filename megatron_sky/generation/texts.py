"""New tokens as text, piece by piece: nothing is shown that a later token could change."""

from collections.abc import Callable, Sequence

BROKEN = "\ufffd"  # what bytes decode to that are no whole character
_MOST_PENDING = 4  # tokens of one byte each that a character may have


class TextStream:
    """The text that tokens add behind `before`, up to the first of the texts `stop`.

    Attributes:
        text: what `push` and `finish` have returned so far.
        stopped: whether a text of `stop` came.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = (), stop: Sequence[str] = ()):
        self._decode, self._stop = decode, stop
        self._ids = list(before[-8:])  # enough for what a tokenizer does at a text's beginning
        self._shown, self._decoded = 0, len(self._ids)
        self._held = ""
        self.text, self.stopped = "", False

    def push(self, token: int) -> str:
        """The text that is certain with this token."""
        self._ids.append(token)
        new = self._new_text()
        if not new or (new.endswith(BROKEN) and len(self._ids) - self._decoded < _MOST_PENDING):
            return ""
        self._shown, self._decoded = self._decoded, len(self._ids)
        return self._released(new)

    def finish(self) -> str:
        """The rest, when no more tokens come."""
        if self.stopped:
            return ""
        rest = self._released(self._new_text())
        self._shown = self._decoded = len(self._ids)
        if not self.stopped:
            self.text += self._held
            rest, self._held = rest + self._held, ""
        return rest

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._shown : self._decoded])
        return self._decode(self._ids[self._shown :])[len(before) :]

    def _released(self, new: str) -> str:
        self._held += new
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            released, self._held, self.stopped = self._held[: min(places)], "", True
        else:
            cut = len(self._held) - _longest_beginning(self._held, self._stop)
            released, self._held = self._held[:cut], self._held[cut:]
        self.text += released
        return released


def _longest_beginning(text: str, stops: Sequence[str]) -> int:
    """How many characters at the text's end may be the beginning of a text of `stops`."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    lengths = range(min(longest, len(text)), 0, -1)
    return next((length for length in lengths if any(stop.startswith(text[-length:]) for stop in stops)), 0)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """(the text up to the first of `stops`, whether there was one)."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
