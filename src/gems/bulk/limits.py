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
from gems.graph.context import GemsContext
from gems.graph.state import Budget, Prices, Usage

__all__ = [
    "Allowance",
    "Estimate",
    "Limits",
    "Share",
    "estimate",
    "forecast",
    "larger_usage",
    "most_of_a_run",
    "usage_of",
]


_FIGURES: Final = ("images", "chat_calls", "tokens", "cost")
"""What a batch may be limited in, besides its hours."""
_LEAST_CALLS: Final = 12
"""Chat calls with which a prompt gets through its first round; with fewer, a node may do without its model."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for a whole batch. Spending counts across restarts; hours count from the current start."""

    spending: Budget = field(default_factory=Budget)
    hours: float | None = None

    def limit_reached(self, usage: Usage, hours: float) -> str | None:
        """The name of a limit that leaves no room for another prompt; None if there is room."""
        if self.hours is not None and hours >= self.hours:
            return "hours"
        # No prompt can run without room for an image, and for calls that say what to look for and whether it is there.
        return self.spending.exhausted(usage, chat_calls=2, images=1)


@dataclass(frozen=True, slots=True)
class Share:
    """What a prompt may spend of a batch's limits, beyond what its run has spent before."""

    before: Usage = field(default_factory=Usage)
    """What the run has spent before, which may have been continued from a checkpoint."""
    more: Mapping[str, float] = field(default_factory=dict)
    """By figure, the most that it may spend now; a figure without a limit is left out."""

    def budget(self, own: Budget) -> Budget:
        """The run's own budget, within this share."""
        figures = _figures(self.before, own.prices)
        caps = {name: figures[name] + amount for name, amount in self.more.items()}
        limits = {name: min(cap, limit) if (limit := getattr(own, name)) else cap for name, cap in caps.items()}
        whole = {name: limit if name == "cost" else int(limit) for name, limit in limits.items()}
        # A limit is at least 1; where nothing is left, a prompt does not begin.
        return own.model_copy(update={name: max(limit, 1e-9 if name == "cost" else 1) for name, limit in whole.items()})

    def cuts_short(self, own: Budget, usage: Usage) -> str | None:
        """The limit of the batch that ended a run that its own budget would have let go on; None if there is none."""
        if own.exhausted(usage, chat_calls=2, images=1):
            return None
        return self.budget(own).exhausted(usage, chat_calls=2, images=1)


def most_of_a_run(context: GemsContext) -> dict[str, float]:
    """By figure, the most that a run with these settings can spend. Figures that nothing bounds are left out."""
    budget, prices = context.budget, context.budget.prices
    images = min(context.max_rounds * context.images_per_round, budget.images or math.inf)
    most: dict[str, float] = {"images": images}
    for name in ("chat_calls", "tokens", "cost"):
        if (limit := getattr(budget, name)) is not None:
            most[name] = limit
    price = prices.dearest_token / 1e6
    if not price or "tokens" in most:
        cost = images * prices.image + (most["tokens"] * price if price else 0)
        most["cost"] = min(cost, most.get("cost", math.inf))
    return most


def _figures(usage: Usage, prices: Prices) -> dict[str, float]:
    return {
        "images": usage.images,
        "chat_calls": usage.chat_calls,
        "tokens": usage.counted_tokens,
        "cost": prices.counted_cost(usage),
    }


