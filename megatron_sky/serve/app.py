"""The OpenAI API over one model: chat and text completions, models, health, and a page to try it."""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_sky.errors import SkyError
from megatron_sky.generation.engine import Request as Asked
from megatron_sky.generation.run import Opened
from megatron_sky.serve import answers
from megatron_sky.serve.bodies import ApiError, ChatBody, CompletionBody, told
from megatron_sky.serve.limits import Gate, Limits
from megatron_sky.serve.scheduler import Full, Job, Scheduler

PAGE = Path(__file__).parent / "page.html"
_PAGE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


@dataclass
class Service:
    """A loaded model that answers requests within limits."""

    opened: Opened
    scheduler: Scheduler
    limits: Limits
    started: int

    @property
    def name(self) -> str:
        return self.opened.checkpoint.name

    def chat_job(self, body: ChatBody) -> Job:
        """Raises ApiError for a conversation that the template refuses or the context does not hold."""
        try:
            ids = self.opened.encode_chat([message.plain() for message in body.messages])
            stop = (*body.stops, *self.opened.stop_of_turn)
        except SkyError as error:
            raise ApiError(400, str(error).partition("\n")[0], param="messages", code="invalid_messages") from error
        return self._job(body, ids, stop, (), "messages")

    def text_jobs(self, body: CompletionBody) -> list[Job]:
        """A job for each prompt. Raises ApiError."""
        given = body.prompt
        if isinstance(given, list) and isinstance(given[0], int):
            return [self._job(body, self._known(given), body.stops, given, "prompt")]
        texts: Sequence[Any] = [given] if isinstance(given, str) else given
        coder = self.opened.engine.coder
        try:
            encoded = [(coder.encode_prompt(text), coder.encode(text)) for text in texts]
        except SkyError as error:
            raise ApiError(400, str(error).partition("\n")[0], param="prompt", code="invalid_value") from error
        return [self._job(body, ids, body.stops, before, "prompt") for ids, before in encoded]

    def _known(self, ids: Sequence[Any]) -> Sequence[int]:
        size = self.opened.engine.coder.vocab_size
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise ApiError(400, f"the token id {wrong[0]} is none of 0 to {size - 1}", param="prompt")
        return ids

    def _job(self, body: Any, ids: Sequence[int], stop: tuple[str, ...], before: Sequence[int], param: str) -> Job:
        import asyncio

        context = self.opened.engine.context
        room = context - len(ids)
        if room < 1 or (body.limit or 1) > room:
            asked = f" and {body.limit:,} for the answer" if body.limit else ""
            message = f"the context is {context:,} tokens; {len(ids):,} are in the {param}{asked}"
            raise ApiError(400, message, param=param, code="context_length_exceeded")
        most = self.limits.max_new_tokens
        if (body.limit or 1) > most:
            raise ApiError(400, f"this server gives at most {most:,} tokens", param="max_tokens", code="invalid_value")
        limit = min(body.limit or most, room)
        return Job(
            Asked(ids, limit, before=before, stop=stop),
            body.sampling(limit, secrets.randbits(31)),
            is_alone=body.seed is not None,
            deadline=time.monotonic() + self.limits.timeout,
            loop=asyncio.get_running_loop(),
        )


def build_app(service: Service) -> Any:
    """The ASGI app. Raises MissingDependency.

    Longer than 60 lines: a list of routes.
    """
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.exceptions import HTTPException

    app = FastAPI(title="megatron-sky serve", docs_url=None, redoc_url=None)
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"description": words}
        for status, words in {
            400: "a field is wrong",
            401: "the API key is missing or wrong",
            403: "the host is not this machine",
            408: "the body came too slowly",
            413: "the body is too large",
            415: "the body is no JSON",
            429: "too many requests at once",
            500: "the answer failed",
            503: "no longer generating",
            504: "the answer took too long",
        }.items()
    }

    def failed(error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, error.status, headers={"Retry-After": "1"} if error.status == 429 else None)

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> JSONResponse:
        return failed(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return failed(told(error.errors()))

    @app.exception_handler(HTTPException)
    async def no_such(request: Request, error: HTTPException) -> JSONResponse:
        refusal = ApiError(error.status_code, f"{request.method} {request.url.path[:80]}: {error.detail}")
        return JSONResponse(refusal.body, error.status_code, headers=error.headers)

    async def complete(request: Request, body: Any, jobs: list[Job], *, is_chat: bool):
        if not service.scheduler.is_alive:
            raise ApiError(503, "the server no longer generates", code="not_generating")
        try:
            service.scheduler.submit(jobs)
        except Full:
            raise ApiError(429, "too many requests at once; try again", code="too_many_requests") from None
        form = answers.form(secrets.token_hex(12), service.name, is_chat=is_chat)
        if body.stream:
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            events = answers.stream(jobs, service.scheduler, request.is_disconnected, form, with_usage=with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        try:
            whole = await answers.whole(jobs, service.scheduler, request.is_disconnected)
        except answers.Gone:
            return JSONResponse({}, 499)  # nobody reads it
        return JSONResponse(form.whole(whole, jobs))

    @app.post("/v1/chat/completions", responses=refusals)
    async def chat_completions(request: Request, body: ChatBody) -> Any:
        return await complete(request, body, [service.chat_job(body)], is_chat=True)

    @app.post("/v1/completions", responses=refusals)
    async def completions(request: Request, body: CompletionBody) -> Any:
        return await complete(request, body, service.text_jobs(body), is_chat=False)

    @app.get("/v1/models")
    async def models() -> dict:
        model = {"id": service.name, "object": "model", "created": service.started, "owned_by": "megatron-sky"}
        return {"object": "list", "data": [model]}

    @app.get("/health")
    async def health() -> Any:
        alive = service.scheduler.is_alive
        content = {"status": "ok" if alive else "not generating", **service.scheduler.load}
        return JSONResponse(content, 200 if alive else 503)

    @app.get("/", include_in_schema=False)
    async def page() -> Any:
        has_template = "true" if service.opened.template is not None else "false"
        text = PAGE.read_text(encoding="utf-8").replace("HAS_TEMPLATE", has_template)
        return HTMLResponse(text, headers={"Content-Security-Policy": _PAGE_POLICY})

    return Gate(app, service.limits)
