"""Delivers the events of runs, which worker threads publish, to the requests that follow them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from typing_extensions import TypedDict

from gems.graph.events import Event

__all__ = ["BeginEvent", "EndEvent", "EventQueue", "PutOffEvent", "ReviewEvent", "RunEvent", "Subscriptions", "is_last"]


class BeginEvent(TypedDict):
    """A worker begins with the run, or resumes it."""

    event: Literal["begin"]


class ReviewEvent(TypedDict):
    """The run waits for a person's review."""

    event: Literal["review"]


class PutOffEvent(TypedDict):
    """The run is postponed until the service is started again."""

    event: Literal["put_off"]


class EndEvent(TypedDict):
    """The run ended. ``outcome`` is its outcome, or "input" or "backend" if an error ended it."""

    event: Literal["end"]
    outcome: str


RunEvent: TypeAlias = Event | BeginEvent | ReviewEvent | PutOffEvent | EndEvent
"""What happens in a run of the service."""

EventQueue: TypeAlias = asyncio.Queue[RunEvent]

_MAX_UNREAD: Final = 1000
"""Unread events of a subscriber after which further ones are dropped, but for the last one."""


def is_last(event: RunEvent) -> bool:
    """Whether this is the last event for now."""
    return event["event"] in ("review", "end", "put_off")


@dataclass(frozen=True, slots=True)
class _Subscriber:
    loop: asyncio.AbstractEventLoop
    last_only: bool
    events: EventQueue = field(default_factory=asyncio.Queue)

    def deliver(self, event: RunEvent) -> None:
        """Hand over an event, from any thread."""
        if is_last(event) or (not self.last_only and self.events.qsize() < _MAX_UNREAD):
            try:
                self.loop.call_soon_threadsafe(self.events.put_nowait, event)
            except RuntimeError:  # the subscriber's event loop is closed
                return


class Subscriptions:
    """The subscribers of each run. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._subscribers: dict[str, list[_Subscriber]] = {}

    @contextmanager
    def subscribe(self, run: str, *, last_only: bool = False) -> Iterator[EventQueue]:
        """Receive a run's events from now on, in the running event loop.

        Args:
            run: The run's id.
            last_only: Receive only the last event for now, see ``is_last``.
        """
        subscriber = _Subscriber(asyncio.get_running_loop(), last_only)
        with self._lock:
            self._subscribers.setdefault(run, []).append(subscriber)
        try:
            yield subscriber.events
        finally:
            with self._lock:
                subscribers = self._subscribers[run]
                subscribers.remove(subscriber)
                if not subscribers:
                    del self._subscribers[run]

    def publish(self, run: str, event: RunEvent) -> None:
        """Deliver an event to everyone who follows the run."""
        if run not in self._subscribers:  # most runs are not followed, and have many events
            return
        with self._lock:
            subscribers = list(self._subscribers.get(run, ()))
        for subscriber in subscribers:
            subscriber.deliver(event)

    def end_all(self) -> None:
        """Tell every subscriber that its run is postponed."""
        with self._lock:
            runs = list(self._subscribers)
        for run in runs:
            self.publish(run, PutOffEvent(event="put_off"))
