"""Answers many requests with one model: those that wait together and are asked alike are a batch.

One thread generates. A job's text comes in pieces, over `events`, to the event loop that asked; a job that is cancelled
or late ends with the next token, and its place is free again. When a batch has begun nobody joins it.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from megatron_sky.generation.engine import Answer, Engine, Request, plan_batches
from megatron_sky.generation.sampling import Sampling
from megatron_sky.log import get_logger

log = get_logger(__name__)


class Full(Exception):
    """So many requests are being answered and waiting that no more are taken."""


@dataclass(eq=False)
class Job:
    """A request on its way. `events` gets texts, and at last an Answer or the Exception that ended it."""

    request: Request
    sampling: Sampling
    is_alone: bool
    """Whether it must not share a batch: what is drawn by its seed would depend on the others."""
    deadline: float
    loop: asyncio.AbstractEventLoop
    events: "asyncio.Queue[str | Answer | Exception]" = field(default_factory=asyncio.Queue)
    is_cancelled: bool = False

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def tell(self, event: "str | Answer | Exception") -> None:
        """Called by the thread that generates."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)

    @property
    def kind(self) -> Sampling:
        """Equal for jobs that may share a batch: limits and ends are each row's own."""
        return replace(self.sampling, max_new_tokens=1, stop=())


class Scheduler:
    """A thread that answers jobs. `batch_size`: rows of a batch; `most`: jobs at once, those that wait included."""

    def __init__(self, engine: Engine, *, batch_size: int, most: int):
        self.engine, self._batch_size, self._most = engine, batch_size, most
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="generation", daemon=True)
        self._thread.start()

    @property
    def load(self) -> dict[str, int]:
        """How many jobs wait and run."""
        with self._changed:
            return {"waiting": len(self._waiting), "running": len(self._running)}

    def submit(self, jobs: list[Job]) -> None:
        """Takes all of the jobs, or raises Full."""
        with self._changed:
            if len(self._waiting) + len(self._running) + len(jobs) > self._most:
                raise Full
            self._waiting += jobs
            self._changed.notify()

    def cancel(self, jobs: list[Job]) -> None:
        """Frees the places of jobs that nobody waits for any more; those that run end with the next token."""
        with self._changed:
            for job in jobs:
                job.is_cancelled = True
            self._waiting = [job for job in self._waiting if not job.is_cancelled]

    def close(self, seconds: float = 10) -> None:
        """Ends the thread, and every job with it."""
        with self._changed:
            self._is_closed = True
            for job in (*self._waiting, *self._running):
                job.is_cancelled = True
            self._changed.notify()
        self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._answer(batch)
            with self._changed:
                self._running = []

    def _next_batch(self) -> list[Job] | None:
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            first = self._waiting[0]
            alike = [job for job in self._waiting if job is first or self._may_join(job, first)]
            planned = plan_batches(
                [job.request for job in alike], context=self.engine.context, batch_size=self._batch_size
            )
            numbers = next(batch for batch in planned if 0 in batch)
            self._running = [alike[number] for number in numbers]
            chosen = set(map(id, self._running))
            self._waiting = [job for job in self._waiting if id(job) not in chosen]
            return self._running

    def _may_join(self, job: Job, first: Job) -> bool:
        return not job.is_alone and not first.is_alone and job.kind == first.kind

    def _answer(self, batch: list[Job]) -> None:
        wanted = [job for job in batch if not job.is_cancelled]
        rows = [replace(job.request, on_text=job.tell, is_cancelled=_asker(job)) for job in wanted]
        if not wanted:
            return
        try:
            answers = self.engine.generate(rows, wanted[0].sampling)
        except Exception as error:
            log.exception("a batch of %d requests failed", len(wanted))
            for job in wanted:
                job.tell(error)
            return
        for job, answer in zip(wanted, answers, strict=True):
            job.tell(answer)


def _asker(job: Job) -> Callable[[], bool]:
    return lambda: job.is_cancelled or job.is_late
