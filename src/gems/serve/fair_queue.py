"""A queue in which users take turns, so that one user's many runs do not hold up the others'."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import Counter, deque

__all__ = ["FairQueue"]


class FairQueue:
    """Runs that wait, one line per user. Safe for threads.

    The next run is that of the user with the fewest runs in progress; among those, of the user whose turn was longest
    ago. Within a line, the order is that of arrival.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lines: dict[str, deque[str]] = {}
        self._delayed: list[tuple[float, int, str, str]] = []
        """A heap of runs that may not begin yet: time, number, user and run."""
        self._numbers = itertools.count()
        self._last_turn: dict[str, int] = {}
        self._in_progress: Counter[str] = Counter()
        self._lengths: Counter[str] = Counter()
        self._closed = False

    def __len__(self) -> int:
        return self._lengths.total()

    def length_of(self, user: str) -> int:
        """The number of a user's runs that wait."""
        return self._lengths[user]

    def put(self, user: str, run: str, *, delay: float = 0.0) -> bool:
        """Add a run, which may begin after ``delay`` seconds. False if the queue is closed."""
        with self._changed:
            if self._closed:
                return False
            self._lengths[user] += 1
            if delay > 0:
                heapq.heappush(self._delayed, (time.monotonic() + delay, next(self._numbers), user, run))
            else:
                self._lines.setdefault(user, deque()).append(run)
            self._changed.notify()
            return True

    def get(self) -> tuple[str, str] | None:
        """Wait for the next run: its user and its id. None once the queue is closed."""
        with self._changed:
            while not self._closed:
                self._promote_delayed()
                if self._lines:
                    return self._take_next()
                seconds = self._delayed[0][0] - time.monotonic() if self._delayed else None
                self._changed.wait(seconds)
            return None

    def finish(self, user: str) -> None:
        """A run that ``get`` returned is no longer in progress."""
        with self._changed:
            self._in_progress[user] -= 1

    def remove(self, run: str) -> bool:
        """Take a run out. False if it is not in the queue."""
        with self._changed:
            for user, line in self._lines.items():
                if run in line:
                    line.remove(run)
                    self._forget(user)
                    return True
            for entry in self._delayed:
                if entry[3] == run:
                    self._delayed.remove(entry)
                    heapq.heapify(self._delayed)
                    self._forget(entry[2])
                    return True
            return False

    def close(self) -> list[str]:
        """Give out and take in no further run; returns the runs that were waiting."""
        with self._changed:
            self._closed = True
            rest = [run for line in self._lines.values() for run in line] + [entry[3] for entry in self._delayed]
            self._lines.clear()
            self._delayed.clear()
            self._lengths.clear()
            self._changed.notify_all()
            return rest

    def _promote_delayed(self) -> None:
        while self._delayed and self._delayed[0][0] <= time.monotonic():
            _, _, user, run = heapq.heappop(self._delayed)
            self._lines.setdefault(user, deque()).append(run)

    def _take_next(self) -> tuple[str, str]:
        user = min(self._lines, key=lambda user: (self._in_progress[user], self._last_turn.get(user, -1)))
        run = self._lines[user].popleft()
        self._forget(user)
        self._last_turn[user] = next(self._numbers)
        self._in_progress[user] += 1
        return user, run

    def _forget(self, user: str) -> None:
        """One of a user's runs has left the queue."""
        self._lengths[user] -= 1
        if not self._lines.get(user, True):
            del self._lines[user]
