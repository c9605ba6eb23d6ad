"""What every request passes: a request id, whose key it is, how long it may be; and what is written down of it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gems.serve.http_errors import error_response
from gems.serve.keys import ANYBODY, Client, Keys
from gems.serve.metrics import Metrics

__all__ = ["CLIENT", "Gate"]

LOG: Final = structlog.get_logger("gems.serve.http")

CLIENT: Final[ContextVar[Client]] = ContextVar("gems_client", default=ANYBODY)
"""Who sent the request that is being answered."""

_OPEN: Final = re.compile(r"/|/page\.(js|css)|/favicon\.svg|/healthz|/readyz|/openapi\.json|/(artifacts|reports)/.*")
"""What needs no key: the page, which holds nothing, and addresses that are signed."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class _TooLargeError(BaseException):
    """The body is longer than it may be. Not an ``Exception``: FastAPI would take it for a body that cannot be read."""


class Gate:
    """The middleware.

    Args:
        app: What comes behind.
        keys: Who may ask; None lets everybody in.
        metrics: Where requests are counted.
        max_body: Bytes.
        local_only: Answer only requests that were made to this machine by name: without keys, a page of somebody else's
            could otherwise have a browser ask us in its own name (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, keys: Keys | None, metrics: Metrics, max_body: int, local_only: bool) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._max_body, self._local_only = max_body, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        started, status, client = time.perf_counter(), 500, None

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                refusal, client = self._refusal(scope["path"], headers)
                if refusal is None:
                    CLIENT.set(client)
                    await self._limited(scope, receive, answer)
                else:
                    await refusal(scope, receive, answer)
            finally:
                self._note(scope, status, time.perf_counter() - started, client)

    def _refusal(self, path: str, headers: Headers) -> tuple[Response | None, Client]:
        if self._local_only and headers.get("host", "").rsplit(":", 1)[0].lower() not in _LOCAL:
            return error_response(403, "this service answers to localhost only; give keys to open it up"), ANYBODY
        if int(headers.get("content-length", "0") or 0) > self._max_body:
            return self._too_large(), ANYBODY
        if self._keys is None:
            return None, ANYBODY
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        client = self._keys.client(key) if key else None
        if client is None and not _OPEN.fullmatch(path):
            refusal = error_response(401, "give your API key as 'Authorization: Bearer KEY'", code="invalid_api_key")
            refusal.headers["www-authenticate"] = "Bearer"
            return refusal, ANYBODY
        return None, client or ANYBODY

    def _too_large(self) -> Response:
        return error_response(413, f"a request may have {self._max_body:,} bytes", code="request_too_large")

    async def _limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Also where the length was not told, or not truly."""
        length, begun = 0, False

        async def counted() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > self._max_body:
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except _TooLargeError:
            if not begun:
                await self._too_large()(scope, receive, send)

    def _note(self, scope: MutableMapping[str, Any], status: int, seconds: float, client: Client | None) -> None:
        path = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.answered(scope["method"], path, status, seconds)
        LOG.info(
            "request",
            method=scope["method"],
            path=path,
            status=status,
            ms=round(1000 * seconds, 1),
            user=client.name if client else None,
        )
