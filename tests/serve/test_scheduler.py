"""Which requests share a batch, and places that come free."""

import asyncio
import threading
import time

import pytest

pytest.importorskip("transformers")

from megatron_sky.generation.engine import CANCELLED, Answer, Request
from megatron_sky.generation.sampling import Sampling
from megatron_sky.serve.scheduler import Full, Job, Scheduler


class Waiting:
    """An engine that answers when it may, and notes its batches."""

    context = 100

    def __init__(self):
        self.may_go = threading.Event()
        self.batches: list[list[int]] = []

    def generate(self, requests, sampling):
        self.batches.append([request.prompt[0] for request in requests])
        self.may_go.wait(10)
        return [Answer("x", 1, CANCELLED if request.is_cancelled() else "stop") for request in requests]


@pytest.fixture
def engine():
    engine = Waiting()
    yield engine
    engine.may_go.set()


def job(name: int, loop, sampling: Sampling | None = None, *, is_alone: bool = False) -> Job:
    how = sampling or Sampling(5)
    return Job(Request([name], 5), how, is_alone, time.monotonic() + 60, loop)


def until(holds) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("not in time")


def test_those_that_are_asked_alike_share_a_batch(engine):
    async def run() -> None:
        loop = asyncio.get_running_loop()
        scheduler = Scheduler(engine, batch_size=3, most=20)
        scheduler.submit([job(0, loop)])
        until(lambda: engine.batches)
        hot = Sampling(7, 0.9)
        others = [job(1, loop), job(2, loop, hot), job(3, loop, is_alone=True), job(4, loop, Sampling(9, stop=("a",)))]
        others += [job(5, loop, hot), job(6, loop), job(7, loop)]
        scheduler.submit(others)
        engine.may_go.set()
        for one in others:
            assert isinstance(await asyncio.wait_for(one.events.get(), 20), Answer)
        assert sorted(map(sorted, engine.batches)) == [[0], [1, 4, 6], [2, 5], [3], [7]]
        scheduler.close()
        assert not scheduler.is_alive

    asyncio.run(run())


def test_places_are_counted_and_come_free(engine):
    async def run() -> None:
        loop = asyncio.get_running_loop()
        scheduler = Scheduler(engine, batch_size=1, most=2)
        running, waiting = job(0, loop), job(1, loop)
        scheduler.submit([running])
        until(lambda: engine.batches)
        scheduler.submit([waiting])
        assert scheduler.load == {"waiting": 1, "running": 1}
        with pytest.raises(Full):
            scheduler.submit([job(2, loop)])
        scheduler.cancel([waiting])
        assert scheduler.load == {"waiting": 0, "running": 1}
        scheduler.cancel([running])
        engine.may_go.set()
        assert (await asyncio.wait_for(running.events.get(), 20)).ended == CANCELLED
        until(lambda: scheduler.load["running"] == 0)
        scheduler.close()

    asyncio.run(run())
