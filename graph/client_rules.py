"""What clients of a LangGraph server may set for a run, and what no client may send.

LangGraph's server stores a run's context before the graph sees it. The rules are therefore applied to requests, and the
context schema holds the same settings once more for the graph.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from gems.errors import InputError
from gems.graph.context import GemsContext, fault_of, open_settings, refuse_unknown, similar_setting
from gems.graph.context_schemas import TrustedContext, client_schema
from gems.json_text import parse_json
from gems.nodes.resources import check_names
from gems.secrets import holds_secret, is_secret_name, one_line

__all__ = ["SETTINGS", "TRUST", "ClientRules", "rules_from_environment"]

SETTINGS: Final = "GEMS_SETTINGS"
"""The environment variable that names a TOML or JSON file with the operator's settings."""

TRUST: Final = "GEMS_TRUST_CLIENTS"
"""The environment variable that lets clients set everything: 1, true or yes."""

_STORED: Final = (
    "{name} holds a secret, and this server stores what it is sent; whoever runs it sets keys and passwords in the "
    "server's environment"
)
_ELSEWHERE: Final = frozenset({"filter", "input", "metadata", "resume", "value", "values"})
"""Keys of a request whose content is no context, whatever its keys are called."""
_OF_A_CONFIG: Final = frozenset({"configurable", "recursion_limit", "run_id", "run_name", "tags"})
"""Keys of a config that the server checks itself."""
_TYPES: Final[Mapping[str, type]] = {
    "checkpoint_id": str,
    "checkpoint_map": dict,
    "checkpoint_ns": str,
    "max_concurrency": int,
    "metadata": dict,
    "thread_id": str,
    # What a RemoteGraph within a parent graph passes on.
    "__event_streaming_v2": bool,
    "__pregel_durability": str,
    "__pregel_resume_map": dict,
    "__pregel_resuming": bool,
    "__pregel_stream_messages_v2": bool,
}
"""Names of LangGraph's own that a client may give in a run's config, and their types."""


@dataclass(frozen=True)
class ClientRules:
    """What a server's clients may set.

    Attributes:
        settings: The operator's settings, which no client changes.
        trusts_clients: Whether clients may set everything else, as the operator may.
    """

    settings: GemsContext
    trusts_clients: bool = False

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the settings that a client may give."""
        names = GemsContext.model_fields if self.trusts_clients else open_settings()
        return tuple(name for name in names if name not in self.settings.model_fields_set)

    @cached_property
    def schema(self) -> type[BaseModel]:
        """The context schema of the graph that clients run; Studio shows it as a form."""
        return TrustedContext if self.trusts_clients else client_schema(self.names)

    def check(self, request: object) -> None:
        """Check the JSON of a request.

        Raises:
            InputError: It holds a secret, a setting that only the operator gives or that is unknown, a value out of
                bounds, a name that LangGraph keeps for itself, or an address that the server would call.
        """
        # An item of the store, and an experience that a run recalls, have a key that is none.
        _refuse_secrets(request, lambda name: name.lower() != "key" and is_secret_name(name))
        for key, value in _entries(request, "webhook".__eq__):
            if key == "webhook" and value and not self.trusts_clients:
                raise InputError("webhook is an address that this server would call; only its operator names addresses")
        for key, value in _entries(request, "feedback_keys".__eq__):
            if key == "feedback_keys" and value is not None and not self.trusts_clients:
                raise InputError(
                    "for feedback_keys, this server would call LangSmith with its operator's key; leave it out"
                )
        for key, values in _contexts(request):
            _refuse_secrets(values, is_secret_name)
            for name, value in values.items():
                _check_internal(name, value)
            self._check_context(values, is_ours=key == "context")

    def _check_context(self, values: Mapping[str, Any], *, is_ours: bool) -> None:
        """Check the settings of a run. ``configurable`` also holds what belongs to LangGraph or to other graphs."""
        settings = {name: value for name, value in values.items() if value is not None}
        if "gems" in settings:
            raise InputError(
                "give the settings themselves; only a parent graph in the same program puts them in 'gems'"
            )
        for name in settings:
            if name in GemsContext.model_fields and name not in self.names:
                raise InputError(self._refusal(name))
            if is_ours or (name not in self.names and similar_setting(name, self.names)):
                refuse_unknown(name, self.names)
        try:
            self.schema(**{name: value for name, value in settings.items() if name in self.names})
        except ValidationError as error:
            raise InputError(f"the context's {fault_of(error)}") from None

    def _refusal(self, name: str) -> str:
        if name in self.settings.model_fields_set:
            return f"the operator of this server has fixed {name}; leave it out"
        return (
            f"only the operator of this server sets {name}: in the file that {SETTINGS} names, or by {TRUST}=1, which "
            "lets all clients set everything"
        )


def rules_from_environment() -> ClientRules:
    """The rules that the operator's environment variables give.

    Raises:
        InputError: The settings cannot be read.
    """
    location = os.environ.get(SETTINGS, "")
    try:
        settings = GemsContext.exactly(_content_of(Path(location).expanduser()) if location else {})
        check_names(settings)
    except InputError as error:
        raise InputError(f"{SETTINGS}={location}: {error}") from None
    trust = os.environ.get(TRUST, "").strip().lower()
    if trust not in ("", "0", "false", "no", "1", "true", "yes"):
        raise InputError(f"{TRUST}={trust}: give 1 to let all clients set everything, or 0")
    return ClientRules(settings.as_operator(), trusts_clients=trust in ("1", "true", "yes"))


def _content_of(path: Path) -> Any:
    try:
        text = path.read_text(encoding="utf-8")
        return parse_json(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"is no {'JSON' if path.suffix == '.json' else 'TOML'} ({error})") from error


def _refuse_secrets(content: object, is_secret: Callable[[str], bool]) -> None:
    for name, value in _entries(content, is_secret):
        is_given = isinstance(value, str | int | float) and not isinstance(value, bool) and value != ""
        if (is_given and is_secret(name)) or holds_secret(value):
            raise InputError(_STORED.format(name=one_line(name, 60)))


def _check_internal(name: str, value: object) -> None:
    """Check a name that LangGraph's own settings have: with another's value, it ends every run with a traceback."""
    if value is None:
        return
    if name in _TYPES:
        if not isinstance(value, _TYPES[name]):
            raise InputError(f"{name} has another type than LangGraph gives it; leave it out")
    elif name == "callbacks" or name.startswith("__pregel_"):
        raise InputError(f"{one_line(name, 60)} is LangGraph's own, and no client gives it; leave it out")


def _entries(content: object, inherits: Callable[[str], bool]) -> Iterator[tuple[str, object]]:
    """Every key and value at any depth, with the key that it stands under, or the key above that one that inherits."""
    pending = [("", content)]
    while pending:
        key, part = pending.pop()
        if isinstance(part, dict):
            pending += [(key if inherits(key) else name, value) for name, value in part.items()]
            pending += [("a name", name) for name in part]
        elif isinstance(part, list):
            pending += [(key, element) for element in part]
        else:
            yield key, part


def _contexts(content: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every context in a request, which may hold several runs.

    A checkpoint becomes a part of the run's config, and what LangGraph does not know in a config is ``configurable``.
    """
    pending = [content]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending += part
        elif isinstance(part, dict):
            for key, value in part.items():
                if key in ("context", "configurable", "checkpoint") and isinstance(value, dict):
                    yield key, value
                elif key not in _ELSEWHERE:
                    if key == "config" and isinstance(value, dict):
                        yield key, {name: own for name, own in value.items() if name not in _OF_A_CONFIG}
                    pending.append(value)
