"""Decides which requests reach the application: by host, size, key, site and form."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gems.serve.http_errors import error_response
from gems.serve.json_bodies import clean_json
from gems.serve.keys import ANYBODY, Client, Keys
from gems.serve.middleware import CLIENT
from gems.serve.settings import is_loopback

__all__ = ["GateMiddleware"]

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_NO_KEY_NEEDED: Final = re.compile(
    r"/|/page\.(js|css)|/favicon\.svg|/healthz|/readyz|/openapi\.json|/(artifacts|reports)/.*"
)
"""Paths without a key: the page, which holds no data, and signed addresses."""
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:\d{1,5})?", re.IGNORECASE)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_PORTS: Final = {"http": 80, "https": 443}
_JSON: Final = re.compile(r"application/([a-z0-9.+-]+\+)?json", re.IGNORECASE)


class GateMiddleware:
    """The gate.

    Args:
        app: The application.
        keys: The API keys; None lets everyone in.
        max_body: Maximum size of a request's body, in bytes.
        origins: Origins of other sites whose pages may send requests; "*" allows all.
        local_only: Answer only requests that address this machine by one of its local names. Without keys, a page of
            another site could otherwise make a browser send requests in that site's name (DNS rebinding).
    """

    def __init__(
        self, app: ASGIApp, *, keys: Keys | None, max_body: int, origins: Collection[str], local_only: bool
    ) -> None:
        self._app, self._keys, self._max_body = app, keys, max_body
        self._origins, self._local_only = frozenset(origins), local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refusal = self._check(scope, headers)
        if refusal is None and scope["method"] not in _SAFE_METHODS:
            body = await self._read(receive)
            if body is None:  # the client is gone
                return
            read = self._clean(body, headers)
            if isinstance(read, Response):
                refusal = read
            else:
                scope, receive = _with_body(scope, receive, read)
        await (refusal or self._app)(scope, receive, send)

    def _check(self, scope: Scope, headers: Headers) -> Response | None:
        """The response that refuses the request by its headers, or None. Notes down who sent it."""
        method, path = scope["method"], scope["path"]
        if refusal := self._check_host(headers):
            return refusal
        if _CONTROL.search(path):
            return error_response(404, "the path has control characters", code="invalid_path")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._max_body:
            return self._too_large()
        if method not in _SAFE_METHODS and not self._is_same_site(scope["scheme"], headers):
            sender = headers.get("origin", "another site")
            return error_response(
                403, f"a page of {sender} may not send this request; the operator can allow it", code="cross_site"
            )
        if refusal := self._check_key(path, headers):
            return refusal
        return None if method in _SAFE_METHODS else _check_type(headers)

    def _check_host(self, headers: Headers) -> Response | None:
        hosts = headers.getlist("host")
        match = _HOST.fullmatch(hosts[0]) if hosts else None
        if len(hosts) > 1 or (hosts and match is None):
            return error_response(400, "the Host header is not valid", code="invalid_host")
        if self._local_only and not (match and is_loopback(match[1].lower())):
            return error_response(403, "this service answers only to localhost; the operator can open it to others")
        return None

    def _is_same_site(self, scheme: str, headers: Headers) -> bool:
        """Whether the service's own page sent the request, an allowed origin's, or a client that is no browser.

        Browsers say where a request comes from, and pages cannot change that: by Sec-Fetch-Site where the address is
        https or localhost, and by Origin. The scheme is that of the connection or, where uvicorn trusts the proxy, the
        one in X-Forwarded-Proto.
        """
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if "*" in self._origins or origin in self._origins:
            return True
        if site is not None:
            return site in ("same-origin", "none")
        return origin is None or (_origin(origin) or ()) == _origin(f"{scheme}://{headers.get('host', '')}")

    def _check_key(self, path: str, headers: Headers) -> Response | None:
        client = ANYBODY if self._keys is None else self._client(self._keys, headers)
        if client is None and not _NO_KEY_NEEDED.fullmatch(path):
            refusal = error_response(401, "give your API key as 'Authorization: Bearer KEY'", code="invalid_api_key")
            refusal.headers["www-authenticate"] = "Bearer"
            return refusal
        CLIENT.set(client or ANYBODY)
        return None

    @staticmethod
    def _client(keys: Keys, headers: Headers) -> Client | None:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return keys.client(key) if key else None

    async def _read(self, receive: Receive) -> bytearray | None:
        """The body, or as much of it as is too much. None if the client has closed the connection."""
        body, more = bytearray(), True
        while more and len(body) <= self._max_body:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            more = message.get("more_body", False)
        return body

    def _clean(self, body: bytearray, headers: Headers) -> bytes | Response:
        """What the application gets of a body, or the response that refuses it."""
        if len(body) > self._max_body:
            return self._too_large()
        if not body:
            return b""
        if "content-type" not in headers:
            return _not_json()
        try:
            return clean_json(bytes(body))
        except ValueError as error:
            return error_response(422, str(error), code="invalid_json")

    def _too_large(self) -> Response:
        return error_response(413, f"a request may have {self._max_body:,} bytes", code="request_too_large")


def _check_type(headers: Headers) -> Response | None:
    """Refuse what an HTML form can send: such a request needs no permission from CORS."""
    kinds = [kind.partition(";")[0].strip() for kind in headers.getlist("content-type")]
    if not all(_JSON.fullmatch(kind) for kind in kinds):
        return _not_json()
    if headers.get("content-encoding", "identity").lower() != "identity":
        return error_response(415, "send the body without compression", code="unsupported_media_type")
    return None


def _not_json() -> Response:
    return error_response(415, "send the body as 'Content-Type: application/json'", code="unsupported_media_type")


def _origin(url: str) -> tuple[str, str, int | None] | None:
    """The origin of an address: scheme, host and port, also the port that the scheme implies. None if it has none."""
    try:
        parts = urlsplit(url)
        port = _PORTS.get(parts.scheme) if parts.port is None else parts.port
    except ValueError:
        return None
    return (parts.scheme, parts.hostname, port) if parts.hostname else None


def _with_body(scope: Scope, receive: Receive, body: bytes) -> tuple[Scope, Receive]:
    """The request with a body that was read already."""
    scope["headers"] = list(scope["headers"])
    headers = MutableHeaders(scope=scope)
    del headers["transfer-encoding"]
    headers["content-length"] = str(len(body))
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return scope, receive_again
