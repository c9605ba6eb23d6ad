"""Counts the requests that a client sends in one call: it may try again by itself, and each try may be charged."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Final

import httpx

from gems.errors import is_passing_status, is_unloadable, may_cost
from gems.models.deadlines import MAY_SEND, SENDS, limit_reads
from gems.models.servers.error_texts import error_message

__all__ = [
    "answers_lost",
    "begin_count",
    "begin_request",
    "has_sent",
    "may_send_again",
    "note_refusal",
    "requests_sent",
    "watch",
]

_REQUESTS: Final = threading.local()


def begin_count() -> None:
    """Begin to count the requests of this thread."""
    _REQUESTS.begun, _REQUESTS.whole, _REQUESTS.refused, _REQUESTS.denied = 0, 0, 0, 0
    SENDS.get()(0)


def requests_sent() -> int:
    """How many requests this thread has sent since then, or begun to send, without those that a busy server refused.

    At least 1, unless none was begun: a stop came before, or no connection was made.
    """
    return max(min(1, _number("begun")), _charged())


def answers_lost() -> int:
    """How many of these requests may have been answered, as no refusal came back: with what the caller has got."""
    return max(0, _charged() - _number("denied"))


def _charged() -> int:
    return max(0, _number("begun") - _number("refused"))


def _number(name: str) -> int:
    return int(getattr(_REQUESTS, name, 0))


def has_sent() -> bool:
    """Whether the server has got a whole request of this thread since then, and has not refused it as busy."""
    return _number("whole") > _number("refused")


def may_send_again() -> bool:
    """Whether the budget has room for another request of this thread's call."""
    return MAY_SEND.get()(_charged())


def begin_request() -> bool:
    """Note that this thread is about to send a request. Returns False if it may not."""
    return may_send_again() and SENDS.get()(_charged() + 1)


def watch(event: str, details: Mapping[str, Any]) -> None:
    """The "trace" extension of a request: counts it when it is sent, and limits its reads, see ``limit_reads``."""
    if event.endswith("send_request_headers.started"):
        _REQUESTS.is_own = details["request"].method != b"CONNECT"  # or else a proxy is asked for a connection
        _REQUESTS.begun = _number("begun") + _REQUESTS.is_own
    if event.endswith("send_request_body.complete") and getattr(_REQUESTS, "is_own", True):
        _REQUESTS.whole = _number("whole") + 1
    limit_reads(event, details)


def note_refusal(response: httpx.Response) -> None:
    """Do not count the request of an answer that says that nothing was done, nor an answer where it was refused."""
    status = response.status_code
    if status < 300 or (may_cost(status) and not is_unloadable(error_message(response.read()))):
        return
    if is_passing_status(status) and not may_cost(status):
        _REQUESTS.refused = _number("refused") + 1
    else:
        _REQUESTS.denied = _number("denied") + 1
