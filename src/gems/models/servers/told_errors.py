"""Errors in answers with status 200, read before a provider's package reads them.

The packages expect an answer there. They stumble over an error without a word of it, or take it for an empty answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, Final, TypeVar

from langchain_core.language_models import BaseChatModel

from gems.errors import BackendError
from gems.models.failures import causes_of
from gems.models.servers.bodies import keep_whole
from gems.models.servers.completions import read_completion, told_error
from gems.models.servers.error_texts import error_message, json_body

__all__ = ["tell_errors", "with_told_errors"]

T = TypeVar("T")

_CLIENTS: Final = (
    "client",  # of Mistral
    "_client._client",  # of Anthropic and Ollama
    "client._client._client",  # of Groq and others with clients that are made like OpenAI's
    "client._api_client._httpx_client",  # of Google
    "client.sdk_configuration.client",  # of OpenRouter
)
"""Where the packages keep their client of httpx. Most have no public way to it; one at another place is left alone."""

_MODEL: Final[ContextVar[str]] = ContextVar("gems_asked_model", default="")
"""The name of the model that GEMS asks. Some packages share a client with everybody, whom this is no business of."""


def tell_errors(model: BaseChatModel) -> None:
    """Let the client of a provider's package raise the errors in answers, in calls by ``with_told_errors``."""
    for path in _CLIENTS:
        client = _at(model, path)
        hooks = getattr(client, "event_hooks", None)
        if isinstance(hooks, Mapping) and _raise_error not in hooks["response"]:
            of_redirects = _raise_lost_question if client.follow_redirects else _raise_redirect
            client.event_hooks = {**hooks, "response": [*hooks["response"], _raise_error, of_redirects]}
    register = getattr(_at(model, "client.meta.events"), "register", None)
    if register is not None:  # Amazon's own client
        register("before-parse", _raise_error_to_amazon, unique_id="gems-told-errors")


def _at(model: BaseChatModel, path: str) -> Any:
    try:
        return attrgetter(path)(model)
    except AttributeError:
        return None


def with_told_errors(call: Callable[[], T], model: BaseChatModel) -> T:
    """Make a call of a model whose server's errors are told.

    Raises:
        BackendError: The server answered with an error and status 200.
    """
    names = (getattr(model, name, None) for name in ("model_name", "model", "model_id"))
    token = _MODEL.set(next((name for name in names if isinstance(name, str)), type(model).__name__))
    try:
        return call()
    except Exception as error:
        # The packages may wrap what is raised in their client as a failure of the connection.
        server_error = next((cause for cause in causes_of(error) if isinstance(cause, BackendError)), None)
        if server_error is None or server_error is error:
            raise
        raise server_error from None
    finally:
        _MODEL.reset(token)


def _raise_error(response: Any) -> None:
    """A hook of httpx for each response."""
    if _MODEL.get() and response.is_success:
        keep_whole(response)
        body = _without_null_parts(b"".join(response.stream))
        response.stream = type(response)(200, content=body).stream
        _raise_error_in(response.read(), response.request.url.netloc.decode())


def _raise_redirect(response: Any) -> None:
    """A hook for a client that follows no redirects: packages read the answer as the model's."""
    if _MODEL.get() and 300 <= response.status_code < 400:
        server = response.request.url.netloc.decode()
        fault = f"{_MODEL.get()} at {server} redirects ({response.status_code}); give the final address as base_url"
        raise BackendError(fault, retryable=False, status_code=response.status_code)


def _raise_lost_question(response: Any) -> None:
    """A hook for a client that follows redirects: it would lose the question, or take it and a key to another host."""
    if response.status_code in (301, 302, 303) or (response.has_redirect_location and _is_elsewhere(response)):
        _raise_redirect(response)


def _is_elsewhere(response: Any) -> bool:
    own = response.request.url
    target = own.join(response.headers["location"])
    is_secure_now = (target.scheme, target.port) == ("https", None)
    return target.host != own.host or not (is_secure_now or (target.scheme, target.port) == (own.scheme, own.port))


def _raise_error_to_amazon(response_dict: dict[str, Any], **_: Any) -> None:
    """A handler of botocore's event before it reads a response.

    It fails on an error that is no object, and shows nothing of one without a message.
    """
    body = response_dict.get("body")
    if not _MODEL.get() or not isinstance(body, bytes):
        return
    if response_dict["status_code"] < 300:
        response_dict["body"] = body = _without_null_parts(body)
        _raise_error_in(body, "Bedrock")
    content = json_body(body)
    fields = content if isinstance(content, Mapping) else {}
    if response_dict["status_code"] >= 300 and not {"message", "Message"} & fields.keys():
        response_dict["body"] = json.dumps({**fields, "message": error_message(body)}).encode()


def _without_null_parts(body: bytes) -> bytes:
    """An answer without nulls among the parts of its content, which the packages fail on."""
    answer = json_body(body) if b"null" in body else None
    tidy = _tidy_parts(answer)
    return body if tidy == answer else json.dumps(tidy).encode()


def _tidy_parts(value: object, name: str = "") -> object:
    if isinstance(value, Mapping):
        return {key: _tidy_parts(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [_tidy_parts(item) for item in value if item is not None or name not in ("content", "parts")]
    return value


def _raise_error_in(body: bytes, server: str) -> None:
    if error := told_error(read_completion(body), f"{_MODEL.get()} at {server}"):
        raise error
