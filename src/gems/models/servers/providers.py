"""Chat models behind HTTP: OpenAI, servers with OpenAI's protocol, and LangChain's other providers."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from typing import Any

import httpx
from langchain_core.language_models import BaseChatModel
from pydantic import SecretStr

from gems.errors import BackendError, InputError, is_passing_status, is_unloadable, is_unpaid, meant_status
from gems.extras import how_to_install
from gems.models.deadlines import IN_ONE_TRY, end_reads_at
from gems.models.image_refusals import says_no_images
from gems.models.servers.addresses import INVALID_PROXY, checked_url
from gems.models.servers.bodies import keep_whole
from gems.models.servers.error_texts import error_message
from gems.models.servers.provider_settings import OPENAI_S, headers_of, provider_of, settings_for
from gems.models.servers.sent_requests import begin_request, may_send_again, note_refusal, watch
from gems.models.servers.stated_waits import name_wait
from gems.models.servers.told_errors import tell_errors
from gems.options import ChatOptions
from gems.secrets import one_line, remember_secret
from gems.stopping import WaitEnded, is_stopping, pause

__all__ = ["init_provider_chat", "is_of_provider"]


def init_provider_chat(name: str, options: ChatOptions, forms: str) -> BaseChatModel:
    """The chat model ``PROVIDER:MODEL``; with a base URL, the name may also be a model of that server.

    Args:
        name: The model's name.
        options: How the model is called.
        forms: The forms of names that exist, for the error message.

    Raises:
        InputError: The provider is unknown, or its package or key is missing.
    """
    for secret in (options.api_key, *map(SecretStr, headers_of(options).values())):
        remember_secret(secret)
    if options.base_url is not None:
        checked_url(options.base_url)
    kind, _, model = name.partition(":")
    try:
        if model and (provider := provider_of(name)) in OPENAI_S:
            return _openai(provider, model, options)
        return _by_provider(name, options)
    except ImportError as error:
        match = re.search(r"pip install ([\w-]+)", str(error))  # by LangChain, which knows the provider's package
        package = match[1] if match else f"langchain-{kind}"
        command = how_to_install("openai") if provider_of(name) in OPENAI_S else f"pip install {package}"
        raise InputError(f"the chat model {name!r} needs a package ({error}): {command}") from error
    except Exception as error:  # each provider's package raises its own errors, all of them before any request
        # The server's own address was read above.
        reason = INVALID_PROXY if type(error).__name__ == "InvalidURL" else one_line(error)
        raise InputError(f"cannot use the chat model {name!r}: {reason}; give {forms}") from error


def is_of_provider(name: str) -> bool:
    """Whether LangChain knows a provider for a chat model's name.

    It asks a function of LangChain that is not public; with a version that has none, every name passes.
    """
    from langchain.chat_models import base

    try:
        getattr(base, "_parse_model", lambda *_: None)(name, None)
    except ValueError:
        return False
    return True


def _openai(provider: str, model: str, options: ChatOptions) -> BaseChatModel:
    import openai

    from gems.models.servers.openai_chat import AzureChat, OpenAIChat

    settings = settings_for(provider, options)
    # No redirects: they could take prompts and images to any host.
    hooks: dict[str, list[Callable[..., Any]]] = {
        "request": [_end_in(options.timeout)],
        "response": [keep_whole, _set_meant_status, note_refusal, _do_not_retry_in_vain, name_wait],
    }
    settings["http_client"] = openai.DefaultHttpxClient(follow_redirects=False, event_hooks=hooks)
    settings["http_async_client"] = openai.DefaultAsyncHttpxClient(follow_redirects=False)
    if provider == "openai" and options.base_url and not options.api_key and not os.environ.get("OPENAI_API_KEY"):
        settings["api_key"] = "none"  # many servers need no key, but the client does
    chat = AzureChat(model=model, **settings) if provider == "azure_openai" else OpenAIChat(model=model, **settings)
    _let_stops_end_waits(chat.root_client)
    return chat


def _end_in(seconds: float) -> Callable[[httpx.Request], None]:
    """Let each try end in time, whatever the server sends meanwhile, and none begin that the budget has no room for."""

    def limit(request: httpx.Request) -> None:
        if is_stopping():
            raise WaitEnded("stopped before a chat model was asked again")
        if not begin_request():
            raise BackendError("the budget leaves no further try for this", retryable=False)
        request.extensions = {**request.extensions, "trace": watch}
        end_reads_at(time.monotonic() + seconds)

    return limit


def _set_meant_status(response: httpx.Response) -> None:
    """Let a rate limit that a server tells of as a bad request be one, for which the client waits."""
    if response.status_code in (400, 403):
        response.read()
        response.status_code = meant_status(response.status_code, error_message(response.content))


def _do_not_retry_in_vain(response: httpx.Response) -> None:
    """Tell OpenAI's client, in the way in which its own server does, that another try is of no use."""
    if response.is_error:
        response.read()
        reason = error_message(response.content)
        in_vain = is_unpaid(f"{reason} {response.content[:4000].decode('utf-8', 'replace')}")
        in_vain = (
            in_vain or not is_passing_status(response.status_code) or says_no_images(reason) or is_unloadable(reason)
        )
        if IN_ONE_TRY.get() or in_vain or not may_send_again():
            response.headers["x-should-retry"] = "false"


def _let_stops_end_waits(client: Any) -> None:
    """Make a client's waits between its tries end when the run is stopped; a busy server may ask for two minutes.

    The client has no public hook for that. With another version of it, or another provider's, only the grace period
    of a batch bounds these waits.
    """
    seconds_of = getattr(client, "_calculate_retry_timeout", None)
    if seconds_of is None:
        return

    def wait(*args: Any, **kwargs: Any) -> float:
        pause(seconds_of(*args, **kwargs))
        return 0.0

    client._calculate_retry_timeout = wait


def _by_provider(name: str, options: ChatOptions) -> BaseChatModel:
    from langchain.chat_models import init_chat_model

    try:
        model = init_chat_model(name, **settings_for(provider_of(name), options))
    except ValueError:
        # A model of the server, whose name may contain a colon.
        if options.base_url is None:
            raise
        return _openai("openai", name, options)
    if not isinstance(model, BaseChatModel):
        raise InputError(f"{name!r} is not a chat model")
    client: Any = getattr(model, "client", None)
    if isinstance(client, httpx.Client):  # Mistral's, whose authorities are fixed: it does not heed SSL_CERT_FILE
        inner: Any = model
        inner.client = httpx.Client(base_url=client.base_url, headers=client.headers, timeout=client.timeout)
        client.close()
    configuration = getattr(client, "sdk_configuration", None)
    if configuration is not None:  # OpenRouter's client, which tries again for an hour unless it is told not to
        configuration.retry_config = None
    tell_errors(model)
    return model
