"""A rank that hangs is named and the job ended, so that the launcher can start it again.

A thread of each rank watches how long the rank's present action takes. When one takes longer than the limit, every
rank's thread finds so at about the same time (they wait for each other). Each posts where its rank is to the job's
store, reads the others' places, prints its own Python stacks, and ends the process. The rank that did the least since
the start is the one the others wait for; one whose thread does not answer either is stopped as a whole.

A native thread (faulthandler's) stands behind it, for a rank that hangs in C code and holds Python's lock.
"""

import faulthandler
import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from megatron_sky.errors import RunError
from megatron_sky.files import not_a_link

ANSWER_SECONDS = 5.0
LAST_RESORT_SECONDS = 8.0


def _open(path: Path) -> TextIO:
    """The file of stacks, which faulthandler holds for the process's life. Raises RunError."""
    try:
        return open(path, "a", encoding="utf-8", opener=not_a_link)
    except OSError as error:
        fix = "remove it, or choose another train.run_dir"
        raise RunError(f"{path}: can't be opened for writing: {error.strerror}\n  fix: {fix}") from None


class Watchdog:
    """`beat("forward", 17)` tells what this rank does now and how much it has done. A context manager."""

    def __init__(
        self, *, rank: int, world_size: int, store, timeout_seconds: float, stacks: Path, end: Callable[[str], None]
    ):
        self._rank, self._world_size, self._store = rank, world_size, store
        self._timeout = timeout_seconds
        self._stacks = _open(stacks)
        self._end = end
        self._now = ("start", 0, time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self.beat("start")
        self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._stop.set()
        faulthandler.cancel_dump_traceback_later()
        self._thread.join()
        self._stacks.close()

    def beat(self, action: str) -> None:
        """This rank begins `action`: the clock starts anew. About a microsecond."""
        self._now = (action, self._now[1] + 1, time.monotonic())

    def _watch(self) -> None:
        pause = min(1.0, self._timeout / 10)
        last_armed = -1
        while not self._stop.wait(pause):
            action, done, since = self._now
            if done != last_armed:
                last_armed = done
                left = since + self._timeout - time.monotonic()
                faulthandler.dump_traceback_later(max(left, 0) + LAST_RESORT_SECONDS, exit=True, file=self._stacks)
            if time.monotonic() - since > self._timeout:
                self._report(action, done, time.monotonic() - since)
                return

    def _report(self, action: str, done: int, seconds: float) -> None:
        self._store.set(f"hang/{self._rank}", json.dumps([action, done]))
        time.sleep(ANSWER_SECONDS)
        message = hang_message(self._places(), self._world_size, seconds)
        for stream in (self._stacks, sys.stderr):
            print(f"rank {self._rank}: {message}; its Python stacks:", file=stream, flush=True)
            faulthandler.dump_traceback(file=stream, all_threads=True)
            stream.flush()
        self._end(message)

    def _places(self) -> dict[int, tuple[str, int]]:
        """Where each rank that answered is."""
        places = {}
        for rank in range(self._world_size):
            if self._store.check([f"hang/{rank}"]):
                action, done = json.loads(self._store.get(f"hang/{rank}"))
                places[rank] = (action, done)
        return places


def hang_message(places: dict[int, tuple[str, int]], world_size: int, seconds: float) -> str:
    """Who is behind: the ranks that did not answer, else those that have done the least."""
    silent = sorted(set(range(world_size)) - places.keys())
    if silent:
        who = f"rank {', '.join(map(str, silent))} does not answer"
    else:
        least = min(done for _, done in places.values())
        behind = [(rank, action) for rank, (action, done) in sorted(places.items()) if done == least]
        who = ", ".join(f"rank {rank} fell behind in {action!r}" for rank, action in behind[:4])
        if len(behind) == world_size:
            who = f"no rank is behind the others (all in {behind[0][1]!r})"
    return f"nothing moved for {seconds:.0f} s (resilience.step_timeout_seconds): {who}"
