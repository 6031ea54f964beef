"""An answer in the OpenAI API's form, whole or as a stream of events."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from megatron_sky.generation.engine import CANCELLED, Answer
from megatron_sky.log import get_logger
from megatron_sky.serve.bodies import ApiError
from megatron_sky.serve.scheduler import Job, Scheduler

log = get_logger(__name__)

_SECONDS_BETWEEN_LOOKS = 1.0  # at whether the client is still there


class Gone(Exception):
    """The client has hung up."""


@dataclass(frozen=True)
class Form:
    """How one kind of completion is written. `id` and `created` are the answer's."""

    id: str
    model: str
    is_chat: bool
    created: int

    def whole(self, answers: Sequence[Answer], jobs: Sequence[Job]) -> dict:
        choices = [
            {
                "index": number,
                "finish_reason": answer.ended,
                "logprobs": None,
                **self._content(answer.text),
            }
            for number, answer in enumerate(answers)
        ]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return self._head(kind) | {"choices": choices, "usage": usage(answers, jobs)}

    def _content(self, text: str) -> dict:
        return {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}

    def piece(self, number: int, text: str | None, ended: str | None = None, *, is_first: bool = False) -> dict:
        """A part of answer `number`: its text, or its end."""
        choice: dict = {"index": number, "finish_reason": ended, "logprobs": None}
        if self.is_chat:
            delta = ({"role": "assistant", "content": ""} if is_first else {}) | ({"content": text} if text else {})
            choice["delta"] = delta
        else:
            choice["text"] = text or ""
        return self._head("chat.completion.chunk" if self.is_chat else "text_completion") | {"choices": [choice]}

    def counts(self, answers: Sequence[Answer], jobs: Sequence[Job]) -> dict:
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return self._head(kind) | {"choices": [], "usage": usage(answers, jobs)}

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def form(identity: str, model: str, *, is_chat: bool) -> Form:
    return Form(("chatcmpl-" if is_chat else "cmpl-") + identity, model, is_chat, int(time.time()))


def usage(answers: Sequence[Answer], jobs: Sequence[Job]) -> dict[str, int]:
    prompt, new = sum(len(job.request.prompt) for job in jobs), sum(answer.num_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


async def whole(jobs: Sequence[Job], scheduler: Scheduler, has_gone: Callable[[], Awaitable[bool]]) -> list[Answer]:
    """The answers of all jobs. Raises Gone where the client hangs up, and ApiError; then their places are free."""
    try:
        answers = []
        for job in jobs:
            while not isinstance(event := await _next_event(job, has_gone), Answer):
                pass
            answers.append(event)
        return answers
    finally:
        scheduler.cancel(list(jobs))


async def stream(
    jobs: Sequence[Job],
    scheduler: Scheduler,
    has_gone: Callable[[], Awaitable[bool]],
    form: Form,
    *,
    with_usage: bool,
) -> AsyncIterator[str]:
    """Server-sent events: pieces of one answer after the other, `[DONE]` at the end. What fails is an event too."""
    answers = []
    try:
        for number, job in enumerate(jobs):
            if form.is_chat:
                yield _event(form.piece(number, None, is_first=True))
            while not isinstance(event := await _next_event(job, has_gone), Answer):
                yield _event(form.piece(number, event))
            answers.append(event)
            yield _event(form.piece(number, None, event.ended))
        if with_usage:
            yield _event(form.counts(answers, jobs))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.body)
    except Gone:
        log.debug("a client has hung up")
    finally:
        scheduler.cancel(list(jobs))


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _next_event(job: Job, has_gone: Callable[[], Awaitable[bool]]) -> str | Answer:
    """The next text, or the whole answer. Raises Gone, and ApiError where it failed or is late."""
    while True:
        try:
            event = await asyncio.wait_for(job.events.get(), _SECONDS_BETWEEN_LOOKS)
        except TimeoutError:
            if await has_gone():
                raise Gone from None
            if not job.is_late:
                continue
            raise _late() from None
        if isinstance(event, Exception):
            raise ApiError(500, "the answer failed; the server's log says why", code="generation_failed") from event
        if isinstance(event, Answer) and event.ended == CANCELLED:
            raise _late()
        return event


def _late() -> ApiError:
    return ApiError(504, "the answer was not whole in time", code="timeout")
