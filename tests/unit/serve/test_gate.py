"""Which pages' requests the gate lets through, behind a proxy that the service does and does not trust."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from gems.serve.gate import GateMiddleware


async def _application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def status(proxy: str, **headers: str) -> int:
    """The status of a POST that comes through a proxy, of which uvicorn trusts only 127.0.0.1."""
    gate: Any = GateMiddleware(_application, keys=None, max_body=100, origins=(), local_only=False)
    lines = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/runs", "scheme": "http", "client": (proxy, 1)}
    statuses: list[int] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    call = ProxyHeadersMiddleware(gate, trusted_hosts="127.0.0.1")
    lines.append((b"content-type", b"application/json"))
    asyncio.run(call(scope | {"headers": lines}, receive, send))  # type: ignore[arg-type]
    return statuses[0]


@pytest.mark.parametrize(
    ("proxy", "scheme", "origin", "expected"),
    [
        ("127.0.0.1", "https", "https://gems.example", 204),
        ("127.0.0.1", "https", "https://gems.example:443", 204),
        ("127.0.0.1", "https", "http://gems.example", 403),
        ("127.0.0.1", "https", "https://gems.example:80", 403),
        ("127.0.0.1", "http", "http://gems.example", 204),
        ("10.0.0.9", "https", "https://gems.example", 403),  # nobody says that this proxy may speak for the client
        ("10.0.0.9", "https", "http://gems.example", 204),
    ],
)
def test_the_scheme_of_a_page_is_compared_as_a_trusted_proxy_says_it(
    proxy: str, scheme: str, origin: str, expected: int
) -> None:
    assert status(proxy, host="gems.example", origin=origin, x_forwarded_proto=scheme) == expected


def test_a_browser_that_names_the_site_is_believed_behind_every_proxy() -> None:
    sent = {"host": "gems.example", "origin": "https://gems.example", "sec_fetch_site": "same-origin"}
    assert status("10.0.0.9", **sent) == 204
    assert status("10.0.0.9", **sent | {"sec_fetch_site": "same-site"}) == 403
