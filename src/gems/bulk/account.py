"""A batch's account while it runs: what each prompt may spend, what all have spent, and what was begun."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from gems.bulk.journal import Journal, PartialRun
from gems.bulk.limits import Allowance, Limits, Share
from gems.bulk.results import BatchRow
from gems.graph.state import Usage

__all__ = ["Account", "AccountStart"]

_POLL_SECONDS: Final = 0.1
"""Seconds between two looks at whether a stop is requested, while a prompt waits for its share."""


@dataclass(frozen=True, slots=True)
class AccountStart:
    """What a account begins with. It can be sent to another process, which opens the account there."""

    path: Path
    """The journal's file."""
    limits: Limits
    usage: Usage
    """What earlier starts have spent, with the images that may have been paid for and are in no result."""
    max_usage: Usage
    most: Mapping[str, float]
    """By figure, the most that a prompt can spend."""
    images_per_step: int
    """The most images that a prompt asks for at a time."""
    concurrency: int

    def open(self) -> Account:
        """The account."""
        allowance = Allowance(self.limits, self.usage, self.max_usage, most=self.most, concurrency=self.concurrency)
        return Account(allowance, Journal(self.path), self.images_per_step)


class Account:
    """The allowance and the journal of a batch, kept together. Any thread may use it.

    Args:
        allowance: What prompts may still spend.
        journal: What was begun.
        images_per_step: The most images that a prompt asks for at a time.
    """

    def __init__(self, allowance: Allowance, journal: Journal, images_per_step: int) -> None:
        self._allowance, self._journal, self._images_per_step = allowance, journal, images_per_step
        self._changed = threading.Condition()
        self._died: dict[str, int] = {}
        """By key, the most images that were lost with the worker of a prompt that has not begun again: in the journal,
        it is open."""

    @property
    def usage(self) -> Usage:
        """What all starts have spent, without images that nobody has."""
        usage = self._allowance.usage
        return usage.model_copy(update={"images": usage.images - self.lost_images})

    @property
    def lost_images(self) -> int:
        """The most images that were in flight when a process was killed, and may have been paid for."""
        return self._journal.lost_images + sum(self._died.values())

    @property
    def limit_reached(self) -> str | None:
        """The limit that ended the batch; None as long as there is room."""
        return self._allowance.limit_reached

    def begin(self, key: str, before: Usage) -> Share | Literal["wait", "stop"]:
        """See ``Allowance.begin``. A prompt that begins is written down.

        A prompt in flight that begins again has lost its worker, and with it the images that it had asked for: it gets
        a new share of what is left without them, or else the limit would be exceeded by them.
        """
        if self._allowance.restart(key, before):
            self._died[key] = self._journal.lost_with(key, self._images_per_step, before)
            self._allowance.lose(self._died[key])
        share = self._allowance.begin(key, before)
        if isinstance(share, Share):
            if key in self._died:
                self._journal.lose(key, self._died.pop(key))
            elif not self._journal.open[key]:
                self._journal.begin(key)
        return share

    def wait_to_begin(self, key: str, before: Usage, is_stopped: Callable[[], bool]) -> Share | None:
        """The share of a prompt, once there is room for it; None if it may not begin."""
        while not is_stopped():
            share = self.begin(key, before)
            if share != "wait":
                return share if isinstance(share, Share) else None
            with self._changed:
                self._changed.wait(_POLL_SECONDS)
        return None

    def has_begun(self, key: str) -> bool:
        """See ``Allowance.has_begun``."""
        return self._allowance.has_begun(key)

    def ask(self, key: str, images: int) -> None:
        """See ``Journal.ask``."""
        self._journal.ask(key, images)

    def finish(self, key: str, run: PartialRun | None, row: BatchRow | None, *, is_drawing: bool = False) -> None:
        """Count what a prompt's run has used.

        Args:
            key: The prompt's.
            run: What its run has used, by its checkpoint; None if it has none.
            row: Its result, if it has one.
            is_drawing: Whether it was drawing images when its database failed: they are in no checkpoint.
        """
        usage = run.usage if run else Usage()
        lost_images = self._journal.lost_with(key, self._images_per_step, usage) if is_drawing else 0
        is_over = row is None or "stopped_by_total" not in row
        self._allowance.finish(key, run.usage + run.interrupted if run else Usage(), is_over=is_over)
        if lost_images:
            self._allowance.lose(lost_images)
        self._journal.end(key, run, lost_images=lost_images)
        with self._changed:
            self._changed.notify_all()
