"""What a whole batch may spend, and what it will probably spend."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from gems.errors import InputError
from gems.graph.state import Budget, Prices, Usage

__all__ = ["Allowance", "Estimate", "Limits", "estimate", "forecast", "larger_usage", "usage_of"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for a whole batch. Spending counts across restarts; hours count from the current start."""

    spending: Budget = field(default_factory=Budget)
    hours: float | None = None

    def limit_reached(self, usage: Usage, hours: float) -> str | None:
        """The name of a limit that leaves no room for another prompt; None if there is room."""
        if self.hours is not None and hours >= self.hours:
            return "hours"
        # No prompt can run without room for a chat call and an image.
        return self.spending.exhausted(usage, chat_calls=1, images=1)


class Allowance:
    """Decides for each prompt whether it may begin, so that a batch ends close to its limits.

    Each prompt in flight is assumed to cost as much as the most expensive one so far. Near a limit, prompts therefore
    begin one after another, and the limit is exceeded by no more than one of them.

    Args:
        limits: The batch's limits.
        usage: Usage of the batch's earlier starts.
        max_usage: The most that a prompt has used so far, by figure.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        limits: Limits,
        usage: Usage | None = None,
        max_usage: Usage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._clock = limits, clock
        self._start = clock()
        self._lock = threading.Lock()
        self._in_flight: set[int] = set()
        self._finished: set[int] = set()
        self.usage, self._max_usage = usage or Usage(), max_usage or Usage()
        self.limit_reached: str | None = None
        """The limit that ended the batch; None as long as there is room."""

    def begin(self, index: int) -> Literal["go", "wait", "stop"]:
        """Whether a prompt may begin now, may do so once a prompt in flight has finished, or may not begin at all.

        A prompt that has begun may always begin again: its worker has died, and what it has used is paid for.
        """
        with self._lock:
            if self.has_begun(index):
                return "go"
            hours = (self._clock() - self._start) / 3600
            if limit := self._limits.limit_reached(self.usage, hours):
                self.limit_reached = limit
                return "stop"
            if self._in_flight and self._limits.limit_reached(self._expected_usage(), hours):
                return "wait"
            self._in_flight.add(index)
            return "go"

    def has_begun(self, index: int) -> bool:
        """Whether a prompt has begun."""
        return index in self._in_flight or index in self._finished

    def finish(self, index: int, usage: Usage) -> None:
        """Count what a prompt has used, now that it has finished. A second call for the same prompt does not count."""
        with self._lock:
            self._in_flight.discard(index)
            if index not in self._finished:
                self._finished.add(index)
                self.usage += usage
                self._max_usage = larger_usage(self._max_usage, usage)

    def _expected_usage(self) -> Usage:
        """The most that the batch will have used once the prompts in flight have finished."""
        in_flight = {name: len(self._in_flight) * value for name, value in self._max_usage.model_dump().items()}
        return self.usage + Usage(**in_flight)


def larger_usage(a: Usage, b: Usage) -> Usage:
    """The larger of each figure."""
    return Usage(**{name: max(getattr(a, name), getattr(b, name)) for name in Usage.model_fields})


def usage_of(row: Mapping[str, Any]) -> Usage:
    """What a prompt has used, from its result."""
    return Usage.model_validate(row.get("usage") or {})


# --- the forecast ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a whole batch will spend of one thing: the expected figure, and a 95% prediction interval."""

    expected: float
    low: float
    high: float


def estimate(sample: Sequence[float], total: int) -> Estimate:
    """A prediction interval for the sum over all prompts, from a random sample of them.

    The sample's own sum is known; each of the other prompts is drawn from the same distribution. The interval is
    Student's for the mean of future observations (Geisser, Predictive Inference, 1993, section 2.1).

    Args:
        sample: The cost of each prompt of the sample; at least five.
        total: Number of prompts, including the sample.
    """
    size, sample_sum = len(sample), math.fsum(sample)
    remaining = total - size
    if not remaining:
        return Estimate(sample_sum, sample_sum, sample_sum)
    mean, variance = statistics.fmean(sample), statistics.variance(sample)
    margin = _t975(size - 1) * math.sqrt(variance * remaining * (1 + remaining / size))
    expected = sample_sum + remaining * mean
    return Estimate(expected, max(sample_sum, expected - margin), expected + margin)


_SPEED_VARIATION: Final = 0.15
"""Fraction by which a machine may become faster or slower during a batch, as measured on shared machines."""


def forecast(rows: Sequence[Mapping[str, Any]], total: int, concurrency: int, prices: Prices) -> dict[str, Estimate]:
    """What all prompts of a batch will spend, from the results of a random sample.

    Hours follow from Little's law: with ``concurrency`` prompts always in flight, a batch takes the sum of all prompts'
    durations, divided by ``concurrency``. The last prompts of the sample ran beside fewer others, so their durations
    are left out.

    Args:
        rows: The sample's results, with failures; at least five. With fewer than three times ``concurrency``, the
            forecast of hours is unreliable.
        total: Number of prompts in the batch, including the sample.
        concurrency: Number of prompts in flight.
        prices: Prices of the models.

    Raises:
        InputError: There are fewer than five results.
    """
    if len(rows) < 5:
        raise InputError(f"only {len(rows)} prompts of the sample could be run; an estimate needs 5")
    usages = [usage_of(row) for row in rows]
    return {
        "images": estimate([usage.images for usage in usages], total),
        "chat_calls": estimate([usage.chat_calls for usage in usages], total),
        "tokens": estimate([usage.tokens for usage in usages], total),
        "cost": estimate([prices.cost(usage) for usage in usages], total),
        "hours": _hours(rows, total, concurrency),
    }


def _hours(rows: Sequence[Mapping[str, Any]], total: int, concurrency: int) -> Estimate:
    by_start = sorted(rows, key=lambda row: datetime.fromisoformat(row["at"]).timestamp() - row["seconds"])
    at_full_load = by_start[:-concurrency] if len(rows) - concurrency >= 5 else by_start
    seconds = estimate([row["seconds"] for row in at_full_load], total)
    divisor = 3600 * min(concurrency, total)
    return Estimate(
        seconds.expected / divisor,
        seconds.low / divisor * (1 - _SPEED_VARIATION),
        seconds.high / divisor * (1 + _SPEED_VARIATION),
    )


def _t975(freedom: int) -> float:
    """The 97.5% quantile of Student's t distribution.

    It uses the expansion in Abramowitz and Stegun, 26.7.5, which is within 0.3% from four degrees of freedom on.
    """
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom ** (power + 1) for power, term in enumerate(terms))
