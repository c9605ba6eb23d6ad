"""Whether a record's settings are those of now: what another version of GEMS has added since is at its default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from gems.graph.context import GemsContext

__all__ = ["changed_settings", "identifying"]


def changed_settings(record: object, context: GemsContext) -> list[str]:
    """The names of the settings of which a record says something else.

    A record holds every setting that there was when it was written, also those at their defaults. So a setting that it
    lacks came later, and had the effect of its default; and a default that was changed since is a change.

    Args:
        record: Settings as JSON, as an earlier version may have written them.
        context: The settings of now.
    """
    if not isinstance(record, Mapping):
        return ["all of them"]
    now, default = (settings.model_dump(mode="json") for settings in (context, type(context)()))
    return [*_changes(identifying(record), identifying(now), default)]


def identifying(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON, without prices that no limit depends on: they can be given later."""
    budget = settings.get("budget")
    if isinstance(budget, Mapping) and budget.get("cost") is None:
        budget = {name: limit for name, limit in budget.items() if name != "prices"}
    return {**settings, "budget": budget}


def _changes(then: Mapping[str, Any], now: Mapping[str, Any], default: Mapping[str, Any]) -> Iterator[str]:
    for name in sorted({*then, *now}):
        usual = default.get(name)
        before, after = (settings.get(name, usual) for settings in (then, now))
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from (f"{name}.{part}" for part in _changes(before, after, usual if usual else {}))
        elif before != after:
            yield name
