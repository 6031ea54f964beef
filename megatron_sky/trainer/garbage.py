"""Python's garbage collector on a timetable: pauses that fall on all ranks in the same step cost one pause."""

import gc


class GarbageCollection:
    """While open, and where `interval` is given, garbage is collected every `interval` steps and never between."""

    def __init__(self, interval: int | None):
        self._interval = interval

    def __enter__(self) -> "GarbageCollection":
        if self._interval is not None:
            gc.disable()
            gc.collect()
        return self

    def __exit__(self, *exc_info) -> None:
        if self._interval is not None:
            gc.enable()

    def maybe_collect(self, step: int) -> None:
        if self._interval is not None and step % self._interval == 0:
            gc.collect()
