"""What an API key may still use today."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from gems.graph.context import GemsContext
from gems.graph.state import Budget
from gems.serve.keys import Client
from gems.serve.ledger import Ledger
from gems.serve.refusals import SpentError

__all__ = ["max_usage", "remaining_budget"]

_MIN_CHAT_CALLS: Final = 4
"""A run needs about this many to achieve anything."""


def remaining_budget(ledger: Ledger, client: Client, budget: Budget) -> Budget:
    """A run's budget, lowered to what the client's limits of the day leave.

    Raises:
        SpentError: They leave too little for a run.
    """
    usage = ledger.used_today(client.name)
    limits = budget.model_dump()
    for name, limit in client.daily.model_dump(exclude_none=True).items():
        left = limit - usage[name]
        if left < (_MIN_CHAT_CALLS if name == "chat_calls" else 1):
            raise SpentError(f"this key has used its {limit} {name.replace('_', ' ')} of the day", _until_midnight())
        limits[name] = left if limits[name] is None else min(left, limits[name])
    return Budget.model_validate(limits)


def max_usage(context: GemsContext) -> dict[str, int]:
    """What a run may use at most. It is reserved for the run until it ends."""
    images = min(context.budget.images or 10**9, context.max_rounds * context.candidates)
    chat_calls = min(context.budget.chat_calls or 10**9, 2 * images + 5)
    return {"images": images, "chat_calls": chat_calls}


def _until_midnight() -> int:
    """Seconds until the next day, UTC."""
    now = datetime.now(UTC)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return max(1, round((midnight - now).total_seconds()))
