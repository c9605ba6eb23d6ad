"""What a whole bulk run may spend, and what it will probably spend."""

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

__all__ = ["Allowance", "Estimate", "Limits", "dearer", "estimate", "forecast", "spent_in"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a whole run: images, tokens, chat calls and money with what was spent before it went on; hours of its own."""

    spending: Budget = field(default_factory=Budget)
    hours: float | None = None

    def reached(self, spent: Usage, hours: float) -> str | None:
        """The name of a limit that leaves no room for anything more; None if there is room."""
        if self.hours is not None and hours >= self.hours:
            return "hours"
        # A chat call or an image more would break it: then no prompt more can be run.
        return self.spending.exhausted(spent, chat_calls=1, images=1)


class Allowance:
    """Says for each prompt whether it may be begun, so that a run ends close to its limits and not far beyond.

    Those in flight count as the dearest so far: the next is begun only while that leaves room. When the limit is near,
    prompts are therefore begun one after another, and it is overstepped by no more than one of them.

    Args:
        limits: Of the whole run.
        spent: What was spent before.
        dearest: The most of each that a prompt has cost.
        clock: Seconds.
    """

    def __init__(
        self,
        limits: Limits,
        spent: Usage | None = None,
        dearest: Usage | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits, self._clock = limits, clock
        self._begun = clock()
        self._lock = threading.Lock()
        self._in_flight: set[int] = set()
        self._counted: set[int] = set()
        self.spent, self._dearest = spent or Usage(), dearest or Usage()
        self.reached: str | None = None
        """The limit that ended the run; None as long as there is room."""

    def begin(self, index: int) -> Literal["go", "wait", "stop"]:
        """Whether a prompt may be begun: now, perhaps once one in flight is done, or not at all.

        One that was begun already may always be begun again: its worker has died, and what it had done is paid for.
        """
        with self._lock:
            if self.has_begun(index):
                return "go"
            hours = (self._clock() - self._begun) / 3600
            if reached := self._limits.reached(self.spent, hours):
                self.reached = reached
                return "stop"
            if self._in_flight and self._limits.reached(self._expected(len(self._in_flight)), hours):
                return "wait"
            self._in_flight.add(index)
            return "go"

    def has_begun(self, index: int) -> bool:
        """Whether a prompt was begun."""
        return index in self._in_flight or index in self._counted

    def done(self, index: int, usage: Usage) -> None:
        """A prompt that was begun has ended, and has cost this; said twice, it counts once."""
        with self._lock:
            self._in_flight.discard(index)
            if index not in self._counted:
                self._counted.add(index)
                self.spent += usage
                self._dearest = dearer(self._dearest, usage)

    def _expected(self, in_flight: int) -> Usage:
        """What will have been spent, at most, once those in flight are done."""
        more = {name: in_flight * value for name, value in self._dearest.model_dump().items()}
        return self.spent + Usage(**more)


def dearer(a: Usage, b: Usage) -> Usage:
    """The larger of each figure."""
    return Usage(**{name: max(getattr(a, name), getattr(b, name)) for name in Usage.model_fields})


def spent_in(row: Mapping[str, Any]) -> Usage:
    """What a result says that its prompt has cost."""
    return Usage.model_validate(row.get("usage") or {})


# --- the forecast ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a whole run will spend of something: the most likely figure, and an interval for 95 runs of 100."""

    expected: float
    low: float
    high: float


def estimate(sample: Sequence[float], total: int) -> Estimate:
    """A prediction interval for the sum over all prompts, from a random sample of them.

    The sample's own cost is known; each of the others is drawn from the same distribution. Student's interval for the
    mean of those to come (Geisser, Predictive Inference, 1993, section 2.1).

    Args:
        sample: What each prompt of the sample has cost; five at least.
        total: How many prompts there are, with the sample.
    """
    n, rest, known = len(sample), total - len(sample), math.fsum(sample)
    if not rest:
        return Estimate(known, known, known)
    mean, variance = statistics.fmean(sample), statistics.variance(sample)
    margin = _t975(n - 1) * math.sqrt(variance * rest * (1 + rest / n))
    middle = known + rest * mean
    return Estimate(middle, max(known, middle - margin), middle + margin)


_BUSY: Final = 0.15
"""How much faster or slower a machine is later than now, of its speed: seen on shared machines."""


def forecast(rows: Sequence[Mapping[str, Any]], total: int, concurrency: int, prices: Prices) -> dict[str, Estimate]:
    """What all prompts of a run will spend, from the results of a random sample.

    Hours follow from Little's law: with ``concurrency`` prompts always in flight, a run lasts as long as all of them
    together, divided by that. The last ones of the sample to be begun flew with fewer others, and are left out there.

    Args:
        rows: Results of the sample, failures among them; five at least, and three times as many as are in flight, or
            the hours tell little.
        total: Prompts in the run, with the sample.
        concurrency: Prompts in flight.
        prices: What the models cost.

    Raises:
        InputError: There are too few results.
    """
    if len(rows) < 5:
        raise InputError(f"only {len(rows)} prompts of the sample could be run; an estimate needs 5")
    spent = [spent_in(row) for row in rows]
    estimates = {
        "images": estimate([u.images for u in spent], total),
        "chat_calls": estimate([u.chat_calls for u in spent], total),
        "tokens": estimate([u.tokens for u in spent], total),
        "cost": estimate([prices.cost(u) for u in spent], total),
    }
    by_start = sorted(rows, key=lambda row: datetime.fromisoformat(row["at"]).timestamp() - row["seconds"])
    crowded = by_start[:-concurrency] if len(rows) - concurrency >= 5 else by_start
    time_ = estimate([row["seconds"] for row in crowded], total)
    hours = 3600 * min(concurrency, total)
    return estimates | {
        "hours": Estimate(time_.expected / hours, time_.low / hours * (1 - _BUSY), time_.high / hours * (1 + _BUSY))
    }


def _t975(freedom: int) -> float:
    """Student's t at 97.5% by the expansion of Abramowitz and Stegun, 26.7.5: within 0.3% from four degrees on."""
    z = 1.959964
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / freedom ** (power + 1) for power, term in enumerate(terms))
