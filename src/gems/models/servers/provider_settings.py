"""The chat options as the parameters of each provider's LangChain package: one table."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from gems.models.deadlines import DEADLINE
from gems.models.tries import TRIES
from gems.options import ChatOptions

__all__ = ["OPENAI_S", "headers_of", "honours", "provider_of", "settings_for"]

_RETRIES: Final = 2
"""Further tries of a call, by OpenAI's client or by ``in_tries``, which wait as long as a busy server asks them to."""

_WAITING_SECONDS: Final = 60.0
"""How long the waits between the tries may take in all."""

Settings = dict[str, Any]
_Writer = Callable[[Any], Settings]
"""The parameters of a package that honour the value of an option."""


def _as(name: str) -> _Writer:
    return lambda value: {name: value}


def headers_of(options: ChatOptions) -> dict[str, str]:
    """The additional headers of each request; they may hold keys."""
    headers = json.loads(options.headers.get_secret_value()) if options.headers else {}
    return {str(name): str(value) for name, value in headers.items()}


def _anthropic_thinking(budget: int) -> Settings:
    return {"thinking": {"type": "enabled", "budget_tokens": budget} if budget else {"type": "disabled"}}


def _openrouter_thinking(budget: int) -> Settings:
    return {"reasoning": {"max_tokens": budget} if budget else {"enabled": False}}


_COMMON: Final[dict[str, _Writer]] = {
    **{name: _as(name) for name in ("base_url", "api_key", "temperature", "max_tokens", "timeout", "reasoning_effort")},
    "headers": _as("default_headers"),
}
"""The parameters that most of the packages have; what a package lacks, it drops, and ``chat_options`` refuses it."""

_OPENAI: Final[dict[str, _Writer]] = {**_COMMON, "extra_body": _as("extra_body")}

_BY_PROVIDER: Final[dict[str, dict[str, _Writer]]] = {
    "openai": _OPENAI,
    "azure_openai": _OPENAI,
    "deepseek": _OPENAI,
    "xai": _OPENAI,
    "anthropic": {
        **_COMMON,
        "thinking_budget": _anthropic_thinking,
        "extra_body": lambda body: {"model_kwargs": {"extra_body": body}},
    },
    "google_genai": {**_COMMON, "thinking_budget": _as("thinking_budget"), "headers": _as("additional_headers")},
    "mistralai": {
        **{name: _COMMON[name] for name in ("base_url", "api_key", "temperature", "max_tokens")},
        "timeout": lambda seconds: {"timeout": max(1, round(seconds))},
        "reasoning_effort": lambda effort: {"model_kwargs": {"reasoning_effort": effort}},
        "extra_body": lambda body: {"model_kwargs": body},
    },
    "ollama": {
        **{name: _COMMON[name] for name in ("base_url", "temperature")},
        "max_tokens": _as("num_predict"),
        "num_ctx": _as("num_ctx"),
        "timeout": lambda seconds: {"client_kwargs": {"timeout": seconds}},
        "headers": lambda headers: {"client_kwargs": {"headers": headers}},
        "api_key": lambda key: {"client_kwargs": {"headers": {"Authorization": f"Bearer {key.get_secret_value()}"}}},
        "reasoning_effort": _as("reasoning"),
        "thinking_budget": lambda budget: {} if budget else {"reasoning": False},
    },
    "openrouter": {
        **_COMMON,
        "timeout": lambda seconds: {"timeout": round(seconds * 1000)},  # this package counts milliseconds
        "reasoning_effort": lambda effort: {"reasoning": {"effort": effort}},
        "thinking_budget": _openrouter_thinking,
        "extra_body": lambda body: {"model_kwargs": body},
    },
    "bedrock_converse": {
        **_COMMON,
        "timeout": lambda seconds: {"timeout": max(1, round(seconds))},
        "thinking_budget": lambda budget: {"additional_model_request_fields": _anthropic_thinking(budget)},
        "extra_body": lambda body: {"additional_model_request_fields": body},
    },
}
"""Where a provider's package differs: its parameters by option. An option that is missing here is refused."""

_WITHOUT_RETRIES: Final = frozenset({"ollama"})
OPENAI_S: Final = frozenset({"openai", "azure_openai"})
"""Providers that are asked by our own classes, see ``openai_chat``, whose clients count their requests."""
_COUNTING_TRIES: Final = frozenset({"google_genai"})
"""Providers whose ``max_retries`` is the number of tries."""


def provider_of(name: str) -> str:
    """The provider in a chat model's name, in LangChain's spelling."""
    return name.partition(":")[0].strip().lower().replace("-", "_")


def settings_for(provider: str, options: ChatOptions) -> Settings:
    """The options as parameters of a provider's package.

    Args:
        provider: The provider, such as "anthropic".
        options: The options.
    """
    writers = _BY_PROVIDER.get(provider, _COMMON)
    values = {name: getattr(options, name) for name in writers if getattr(options, name) is not None}
    if "extra_body" in values:
        values["extra_body"] = json.loads(values["extra_body"])
    if "headers" in values:
        values["headers"] = headers_of(options)
    retries = 0 if provider in _WITHOUT_RETRIES else _RETRIES
    client_retries = _RETRIES if provider in OPENAI_S else 0  # only those are counted
    settings: Settings = {
        # Otherwise the models would stream in a graph that streams messages, as in Studio. A form is of no use before
        # it is complete, and streams have no log-probabilities, no reasoning, and errors of their own.
        "disable_streaming": True,
        "metadata": {DEADLINE: (1 + retries) * options.timeout + (_WAITING_SECONDS if retries else 0.0)},
    }
    if retries:
        settings["max_retries"] = client_retries + (provider in _COUNTING_TRIES)
        settings["metadata"] |= {} if client_retries else {TRIES: 1 + retries}
    for name, value in values.items():
        settings = _merged(settings, writers[name](value))
    return settings


def honours(provider: str, option: str) -> bool | None:
    """Whether a provider's package has a parameter for an option; None if the package is unknown."""
    return option in _BY_PROVIDER[provider] if provider in _BY_PROVIDER else None


def _merged(settings: Mapping[str, Any], more: Mapping[str, Any]) -> Settings:
    """Both settings; two objects of the same name become one."""
    merged = dict(settings)
    for name, value in more.items():
        before = merged.get(name)
        merged[name] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged
