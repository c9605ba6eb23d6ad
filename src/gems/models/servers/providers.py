"""Chat models behind HTTP: OpenAI, every server that speaks its protocol, and any other of LangChain's providers."""

from __future__ import annotations

import os
from typing import Any, Final

from langchain_core.language_models import BaseChatModel

from gems.errors import InputError
from gems.models.servers.base import checked_url
from gems.options import ChatOptions
from gems.secrets import one_line, remember_secret

__all__ = ["init_provider_chat"]

_RETRIES: Final = 2
"""How often a provider's client tries again. It waits as long as a busy server asks it to."""


def init_provider_chat(name: str, options: ChatOptions, forms: str) -> BaseChatModel:
    """The chat model ``PROVIDER:MODEL``, or a server's model by the server's own name if there is a base URL.

    Args:
        name: The model's name.
        options: How it is called.
        forms: The names that a user can give, for the error message.

    Raises:
        InputError: The name has no known provider, or the provider's package or key is missing.
    """
    remember_secret(options.api_key)
    if options.base_url is not None:
        checked_url(options.base_url)
    kind, _, model = name.partition(":")
    try:
        if kind == "openai" and model:
            return _openai(model, options)
        return _by_provider(name, options)
    except ImportError as error:
        package = f"langchain-{kind}" if kind != "openai" else "gems-graph[openai]"
        raise InputError(f"the chat model {name!r} needs a package: pip install {package!r} ({error})") from error
    except Exception as error:  # each provider's package has errors of its own, all raised before anything is sent
        reason = one_line(error)
        raise InputError(f"cannot use the chat model {name!r}: {reason}; give {forms}") from error


def _openai(model: str, options: ChatOptions) -> BaseChatModel:
    from gems.models.servers.openai_chat import OpenAIChat

    settings = _settings(options)
    if options.base_url and not options.api_key and not os.environ.get("OPENAI_API_KEY"):
        settings["api_key"] = "none"  # a server of one's own often wants none, but the client wants something
    chat: BaseChatModel = OpenAIChat(model=model, **settings)
    return chat


def _by_provider(name: str, options: ChatOptions) -> BaseChatModel:
    from langchain.chat_models import init_chat_model

    try:
        model = init_chat_model(name, **_settings(options))
    except ValueError:
        # A server's models have names of their own, with or without a colon in them.
        if options.base_url is None:
            raise
        return _openai(name, options)
    if not isinstance(model, BaseChatModel):
        raise InputError(f"{name!r} is not one chat model")
    return model


def _settings(options: ChatOptions) -> dict[str, Any]:
    """The parameters that LangChain's chat models have in common."""
    given = {name: getattr(options, name) for name in ("base_url", "api_key", "temperature", "max_tokens")}
    return {
        "timeout": options.timeout,
        "max_retries": _RETRIES,
        # A graph that streams messages (Studio does) would have the models stream too: no form is read before it is
        # whole, and what streams has no log-probabilities, no reasoning, and errors of its own.
        "disable_streaming": True,
        **{name: value for name, value in given.items() if value is not None},
    }
