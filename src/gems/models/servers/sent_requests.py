"""Counts the requests that a client sends in one call: it may try again by itself, and each try may be charged."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import httpx

from gems.errors import is_passing_status, may_cost
from gems.models.deadlines import MAY_SEND, SENDS, limit_reads

__all__ = ["begin_count", "begin_request", "has_sent", "leave_out_busy", "may_send_again", "requests_sent", "watch"]

_REQUESTS: Final = threading.local()


def begin_count() -> None:
    """Begin to count the requests of this thread."""
    _REQUESTS.count, _REQUESTS.has_begun = 0, False
    SENDS.get()(0)


def requests_sent() -> int:
    """How many requests this thread has sent since then, without those that a busy server has refused.

    At least 1, unless a stop came before the first one.
    """
    return max(int(getattr(_REQUESTS, "has_begun", True)), getattr(_REQUESTS, "count", 0))


def has_sent() -> bool:
    """Whether the server has got a whole request of this thread since then, and has not refused it as busy."""
    return getattr(_REQUESTS, "count", 0) > 0


def may_send_again() -> bool:
    """Whether the budget has room for another request of this thread's call."""
    return MAY_SEND.get()(max(0, getattr(_REQUESTS, "count", 0)))


def begin_request() -> bool:
    """Note that this thread sends a request. Returns False if it may not."""
    if not may_send_again():
        return False
    _REQUESTS.has_begun = True
    return SENDS.get()(max(0, getattr(_REQUESTS, "count", 0)) + 1)


def watch(event: str, details: Mapping[str, Any]) -> None:
    """The "trace" extension of a request: counts it once it is sent, and limits its reads, see ``limit_reads``."""
    if event.endswith("send_request_headers.started"):  # or what a proxy is asked before
        _REQUESTS.is_own = details["request"].method != b"CONNECT"
    if event.endswith("send_request_body.complete") and getattr(_REQUESTS, "is_own", True):
        _REQUESTS.count = getattr(_REQUESTS, "count", 0) + 1
    limit_reads(event, details)


def leave_out_busy(response: httpx.Response) -> None:
    """Do not count the request of an answer that says that nothing was done."""
    if is_passing_status(response.status_code) and not may_cost(response.status_code):
        _REQUESTS.count = getattr(_REQUESTS, "count", 0) - 1
