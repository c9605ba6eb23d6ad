"""What the options of a model do: each one is honoured, refused, or left at its default.

A backend refuses what it cannot honour by effect, not only what it does not know by name. The refusal comes before
anything is spent, and ``gems doctor`` shows the whole table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol, runtime_checkable

from pydantic import BaseModel, SecretStr

from gems.errors import InputError

__all__ = [
    "ExplainsOptions",
    "OptionEffect",
    "RefusedOptionsError",
    "changed_options",
    "effects_of",
    "require_honoured",
]


@dataclass(frozen=True, slots=True)
class OptionEffect:
    """What one option does with one model.

    Attributes:
        option: The option's name.
        status: "default" is an option that was not set.
        detail: Its value, its default, or why it is refused.
    """

    option: str
    status: Literal["honoured", "refused", "default"]
    detail: str


class RefusedOptionsError(InputError):
    """A model cannot honour an option.

    Attributes:
        effects: What every option does, the refused ones among them.
    """

    def __init__(self, message: str, effects: Iterable[OptionEffect]) -> None:
        super().__init__(message)
        self.effects: Final = tuple(effects)


@runtime_checkable
class ExplainsOptions(Protocol):
    """What a backend may offer in addition: an account of its options, before anything is drawn."""

    def option_effects(self, *, here: bool = True) -> tuple[OptionEffect, ...]:
        """What each option that was set does, and the known defaults of others.

        Args:
            here: Also judge what depends on this machine, such as the device. False where another machine will draw.
        """
        ...


def changed_options(options: BaseModel) -> dict[str, Any]:
    """The options that differ from their defaults."""
    fields = type(options).model_fields
    return {name: value for name in fields if (value := getattr(options, name)) != fields[name].default}


def effects_of(
    options: BaseModel, refusals: Mapping[str, str], defaults: Mapping[str, object] | None = None
) -> tuple[OptionEffect, ...]:
    """The effects of options, in the order of their fields.

    Args:
        options: The options; those that differ from their defaults are honoured unless they are refused.
        refusals: Why options are refused, by name.
        defaults: The values that the model uses for options that are not set.
    """
    changed = changed_options(options)
    defaults = defaults or {}
    effects = []
    for name in type(options).model_fields:
        if name in refusals:
            effects.append(OptionEffect(name, "refused", refusals[name]))
        elif name in changed:
            shown = "set, not shown" if isinstance(changed[name], SecretStr) or "url" in name else f"{changed[name]}"
            effects.append(OptionEffect(name, "honoured", shown))
        elif name in defaults:
            effects.append(OptionEffect(name, "default", f"{defaults[name]}"))
    return tuple(effects)


def require_honoured(name: str, effects: Iterable[OptionEffect]) -> None:
    """Check that no option is refused.

    Args:
        name: The model's name, for the message.
        effects: The effects of its options.

    Raises:
        RefusedOptionsError: One is; the message has the reasons for all of them.
    """
    effects = tuple(effects)
    if reasons := [effect.detail for effect in effects if effect.status == "refused"]:
        raise RefusedOptionsError(f"{name}: {'; '.join(reasons)}", effects)
