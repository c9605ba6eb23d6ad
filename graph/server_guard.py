"""Guards a LangGraph server: it answers to its own names, to pages of allowed origins, and to requests without secrets.

Clients use the paths that runs need. The others are the operator's: one of them deploys this folder with the operator's
key, one deletes all threads, others profile the process or tell of it. Most are open whatever login the operator adds.

A development server has no key. Without these checks, each page that is open in the operator's browser could use it:
by CORS, by plain form requests that need no CORS, or under the page's own host name (DNS rebinding).
"""

from __future__ import annotations

import json
import os
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gems.errors import InputError
from gems.graph.client_rules import TRUST, ClientRules
from gems.json_text import parse_json
from gems.secrets import one_line

__all__ = ["HOSTS", "ServerGuard"]

HOSTS: Final = "GEMS_HOSTS"
"""The environment variable that lists, with commas, the host names that the server answers to besides localhost."""

_LOCAL_HOSTS: Final = ("localhost", "127.0.0.1", "::1")
_SAFE_METHODS: Final = ("GET", "HEAD", "OPTIONS")
_IN_PROCESS: Final = "/noauth"
"""The root path of requests that the server sends to itself. No request from outside has one."""
_PATHS: Final = (
    *("", "info", "ok", "docs", "openapi.json"),  # "" is the health check of load balancers
    *("assistants", "threads", "runs", "store"),
    *("mcp", "a2a", ".well-known", "artifacts"),
)
"""The first parts of the paths that clients use. What a later version of the server adds is the operator's."""
_TRACING: Final = (b"baggage", b"langsmith-trace")
"""Headers whose content the server puts into a run's config and stores, whatever langgraph.json says."""


class _RefusedError(Exception):
    """A request is refused.

    Attributes:
        status: The HTTP status.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ServerGuard:
    """The middleware.

    Args:
        app: The application.
        rules: What clients may set.
    """

    def __init__(self, app: ASGIApp, rules: ClientRules) -> None:
        self._app, self._rules = app, rules
        # The origins of ``http.cors`` in langgraph.json, which the server passes on in this variable.
        cors = json.loads(os.environ.get("LANGGRAPH_HTTP") or "{}").get("cors") or {}
        self._origins = CORSMiddleware(
            app, allow_origins=cors.get("allow_origins", ()), allow_origin_regex=cors.get("allow_origin_regex")
        )
        self._hosts = [*_LOCAL_HOSTS, *filter(None, (h.strip().lower() for h in os.environ.get(HOSTS, "").split(",")))]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with one line."""
        if scope["type"] not in ("http", "websocket") or _is_in_process(scope):
            await self._app(scope, receive, send)
            return
        try:
            self._check_sender(scope)
            self._check_path(scope)
            checked = (
                self._messages(receive, send) if scope["type"] == "websocket" else await self._body(scope, receive)
            )
        except _RefusedError as error:
            await _refuse(error, scope, receive, send)
        else:
            headers = [header for header in scope["headers"] if header[0] not in _TRACING]
            await self._app({**scope, "headers": headers}, checked, send)

    def _check_sender(self, scope: Scope) -> None:
        """Check the host that a request names, and the page that sends it."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if scope["path"] != "/ok" and not self._answers_to(host):  # a health check names an address
            raise _RefusedError(403, f"this server does not answer to the host {host!r}; list it in {HOSTS}")
        origin = headers.get("origin")
        if origin is None:
            is_unsafe = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
            is_foreign = is_unsafe and headers.get("sec-fetch-site") in ("cross-site", "same-site")
        else:
            is_foreign = not self._origins.is_allowed_origin(origin) and urlsplit(origin).netloc != host
        if is_foreign:
            raise _RefusedError(
                403, f"pages of {origin or 'other sites'} may not use this server; see http.cors in langgraph.json"
            )

    def _check_path(self, scope: Scope) -> None:
        """Check that a client may use the path."""
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if not self._rules.trusts_clients and path.lstrip("/").partition("/")[0] not in _PATHS:
            raise _RefusedError(
                403, f"only the operator of this server uses {one_line(path, 60)}; {TRUST}=1 lets all clients use it"
            )

    def _answers_to(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        return any(
            allowed in ("*", name) or (allowed.startswith("*.") and name.endswith(allowed[1:]))
            for allowed in self._hosts
        )

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """Check a request's body; the result gives it once more."""
        if scope["method"] in _SAFE_METHODS:
            return receive
        body = await Request(scope, receive).body()
        self._check(body)
        is_read = False

        async def receive_again() -> Message:
            nonlocal is_read
            if is_read:  # afterwards, whether the client is still there
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        return receive_again

    def _messages(self, receive: Receive, send: Send) -> Receive:
        """Receives the messages of a socket, and closes it at one that is refused."""

        async def receive_checked() -> Message:
            message = await receive()
            if message["type"] != "websocket.receive":
                return message
            try:
                self._check(message.get("text") or message.get("bytes") or b"")
            except _RefusedError as error:
                await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
                return {"type": "websocket.disconnect", "code": 1008}
            return message

        return receive_checked

    def _check(self, body: str | bytes) -> None:
        try:
            content: Any = parse_json(body or b"null")
        except ValueError as error:  # not passed on: the server's own parser may read it otherwise
            raise _RefusedError(422, f"the request is no JSON that this server reads: {one_line(error)}") from None
        try:
            self._rules.check(content)
        except InputError as error:
            raise _RefusedError(422, str(error)) from None


def _is_in_process(scope: Scope) -> bool:
    root = str(scope.get("root_path", ""))
    return root == _IN_PROCESS or root.startswith(f"{_IN_PROCESS}/")


async def _refuse(error: _RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connection
        await send({"type": "websocket.close", "code": 1008, "reason": str(error)[:120]})
    else:
        await JSONResponse({"detail": str(error)}, error.status)(scope, receive, send)
