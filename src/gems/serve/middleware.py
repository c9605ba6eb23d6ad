"""What happens to every request: it gets an id, its key and length are checked, and it is logged and counted."""

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

__all__ = ["CLIENT", "RequestMiddleware"]

LOG: Final = structlog.get_logger("gems.serve.http")

CLIENT: Final[ContextVar[Client]] = ContextVar("gems_client", default=ANYBODY)
"""The sender of the request that is being answered."""

_NO_KEY_NEEDED: Final = re.compile(
    r"/|/page\.(js|css)|/favicon\.svg|/healthz|/readyz|/openapi\.json|/(artifacts|reports)/.*"
)
"""Paths without a key: the page, which holds no data, and signed addresses."""
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_LOCAL_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})


class _TooLargeError(BaseException):
    """The body is too long. Not an ``Exception``: FastAPI would take it for a body that cannot be read."""


class RequestMiddleware:
    """The middleware.

    Args:
        app: The application.
        keys: The API keys; None lets everyone in.
        metrics: The metrics that count requests.
        max_body: Maximum size of a request's body, in bytes.
        local_only: Answer only requests that address this machine by one of its local names. Without keys, a page of
            another site could otherwise make a browser send requests in that site's name (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, *, keys: Keys | None, metrics: Metrics, max_body: int, local_only: bool) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._max_body, self._local_only = max_body, local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        started, status, client = time.perf_counter(), 500, None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                refusal, client = self._check(scope["path"], headers)
                if refusal is None:
                    CLIENT.set(client)
                    await self._call_limited(scope, receive, send_with_id)
                else:
                    await refusal(scope, receive, send_with_id)
            finally:
                self._log(scope, status, time.perf_counter() - started, client)

    def _check(self, path: str, headers: Headers) -> tuple[Response | None, Client]:
        """The response that refuses the request, or None; and who sent it."""
        if self._local_only and headers.get("host", "").rsplit(":", 1)[0].lower() not in _LOCAL_HOSTS:
            return error_response(
                403, "this service answers only to localhost; give --keys to open it to others"
            ), ANYBODY
        if int(headers.get("content-length", "0") or 0) > self._max_body:
            return self._too_large(), ANYBODY
        if self._keys is None:
            return None, ANYBODY
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        client = self._keys.client(key) if key else None
        if client is None and not _NO_KEY_NEEDED.fullmatch(path):
            refusal = error_response(401, "give your API key as 'Authorization: Bearer KEY'", code="invalid_api_key")
            refusal.headers["www-authenticate"] = "Bearer"
            return refusal, ANYBODY
        return None, client or ANYBODY

    def _too_large(self) -> Response:
        return error_response(413, f"a request may have {self._max_body:,} bytes", code="request_too_large")

    async def _call_limited(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application, and count the body's bytes: the content-length header may be missing or wrong."""
        length, response_started = 0, False

        async def receive_counted() -> Message:
            nonlocal length
            message = await receive()
            length += len(message.get("body", b""))
            if length > self._max_body:
                raise _TooLargeError
            return message

        async def send_watched(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            await self._app(scope, receive_counted, send_watched)
        except _TooLargeError:
            if not response_started:
                await self._too_large()(scope, receive, send)

    def _log(self, scope: MutableMapping[str, Any], status: int, seconds: float, client: Client | None) -> None:
        path = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.count_request(scope["method"], path, status, seconds)
        LOG.info(
            "request",
            method=scope["method"],
            path=path,
            status=status,
            ms=round(1000 * seconds, 1),
            user=client.name if client else None,
        )
