"""What happens to every request: it gets an id, its response gets safe headers, and it is logged and counted."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any, Final

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gems.serve.http_errors import add_safe_headers, error_response
from gems.serve.keys import ANYBODY, Client
from gems.serve.metrics import Metrics

__all__ = ["CLIENT", "RequestMiddleware"]

LOG: Final = structlog.get_logger("gems.serve.http")

CLIENT: Final[ContextVar[Client]] = ContextVar("gems_client", default=ANYBODY)
"""The sender of the request that is being answered."""

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")


class RequestMiddleware:
    """The outermost middleware. It answers HEAD wherever there is GET, and turns what nobody caught into a response.

    Args:
        app: The application.
        metrics: The metrics that count requests.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client_id = Headers(scope=scope).get("x-request-id", "")
        request_id = client_id if _REQUEST_ID.fullmatch(client_id) else uuid.uuid4().hex
        started, response = time.perf_counter(), _Response(send, request_id, head_only=scope["method"] == "HEAD")
        # The application sees GET. A copy: the server reads the method from its own scope.
        inner = {**scope, "method": "GET"} if response.head_only else scope
        CLIENT.set(ANYBODY)  # a request that was sent ahead begins in the context of the one before it
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(inner, response.receiver(receive), response.send)
            except Exception as error:
                await self._answer_fault(error, inner, receive, response)
            finally:
                self._log(scope["method"], inner, response.status, time.perf_counter() - started)

    async def _answer_fault(self, error: Exception, scope: Scope, receive: Receive, response: _Response) -> None:
        """Answer what no handler has answered: an error in the midst of a stream, or a fault of ours."""
        # Where a response has begun, Starlette raises an error of its own because of the one that it would handle.
        if expected := _http_errors_in(error.__cause__ or error):
            LOG.info("stream_ended", error="; ".join(str(each.detail) for each in expected))
            await response.end()
        else:
            LOG.exception("internal_error")
        if not response.started:
            answer = error_response(500, f"internal error ({type(error).__name__})", code="internal_error")
            await answer(scope, receive, response.send)

    def _log(self, method: str, scope: MutableMapping[str, Any], status: int, seconds: float) -> None:
        path = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.count_request(method, path, status, seconds)
        LOG.info(
            "request", method=method, path=path, status=status, ms=round(1000 * seconds, 1), user=CLIENT.get().name
        )


class _Response:
    """The response on its way out. One to HEAD ends after its headers, and its stream, if it is one, with it."""

    def __init__(self, send: Send, request_id: str, *, head_only: bool) -> None:
        self._send, self._request_id, self.head_only = send, request_id, head_only
        self.status, self.started = 500, False

    def receiver(self, receive: Receive) -> Receive:
        """What the application receives."""

        async def receive_until_answered() -> Message:
            return {"type": "http.disconnect"} if self.head_only and self.started else await receive()

        return receive_until_answered

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        if message["type"] == "http.response.start":
            self.status, self.started = message["status"], True
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self._request_id
            add_safe_headers(headers)
            await self._send(message)
            if self.head_only:
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        elif not self.head_only:
            await self._send(message)

    async def end(self) -> None:
        """End a stream that has begun."""
        if self.started:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _http_errors_in(error: BaseException) -> list[HTTPException]:
    """The errors, if all of them are such that a client can cause; else none."""
    if isinstance(error, BaseExceptionGroup):
        parts = [_http_errors_in(part) for part in error.exceptions]
        return [each for part in parts for each in part] if all(parts) else []
    return [error] if isinstance(error, HTTPException) else []
