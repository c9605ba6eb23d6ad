"""Chat models by name: the embedded pocket model, one in this process, any server, any of LangChain's providers."""

from __future__ import annotations

import os
from functools import cache
from typing import Any, Final

from langchain_core.language_models import BaseChatModel

from gems.authority import NO_AUTHORITY, Authority, call_factory, is_code
from gems.errors import InputError
from gems.options import ChatOptions
from gems.secrets import one_line, remember_secret

__all__ = ["CHAT_FORMS", "init_mllm", "model_fingerprint"]


DEFAULTS: Final = ChatOptions()

CHAT_FORMS: Final = (
    "pocket, transformers:FOLDER_OR_REPO[@REVISION], python:MODULE:FACTORY, or PROVIDER:MODEL such as openai:gpt-5"
)
"""What ``init_mllm`` understands."""

_RETRIES: Final = 2
"""Of the provider's client, which waits as long as a busy server asks it to."""


def init_mllm(name: str, options: ChatOptions = DEFAULTS, authority: Authority = NO_AUTHORITY) -> BaseChatModel:
    """The vision chat model of that name, made once per process and set of options.

    ``python:MODULE:FACTORY`` is your own chat model: MODULE is imported, and FACTORY is called with ``options`` as its
    only argument. It returns a LangChain chat model; if that has a ``fingerprint``, records identify the model by it.
    Such a name runs code, so ``authority`` must allow it.

    Args:
        name: One of ``CHAT_FORMS``. ``PROVIDER:MODEL`` is any that LangChain's ``init_chat_model`` takes; with a base
            URL in the options, a name without a provider is a model of an OpenAI-compatible server (vLLM, SGLang, ...).
        options: How it is called. Keys and base URLs that are not given come from the provider's own environment
            variables.
        authority: What the operator allows.

    Raises:
        InputError: The name has no known provider, the provider's package or key is missing, or it names code that is
            not allowed, is missing, or returns no chat model.
    """
    authority.check(name)  # outside the cache: a model that exists already is not for everybody
    return _made_once(name, options)


@cache
def _made_once(name: str, options: ChatOptions) -> BaseChatModel:
    kind, _, model = name.partition(":")
    if name == "pocket":
        from gems.models.pocket.chat import PocketChatModel

        return PocketChatModel()
    if kind == "transformers" and model:
        from gems.models.transformers.chat import init_transformers_chat

        return init_transformers_chat(model, name, options)
    if is_code(name):
        return _own_model(name, options)
    remember_secret(options.api_key)
    if options.base_url is not None:
        from gems.models.servers.base import checked_url

        checked_url(options.base_url)
    try:
        if kind == "openai" and model:
            return _openai(model, options)
        return _by_provider(name, options)
    except ImportError as error:
        package = f"langchain-{kind}" if kind != "openai" else "gems-graph[openai]"
        raise InputError(f"the chat model {name!r} needs a package: pip install {package!r} ({error})") from error
    except Exception as error:  # each provider's package has errors of its own, all raised before anything is sent
        reason = one_line(error)
        raise InputError(f"cannot use the chat model {name!r}: {reason}; give {CHAT_FORMS}") from error


def _own_model(name: str, options: ChatOptions) -> BaseChatModel:
    model = call_factory(name, options)
    if not isinstance(model, BaseChatModel):
        raise InputError(f"{name} returned no LangChain chat model, but {type(model).__name__}")
    return model


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


def model_fingerprint(model: BaseChatModel) -> str:
    """What identifies a chat model in a run's record: its weights' hash where it has one, else its model name."""
    for attribute in ("fingerprint", "model_name", "model"):
        value = getattr(model, attribute, None)
        if isinstance(value, str) and value:
            return value
    return type(model).__name__
