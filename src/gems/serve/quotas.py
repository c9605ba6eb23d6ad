"""What an API key may still use today, and what a run may use of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from gems.graph.context import GemsContext
from gems.graph.state import Budget
from gems.serve.keys import Client, DayLimits
from gems.serve.ledger import DayUsage
from gems.serve.refusals import SpentError

__all__ = ["check_day", "max_usage", "reserve"]

_MIN_CHAT_CALLS: Final = 4
"""A run needs about this many to achieve anything."""

_SECONDS_TO_RETRY: Final = 30
"""After which a run that holds a reservation may have ended."""


def reserve(
    context: GemsContext, client: Client, usage: DayUsage, *, share: int = 1, even: bool = False
) -> tuple[Budget, dict[str, float]]:
    """Reserve for a run what it may use of the client's day, and lower the run's budget to that.

    Where nothing bounds a run, it gets all that the day's limit leaves, or its share of that.

    Args:
        context: The settings of the run.
        client: The client, with its limits of the day.
        usage: What the client has used and reserved today.
        share: Number of runs of the request, this one included, that have no reservation yet.
        even: Let no run take more than its share, for a request whose runs do not all fit otherwise.

    Returns:
        The run's budget, and what is reserved.

    Raises:
        SpentError: Too little is left for a run.
    """
    budget, reserved = context.budget, dict[str, float]()
    for name, limit in client.daily.model_dump().items():
        # The bound on the cost follows from the bounds before it.
        bound = max_usage(context.model_copy(update={"budget": budget}))[name]
        if limit is not None and bound != 0:  # 0: nothing that the run uses has a price
            left = limit - usage.settled[name] - usage.reserved[name]
            amount = left / share if bound is None else min(left / share if even else left, bound)
            least = _least(name, budget)
            if left <= 0 or amount < least:
                raise _spent(name, limit, usage, least)
            bound = amount if name == "cost" else int(amount)
            budget = budget.model_copy(update={name: bound})
        if bound is not None:
            reserved[name] = bound
    return budget, reserved


def check_day(limits: DayLimits, usage: DayUsage) -> None:
    """Check that a day's tokens and money are not used up, before a run begins that was accepted earlier.

    What calls in flight take is known only after them: other runs may have used more than was reserved for them, and
    a request may give its runs budgets that are smaller than one call.

    Raises:
        SpentError: They are used up.
    """
    for name in ("tokens", "cost"):
        limit = getattr(limits, name)
        if limit is not None and usage.settled[name] >= limit:
            raise _spent(name, limit, usage, 1)


def max_usage(context: GemsContext) -> dict[str, float | None]:
    """What a run may use at most; None where nothing bounds it.

    A call's tokens are known only after it, so a run may exceed its tokens and its cost by one or two chat calls: the
    planner and the decomposer begin at the same time.
    """
    budget = context.budget
    images = min(budget.images or 10**9, context.max_rounds * context.images_per_round)
    chat_calls = min(budget.chat_calls or 10**9, 2 * images + 5)
    return {"images": images, "chat_calls": chat_calls, "tokens": budget.tokens, "cost": _max_cost(budget, images)}


def _max_cost(budget: Budget, images: int) -> float | None:
    prices = budget.prices
    token_price = prices.dearest_token
    if token_price and budget.tokens is None:
        return budget.cost
    cost = images * prices.image + (budget.tokens or 0) * token_price / 1e6
    return cost if budget.cost is None else min(cost, budget.cost)


def _least(name: str, budget: Budget) -> float:
    """What a run needs at least."""
    return {"chat_calls": _MIN_CHAT_CALLS, "cost": budget.prices.image}.get(name, 1)


def _spent(name: str, limit: float, usage: DayUsage, least: float) -> SpentError:
    what = "units of cost" if name == "cost" else name.replace("_", " ")
    left = limit - usage.settled[name]
    if left <= 0:
        return SpentError(f"this key has used its {limit:,} {what} of the day", _until_midnight())
    if left < least:
        return SpentError(
            f"this key has used {_shown(usage.settled[name])} of its {limit:,} {what} of the day; the {_shown(left)} "
            f"that are left are too few for a run, which needs at least {_shown(least)}",
            _until_midnight(),
        )
    if not usage.unfinished:
        return SpentError(
            f"{_shown(left)} of this key's {limit:,} {what} of the day are left, too few for all runs of this request",
            _until_midnight(),
        )
    return SpentError(
        f"runs that have not ended ({usage.unfinished}) reserve the rest of this key's {limit:,} {what} of the day; "
        "wait for them, or give each run a smaller budget",
        _SECONDS_TO_RETRY,
    )


def _shown(amount: float) -> str:
    """An amount without what adding up fractions leaves behind its digits."""
    return f"{round(amount, 4):,}"


def _until_midnight() -> int:
    """Seconds until the next day, UTC."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return max(1, round((midnight - now).total_seconds()))
