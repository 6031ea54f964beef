"""A server over a small model with random weights, in a thread of this process, for a whole file of tests."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

KEY = "a key of the tests"


@dataclass
class Running:
    port: int
    scheduler: object
    asked: list[str]
    """The query of each request that has one."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def settled(self) -> bool:
        """Whether every place is free again, soon."""
        for _ in range(600):
            if self.scheduler.load == {"waiting": 0, "running": 0}:
                return True
            time.sleep(0.05)
        return False


@contextlib.contextmanager
def served(**limits) -> Iterator[Running]:
    import uvicorn

    from megatron_sky.generation.run import Opened
    from megatron_sky.serve.app import Service, build_app
    from megatron_sky.serve.limits import Limits
    from megatron_sky.serve.scheduler import Scheduler
    from megatron_sky.tokenizer.chat_template import ChatTemplate
    from tests.generation.models import engine

    text = "{% for m in messages %}{{ m.role[0] }}{{ m.content }};{% endfor %}"
    small = engine(context=64)
    opened = Opened(SimpleNamespace(path="folder", name="small"), small, ChatTemplate("short", text))
    kept = Limits(**limits)
    scheduler = Scheduler(small, batch_size=kept.batch_size, most=kept.max_requests)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = build_app(Service(opened, scheduler, kept, 0))
        asked: list[str] = []

        async def noting(scope, receive, send):
            if scope.get("query_string"):
                asked.append(unquote(scope["query_string"].decode()))
            await app(scope, receive, send)

        server = uvicorn.Server(uvicorn.Config(noting, log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=lambda: server.run(sockets=[listener]), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        try:
            yield Running(listener.getsockname()[1], scheduler, asked)
        finally:
            server.should_exit = True
            thread.join(20)
            scheduler.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with served(api_key=KEY, max_new_tokens=40, max_body=20_000, body_timeout=300) as running:
        yield running
