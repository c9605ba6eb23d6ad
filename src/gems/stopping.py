"""Waiting that ends when a run is asked to stop: for a server's retry, or for a turn to ask it.

A run that is stopped while it waits has lost nothing. It stops as LangGraph stops runs between two nodes, and can be
continued from the node that waited. A request that a server has is still waited for, since its answer is paid.

A run that is cancelled, for nobody wants it any more, does not wait for that either: its connections are closed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Final

from langgraph.errors import GraphDrained

__all__ = [
    "CANCELLED",
    "POLL_SECONDS",
    "WaitEnded",
    "acquire",
    "apause",
    "cancelled_if",
    "ended_by",
    "ending",
    "is_cancelled",
    "is_stopping",
    "may_be_cancelled",
    "pause",
    "stopping",
]

POLL_SECONDS: Final = 0.1
"""Seconds between two looks at whether a stop is requested."""
_WHILE_WAITING: Final = "stopped while waiting for a server"


def _never() -> bool:
    return False


_STOPPING: ContextVar[Callable[[], bool]] = ContextVar("gems_stopping", default=_never)
_CANCELLED: ContextVar[Callable[[], bool]] = ContextVar("gems_cancelled", default=_never)
_ENDING: ContextVar[Callable[[], bool]] = ContextVar("gems_ending", default=_never)


class WaitEnded(GraphDrained):
    """A stop was requested during a wait for a server.

    Attributes:
        requests: How many requests of the call have failed before, each of which may have been charged.
        lost_answers: How many of them may have been answered; None if that is not known.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.requests = 1
        self.lost_answers: int | None = None


@contextmanager
def _also_if(is_over: ContextVar[Callable[[], bool]], is_requested: Callable[[], bool]) -> Iterator[None]:
    """Add a reason to those that stand already."""
    outer = is_over.get()
    token = is_over.set(is_requested if outer is _never else lambda: is_requested() or outer())
    try:
        yield
    finally:
        is_over.reset(token)


def stopping(is_requested: Callable[[], bool]) -> AbstractContextManager[None]:
    """Let waits inside the block end once the run, or another one around it, is to stop at its next step."""
    return _also_if(_STOPPING, is_requested)


def cancelled_if(is_requested: Callable[[], bool]) -> AbstractContextManager[None]:
    """Let what is done inside the block end at once when it, or what is around it, is cancelled."""
    return _also_if(_CANCELLED, is_requested)


def ending(is_requested: Callable[[], bool]) -> AbstractContextManager[None]:
    """Let waits for servers that fail end inside the block, once runs are to finish what they are doing."""
    return _also_if(_ENDING, is_requested)


def may_be_cancelled() -> bool:
    """Whether anything could cancel what is being done."""
    return _CANCELLED.get() is not _never


def is_cancelled() -> bool:
    """Whether nobody waits for what is being done any more."""
    return _CANCELLED.get()()


def is_stopping() -> bool:
    """Whether what is being done is to stop at its next step."""
    return _STOPPING.get()() or is_cancelled()


CANCELLED: Final = "cancelled"
"""The reason of a ``RunControl`` that cancels its run, rather than stopping it to go on later."""


def pause(seconds: float) -> None:
    """Wait before a server is asked again.

    Raises:
        WaitEnded: A stop was requested before or meanwhile.
    """
    deadline = time.monotonic() + seconds
    while True:
        if _is_over():
            raise WaitEnded(_WHILE_WAITING)
        left = deadline - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, POLL_SECONDS))


async def apause(seconds: float) -> None:
    """See ``pause``; on an event loop."""
    async with ended_by(_is_over, WaitEnded(_WHILE_WAITING)):
        await asyncio.sleep(seconds)


@asynccontextmanager
async def acquire(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Hold one of the slots for the block, after waiting for it.

    Raises:
        GraphDrained: The run was to stop before it got one.
        WaitEnded: The run was cancelled while it held one.
    """
    early_end = GraphDrained("stopped before its turn")
    async with ended_by(is_stopping, early_end):
        await slots.acquire()
    try:
        if is_stopping():  # since the last look
            raise early_end
        async with ended_by(is_cancelled, WaitEnded("cancelled while a server was asked")):
            yield
    finally:
        slots.release()


def _is_over() -> bool:
    return is_stopping() or _ENDING.get()()


@asynccontextmanager
async def ended_by(is_over: Callable[[], bool], error: GraphDrained) -> AsyncIterator[None]:
    """End the block on an event loop, as if its task were cancelled, as soon as something is over, with an error."""
    if is_over():
        raise error
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def look() -> None:
        nonlocal timer
        if is_over():
            limit.reschedule(loop.time())
        else:
            timer = loop.call_later(POLL_SECONDS, look)

    try:
        async with asyncio.timeout(None) as limit:
            timer = loop.call_later(POLL_SECONDS, look)
            try:
                yield
            finally:
                timer.cancel()
    except TimeoutError:
        if limit.expired():
            raise error from None
        raise
