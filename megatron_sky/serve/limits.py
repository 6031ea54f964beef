"""What stands before every request: its size, its time, its key, and where it comes from. Plain ASGI."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from megatron_sky.log import get_logger
from megatron_sky.serve.bodies import ApiError

log = get_logger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

OPEN_PATHS = ("/", "/health")
"""Answered without a key: the page asks its user for it."""
_NO_BODY = (*OPEN_PATHS, "/v1/models", "/openapi.json")  # where POST is the wrong method, whatever it brings
_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True)
class Limits:
    """Attributes:
    max_new_tokens: of an answer, at most.
    max_body: bytes of a request.
    max_requests: answered and waiting at once; for more the answer is 429.
    batch_size: answered side by side in one batch.
    timeout: seconds until an answer must be whole.
    body_timeout: seconds within which a request's body must have come.
    api_key: what `Authorization: Bearer` must hold; None: nothing.
    loopback_only: only requests to this machine's own names are answered: a page in a browser may not reach the server
        under a name of its own.
    """

    max_new_tokens: int = 4096
    max_body: int = 4 << 20
    max_requests: int = 256
    batch_size: int = 16
    timeout: float = 600
    body_timeout: float = 30
    api_key: str | None = None
    loopback_only: bool = True


class Gate:
    """An ASGI app that hands on what keeps to the limits, with its body read, and answers the rest itself."""

    def __init__(self, app: Callable, limits: Limits):
        self._app, self._limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            self._check(scope, headers)
            body = await self._read(headers, receive)
        except ApiError as error:
            from fastapi.responses import JSONResponse

            extra = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
            closing = {"Connection": "close"} if error.status in (408, 413) else {}
            await JSONResponse(error.body, error.status, headers=extra | closing)(scope, receive, send)
            return
        if body is None:
            return
        from starlette.requests import ClientDisconnect

        try:
            await self._app(scope, _replay(body, receive), send)
        except ClientDisconnect:
            log.debug("a client has hung up")

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if self._limits.loopback_only:
            host = headers.get(b"host", b"").decode("latin-1")
            name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
            if name.lower() not in _LOOPBACK:
                raise ApiError(403, f"the host {name[:60]!r} is not this machine", code="host_not_allowed")
        is_json = headers.get(b"content-type", b"").startswith(b"application/json")
        if scope["method"] == "POST" and scope["path"] not in _NO_BODY and not is_json:
            raise ApiError(415, "Content-Type must be application/json", code="unsupported_media_type")
        key = self._limits.api_key
        if key is not None and scope["path"] not in OPEN_PATHS:
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + key.encode()):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """The body; None where the client has gone before it was whole."""
        most = self._limits.max_body
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise ApiError(413, f"the body has more than {most:,} bytes", code="body_too_large")
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise ApiError(413, f"the body has more than {most:,} bytes", code="body_too_large")
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            seconds = self._limits.body_timeout
            raise ApiError(408, f"the body did not come within {seconds:g} s", code="body_timeout") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body at once, then what the client does next."""
    is_given = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