class Allowance:
    """Shares a batch's limits out to its prompts, so that all prompts in flight together cannot exceed them.

    A prompt gets the most that its settings let it spend. Where nothing bounds that, as with tokens, it gets an equal
    part of what is left, and at least twice as much as the most expensive prompt so far, what its first round needs as
    far as that is known, and twice what has cut it short before. What it has not spent goes back once it has finished.
    If there is too little left for that, prompts begin one after another, each with all that is left.

    Args:
        limits: The batch's limits.
        usage: Usage of the batch's earlier starts.
        max_usage: The most that a prompt has used so far, by figure.
        most: By figure, the most that a prompt can spend; see ``most_of_a_run``.
        concurrency: Number of prompts in flight.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        limits: Limits,
        usage: Usage | None = None,
        max_usage: Usage | None = None,
        *,
        most: Mapping[str, float] | None = None,
        concurrency: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._clock = limits, clock
        self._most, self._concurrency = most or {}, concurrency
        self._start = clock()
        self._lock = threading.Lock()
        self._shares: dict[str, Share] = {}
        self._cut_short: dict[str, Mapping[str, float]] = {}
        self._finished: dict[str, Usage] = {}
        self.usage, self._max_usage = usage or Usage(), max_usage or Usage()
        self.limit_reached: str | None = None
        """The limit that ended the batch; None as long as there is room."""

    def begin(self, key: str, before: Usage | None = None) -> Share | Literal["wait", "stop"]:
        """The share of a prompt that may begin now; or else it may begin once another one has finished, or not at all.

        A prompt that has begun may always begin again: its worker has died, and what it has used is paid for.

        Args:
            key: The prompt's.
            before: What its run has spent before, if it is continued. It counts as part of the batch's usage already.
        """
        with self._lock:
            if key in self._shares:
                return self._shares[key]
            if key in self._finished:
                return Share(self._finished[key], dict.fromkeys(self._limited(), 0.0))
            hours = (self._clock() - self._start) / 3600
            if limit := self._limits.limit_reached(self.usage, hours):
                self.limit_reached = limit
                return "stop"
            more = self._more(key, before or Usage())
            if more is None:
                return "wait"
            self._shares[key] = Share(before or Usage(), more)
            return self._shares[key]

    def has_begun(self, key: str) -> bool:
        """Whether a prompt has begun."""
        return key in self._shares or key in self._finished

    def finish(self, key: str, usage: Usage, *, is_over: bool = True) -> None:
        """Count what a prompt's run has used. A second call for the same prompt does not count.

        Args:
            key: The prompt's.
            usage: What its run has used, with what it had used before.
            is_over: Whether the prompt will not begin again at this start.
        """
        with self._lock:
            share = self._shares.pop(key, None)
            if share is None:
                return
            if is_over:
                self._finished[key] = usage
            else:
                self._cut_short[key] = share.more
            self.usage += usage.since(share.before)
            self._max_usage = larger_usage(self._max_usage, usage)

    def restart(self, key: str, usage: Usage) -> bool:
        """Count what a prompt in flight has used whose worker has died, and take its share back: it begins again.

        Args:
            key: The prompt's.
            usage: What its run has used, by its checkpoint.

        Returns:
            Whether it was in flight.
        """
        with self._lock:
            share = self._shares.pop(key, None)
            if share is None:
                return False
            self.usage += usage.since(share.before)
            self._max_usage = larger_usage(self._max_usage, usage)
            return True

    def lose(self, images: int) -> None:
        """Count images that may have been paid for when a process died."""
        with self._lock:
            self.usage += Usage(images=images)

    def _limited(self) -> list[str]:
        return [name for name in _FIGURES if getattr(self._limits.spending, name) is not None]

    def _more(self, key: str, before: Usage) -> dict[str, float] | None:
        """What a prompt may spend from now on; None if it has to wait for what others give back."""
        prices = self._limits.spending.prices
        spending, own_spending = _figures(self.usage, prices), _figures(before, prices)
        dearest, too_little = _figures(self._max_usage, prices), self._cut_short.get(key, {})
        least = {"chat_calls": _LEAST_CALLS, "cost": self._most.get("images", 1) * prices.image}
        more: dict[str, float] = {}
        for name in self._limited():
            left = getattr(self._limits.spending, name) - spending[name]
            free = left - sum(share.more[name] for share in self._shares.values())
            if name in self._most:
                # Requests that fail count, too: a run can need more than that, and would be cut short for ever.
                rest = 0.0 if key in self._cut_short else self._most[name] - own_spending[name]
                demand = rest if rest > 0 else self._most[name]
            else:
                demand = max(left / self._concurrency, 2 * dearest[name], least.get(name, 0))
                demand = max(demand, 2 * too_little.get(name, 0))  # or it would be cut short at the same step for ever
            if free < demand * (1 - 1e-9) and self._shares:
                return None
            more[name] = min(free, demand)
        return more


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
    rows = [row for row in rows if row.get("at") and "seconds" in row]
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
