"""The end of a call that outlives its timeout.

A client bounds each silence of the server, not the whole call: for one that keeps sending a byte, or with a client that
knows no timeout, it would wait without end.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any, Final, TypeVar

import httpcore
from langchain_core.language_models import BaseChatModel

from gems.errors import BackendError
from gems.models.heads import is_whole_head, readable_head
from gems.stopping import POLL_SECONDS, WaitEnded, is_cancelled, may_be_cancelled

__all__ = [
    "BEFORE_CALL",
    "DEADLINE",
    "IN_ONE_TRY",
    "MAY_SEND",
    "SENDS",
    "deadline_of",
    "end_reads_at",
    "limit_reads",
    "too_late",
    "within_deadline",
]

T = TypeVar("T")

DEADLINE: Final = "gems_deadline_seconds"
"""The key in a chat model's ``metadata`` of the seconds that one call may take, with all its client's retries."""

IN_ONE_TRY: Final = ContextVar("gems_in_one_try", default=False)
"""Whether a client is not to send a request again after an error of the server."""

BEFORE_CALL: Final[ContextVar[Callable[[], object]]] = ContextVar("gems_before_call", default=lambda: None)
"""Called before a chat model is called. It raises if the call is not to be made: LangChain would log what a callback
raises, and a call that a budget has no room for is no fault."""

MAY_SEND: Final[ContextVar[Callable[[int], bool]]] = ContextVar("gems_may_send", default=lambda sent_requests: True)
"""Whether a call that has sent so many requests may send another one."""

SENDS: Final[ContextVar[Callable[[int], bool]]] = ContextVar("gems_sends", default=lambda requests: True)
"""Called by a client, before it sends, with how many requests of a call are sent then. False: nobody waits for them."""


def deadline_of(model: BaseChatModel) -> float | None:
    """The seconds that one call of a model may take; None if there is no limit."""
    seconds = (model.metadata or {}).get(DEADLINE)
    return seconds if isinstance(seconds, float) else None


def within_deadline(call: Callable[[], T], seconds: float | None) -> T:
    """Make a call; give up on it when it is too late, or when the run is cancelled. Its answer is dropped then.

    Args:
        call: The call.
        seconds: The limit; None for a call that is waited for in any case.

    Raises:
        BackendError: There was no answer in time.
        WaitEnded: The run was cancelled. What was sent may be charged.
    """
    if seconds is None:
        return call()
    answer: Future[T] = Future()
    context = copy_context()

    def work() -> None:
        try:
            answer.set_result(context.run(call))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True, name="gems-chat-call").start()
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            return answer.result(min(left, POLL_SECONDS) if may_be_cancelled() else left)
        except TimeoutError:
            if answer.done():  # the call's own error
                raise
            if is_cancelled():
                raise WaitEnded("cancelled while a chat model was asked") from None
        except BackendError as error:
            if not is_cancelled():
                raise
            raise WaitEnded("cancelled while a chat model was asked") from error  # which may have come of that
    raise too_late(seconds)


def too_late(seconds: float) -> BackendError:
    """The error of a call without an answer in so many seconds."""
    return BackendError(
        f"the chat model gave no whole answer in {seconds:g} s (the chat option timeout)", retryable=False
    )


_READS: Final = threading.local()
"""When the reads of this thread have to end, on the monotonic clock."""


def end_reads_at(end: float) -> None:
    """Let this thread's reads from connections with ``limit_reads`` end at this time of the monotonic clock."""
    _READS.end = end


def limit_reads(event: str, details: Mapping[str, Any]) -> None:
    """Let no read from a new connection outlast ``end_reads_at`` or the run, and leave out lines that nobody reads.

    httpx limits each read by itself, so that a server that sends one byte at a time would never be too slow. The hook
    is httpcore's "trace" extension.
    """
    if ".receive_response_headers." in event:
        _READS.in_head = event.endswith(".started")
    if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
        return
    stream: Any = details.get("return_value")
    read = stream.read
    # OpenAI's client may use httpx2, whose httpcore2 turns no other package's errors into a timeout of its client.
    package = sys.modules.get(type(stream).__module__.partition(".")[0])
    read_timeout: type[Exception] = getattr(package, "ReadTimeout", httpcore.ReadTimeout)

    def read_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
        end = min(getattr(_READS, "end", math.inf), time.monotonic() + (math.inf if timeout is None else timeout))
        while (left := end - time.monotonic()) > 0 and not is_cancelled():
            if not may_be_cancelled():
                return bytes(read(max_bytes, None if left == math.inf else left))
            with suppress(read_timeout):
                return bytes(read(max_bytes, min(left, POLL_SECONDS)))
        raise read_timeout  # the client closes the connection

    def read_lines_in_time(max_bytes: int, timeout: float | None = None) -> bytes:
        data = read_in_time(max_bytes, timeout)
        if not getattr(_READS, "in_head", False):
            return data
        while not is_whole_head(data) and (more := read_in_time(max_bytes, timeout)):
            data += more
        return readable_head(data)

    stream.read = read_lines_in_time
