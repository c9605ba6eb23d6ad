"""Failures of chat models in terms of HTTP, whatever exception the provider's package raises.

The packages may not be installed, so their exceptions are known by the names of their classes, and by what they carry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from traceback import walk_tb
from typing import Final

from gems.errors import (
    PAY_HINT,
    BackendError,
    GemsError,
    is_passing_status,
    is_unloadable,
    is_unpaid,
    lacks_memory,
    may_cost,
    meant_status,
)
from gems.models.image_refusals import says_no_images
from gems.models.servers.addresses import PROXY_HINT, advice_on_certificates, advice_on_proxies, advice_on_schemes
from gems.models.servers.bodies import is_page
from gems.models.servers.error_texts import error_message, json_of_error, says_refusal, text_of, words_of
from gems.models.servers.stated_waits import retry_after, wait_in
from gems.secrets import one_line

__all__ = [
    "advice_for",
    "as_backend_error",
    "causes_of",
    "has_sent_nothing",
    "is_moderated",
    "is_of_account",
    "is_passing",
    "is_too_long",
    "long_wait",
    "may_be_charged",
    "reads_no_images",
    "reason_of",
    "seconds_to_wait",
    "status_of",
]

_CERTAIN_STATUSES: Final = {"ContextOverflowError": 413}
"""What the names of exceptions mean as a status of HTTP, whatever status they carry."""

_STATUSES: Final = {
    # langchain-core's own, which most providers' packages inherit from.
    "ModelAuthenticationError": 401,
    "ModelPermissionDeniedError": 403,
    "ModelInvalidRequestError": 400,
    "ModelNotFoundError": 404,
    "ModelRateLimitError": 429,
    "ModelTimeoutError": 408,
    "ModelConnectionError": 503,
    "ModelAPIError": 500,
    # openai, anthropic, httpx and requests; then botocore, openrouter, google-auth, torch and Python itself; then
    # answers that are damaged, or lost on their way, of httpx, aiohttp, requests and urllib3.
    **dict.fromkeys(("APITimeoutError", "TimeoutException", "TimeoutError", "Timeout"), 408),
    **dict.fromkeys(("APIConnectionError", "TransportError", "HTTPClientError", "NoResponseError"), 503),
    **dict.fromkeys(("ConnectionError", "OutOfMemoryError"), 503),
    **dict.fromkeys(("DecodingError", "ClientConnectionError", "ClientPayloadError", "ChunkedEncodingError"), 503),
    **dict.fromkeys(("ContentDecodingError", "ProtocolError", "DecodeError", "IncompleteRead"), 503),
    **dict.fromkeys(("NoCredentialsError", "TokenRetrievalError", "GoogleAuthError"), 401),
}
"""The same for exceptions that carry none. A name further up in this table counts more."""

_NEVER_PASSES: Final = frozenset({"UnsupportedProtocol", "TooManyRedirects", "InvalidURL", "InvalidSchema"})
"""Exceptions of clients about an address, which is no better at the next try; some count as of a connection."""

_DEPTH: Final = 6
"""How many causes of an exception are looked at."""


def status_of(error: BaseException) -> int | None:
    """The status of HTTP that a failure stands for; None if it is no failure of a server.

    By what the exception carries, or else by its class; then by its causes.
    """
    if isinstance(error, BackendError):
        return error.status_code
    causes = list(causes_of(error))
    readers = (lambda e: _by_class(e, _CERTAIN_STATUSES), _carried_status, lambda e: _by_class(e, _STATUSES))
    status = next((status for cause in causes for read in readers if (status := read(cause)) is not None), None)
    return status if status not in (400, 403) else meant_status(status, reason_of(error))


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """An exception, and what it came of, as far down as that matters."""
    cause: BaseException | None = error
    for _ in range(_DEPTH):
        if cause is None:
            return
        yield cause
        # A package that stumbles over the body of an error was about to tell of that error.
        is_stumble = isinstance(cause, (AttributeError, LookupError, TypeError, ValueError))
        is_meant = cause.__suppress_context__ or isinstance(cause, GemsError)
        cause = cause.__cause__ or (cause.__context__ if is_stumble and not is_meant else None)


def _by_class(error: BaseException, statuses: Mapping[str, int]) -> int | None:
    names = {base.__name__ for base in type(error).__mro__}
    return next((status for name, status in statuses.items() if name in names), None)


def _carried_status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata") if isinstance(response, Mapping) else None  # of botocore
    carried = (
        response.get("originalStatusCode") if isinstance(response, Mapping) else None,  # the model's own, of Bedrock
        getattr(error, "code", None),  # of Google; a word elsewhere
        getattr(error, "status_code", None),
        getattr(response, "status_code", None),
        metadata.get("HTTPStatusCode") if isinstance(metadata, Mapping) else None,
    )
    return next((value for value in carried if type(value) is int and 400 <= value < 600), None)


def reason_of(error: BaseException) -> str:
    """What a server said on one line, without our words, or those of the package, around it.

    Our own words name the model, and "x-vision" is no complaint about images.
    """
    if isinstance(error, BackendError):
        return error.reason
    texts = (words for cause in causes_of(error) for words in _bodies(cause) if words)
    answers = (cause for cause in causes_of(error) if _carried_status(cause) is not None)
    return one_line(next(texts, "") or words_of(str(next(answers, error))), 500)  # no page, which packages put there


def _bodies(error: BaseException) -> Iterator[str]:
    """The words in what an exception carries of a server's error."""
    return (error_message(body) if isinstance(body, bytes) else words_of(body) for body in _carried_bodies(error))


def _carried_bodies(error: BaseException) -> Iterator[object]:
    """What an exception carries of a server's error, read or as it came; an answer that is none is no reason."""
    if _carried_status(error) is None:
        return
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # of botocore
        yield response.get("Error")
    for name in ("body", "details", "error"):  # the last one is of Ollama
        carried = getattr(error, name, None)
        yield carried if isinstance(carried, (str, Mapping)) else ""
    try:
        content = getattr(response, "content", None)
    except Exception:  # httpx: the answer was streamed, and nobody has read it
        content = None
    yield content if isinstance(content, bytes) else ""


_TOO_LONG: Final = re.compile(
    r"context.{0,24}(?:length|window|size|limit)|maximum context|n_ctx"
    r"|(?:prompt|input|request).{0,40}too (?:long|large)"
    r"|too many (?:input )?tokens|tokens?.{0,40}(?:exceed|limit of|longer than)|exceed.{0,60}\btokens?\b",
    re.IGNORECASE,
)


def is_too_long(error: BaseException) -> bool:
    """Whether a request was longer than the model's context, which says nothing about the way in which it asked."""
    status = status_of(error)
    return status == 413 or (status in (400, 422, 500) and bool(_TOO_LONG.search(reason_of(error))))


def is_moderated(error: BaseException) -> bool:
    """Whether a provider's moderation refused a request, which says nothing about the way in which it asked."""
    return status_of(error) in (400, 403, 422, 451) and says_refusal(reason_of(error))


def reads_no_images(error: BaseException) -> bool:
    """Whether a model reads no images at all, as its server says: another image, or way of asking, is no better."""
    is_refusal = status_of(error) in (400, 404, 415, 422, 500, 501) or isinstance(error, NotImplementedError)
    return is_refusal and not (is_too_long(error) or is_moderated(error)) and says_no_images(reason_of(error))


def is_passing(error: BaseException) -> bool:
    """Whether a failure is transient, so that another try may help."""
    status = status_of(error)
    if status is None or not is_passing_status(status):
        return False
    if any(type(cause).__name__ in _NEVER_PASSES for cause in causes_of(error)):
        return False
    in_vain = is_unpaid(f"{reason_of(error)} {error}") or is_unloadable(reason_of(error)) or reads_no_images(error)
    return not (in_vain or _advice_on_connections(error))


def _advice_on_connections(error: BaseException) -> str:
    """What to do about a connection that no other try would make either; else empty."""
    is_sent = may_be_charged(error)
    for cause in causes_of(error):
        if advice := advice_on_certificates(str(cause), is_sent=is_sent) or advice_on_proxies(cause):
            # Amazon's client does not heed the variable of all others.
            is_amazon_s = type(cause).__module__.startswith("botocore")
            return advice.replace("SSL_CERT_FILE", "AWS_CA_BUNDLE") if is_amazon_s else advice
    return ""


def seconds_to_wait(error: BaseException) -> float:
    """How long a server asks to wait before the next try; 0 if it does not say."""
    responses = [getattr(cause, "response", None) for cause in causes_of(error)]
    metadata = [response.get("ResponseMetadata") for response in responses if isinstance(response, Mapping)]  # botocore
    headers = [fields.get("HTTPHeaders") for fields in metadata if isinstance(fields, Mapping)]
    headers += [getattr(response, "headers", None) for response in responses]
    waits = [retry_after(lines) for lines in headers if isinstance(lines, Mapping)]
    return max(waits, default=0.0) or max(map(_wait_in_body, causes_of(error)), default=0.0)


def _wait_in_body(error: BaseException) -> float:
    """The wait that an exception states in what it carries of a server's error, or else in its own words."""
    bodies = (_read(body) if isinstance(body, bytes) else body for body in _carried_bodies(error))
    return max(map(wait_in, bodies), default=0.0) or (wait_in(str(error)) if _carried_status(error) else 0.0)


def _read(body: bytes) -> object:
    content = json_of_error(body)
    return text_of(body) if content is None else content


_LOST_ANSWERS: Final = frozenset(
    {"ReadError", "ReadTimeout", "RemoteProtocolError", "ReadTimeoutError", "ConnectionClosedError", "IncompleteRead"}
    | {"DecodingError", "ClientPayloadError", "ServerDisconnectedError", "ChunkedEncodingError", "ContentDecodingError"}
    | {"ProtocolError", "DecodeError"}
)
"""Exceptions of HTTP clients about an answer that did not arrive: the request had been sent."""


_NOT_SENT: Final = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}
    | {"ConnectTimeoutError", "EndpointConnectionError", "ProxyConnectionError"}
)
"""Exceptions of httpx and botocore about a connection that was never made."""


def may_be_charged(error: BaseException) -> bool:
    """Whether a server may have answered, and charged for it, although there is no answer."""
    if has_sent_nothing(error) or is_unloadable(reason_of(error)):
        return False
    status = status_of(error)
    is_lost = any({base.__name__ for base in type(cause).__mro__} & _LOST_ANSWERS for cause in causes_of(error))
    return is_lost or (status is not None and may_cost(status))


def has_sent_nothing(error: BaseException) -> bool:
    """Whether there was no connection to the server yet, or only one to a proxy, which was asked to make it.

    What ends a connection has the same class whoever was asked. Httpcore's own steps tell: their ``request`` is then
    that of the tunnel. If another version of it does not have that, the failure counts as one that may be charged.
    """
    for cause in causes_of(error):
        if {base.__name__ for base in type(cause).__mro__} & _NOT_SENT:
            return True
        for frame, _ in walk_tb(cause.__traceback__):
            if getattr(frame.f_locals.get("request"), "method", None) == b"CONNECT":
                return True
    return False


def as_backend_error(error: Exception, model: str, *, has_retried: bool = False) -> Exception:
    """What a call raised, as a BackendError of one line, without keys or the provider's objects that hold them.

    Args:
        error: The exception.
        model: The model's name, for the message.
        has_retried: Whether the provider's client has tried again already. What may have been charged is enough then.
    """
    if isinstance(error, GemsError):
        return error
    status, reason = status_of(error), reason_of(error)
    kind = type(error).__name__
    if status is None:
        words = f"{kind}: {reason}" if reason else kind
    elif _has_answered(error):
        words = f"answers {status}{reason and f': {reason}'}"
    else:
        words = f"{reason or kind}{_reason_below(error)}"
    # After a timeout, the provider's client has waited long enough, whether or not the server has seen the request.
    retryable = is_passing(error) and not (has_retried and (status == 408 or may_be_charged(error)))
    message = f"{model}: {words}{long_wait(error)}{advice_for(error)}"
    failure = BackendError(message, retryable=retryable, status_code=status, reason=reason)
    failure.requests = int(not has_sent_nothing(error))
    return failure


_WORTH_TELLING: Final = 10.0
"""Seconds of a wait that tries may have ended for."""


def long_wait(error: BaseException) -> str:
    """The wait that a server asks for, in brackets; empty if its own words name it, or it is short."""
    seconds = seconds_to_wait(error) if is_passing(error) else 0.0
    is_told = seconds < _WORTH_TELLING or wait_in(reason_of(error))
    return "" if is_told else f" (it asks to wait {seconds:.0f} s)"


def _reason_below(error: BaseException) -> str:
    """The cause of a failed connection, in brackets; empty if the failure says it, or has none."""
    *_, cause = causes_of(error)
    words = one_line(cause, 300)
    return f" ({words})" if words and words not in one_line(error, 500) else ""


def _has_answered(error: BaseException) -> bool:
    return any(_carried_status(cause) is not None for cause in causes_of(error))


def advice_for(error: BaseException) -> str:
    """What to do about a failure, to be put after its message; empty if the message says it."""
    if is_too_long(error):
        return "; it was asked more than fits into its context: give one with a larger context (Ollama: num_ctx)"
    if is_moderated(error):
        return "; its provider's moderation refuses the words or the image"
    if _is_of_money(error):
        return PAY_HINT
    if reads_no_images(error):
        return "; it reads no images: give a verifier that sees images (--verifier; of gems eval, --judge too)"
    if lacks_memory(reason_of(error)):
        return _SPARE_MEMORY
    contents = (text_of(_content_of(cause) or b"")[:2000] for cause in causes_of(error))
    if advice := advice_on_schemes(" ".join([reason_of(error), *contents])):  # of a page, nothing is a reason
        return advice
    if status_of(error) == 407:
        return PROXY_HINT
    if any(map(_is_page, causes_of(error))):
        return _OF_GATEWAYS.get(status_of(error) or 0, "")
    return _advice_on_connections(error)


_SPARE_MEMORY: Final = (
    "; its machine has too little memory: free some there, or give a smaller model or context (Ollama: num_ctx)"
)


_OF_GATEWAYS: Final = {
    403: "; that is a page: set the right key, or the server's own address if a gateway before it refuses this machine",
    **dict.fromkeys(
        (502, 503, 504),
        "; that is a page of a gateway before it: look whether the server runs, or give its own address",
    ),
}
"""What to do about a page in place of a model's answer, by its status."""


def _is_page(error: BaseException) -> bool:
    content = _content_of(error)
    return "<html" in str(error).lower() if content is None else is_page(content)


def _content_of(error: BaseException) -> bytes | None:
    """The answer that an exception carries, as it came; None if it carries none."""
    try:
        content = getattr(getattr(error, "response", None), "content", None)
    except Exception:  # httpx: the answer was streamed, and nobody has read it
        return b""
    return content if isinstance(content, bytes) else None


def is_of_account(error: BaseException) -> bool:
    """Whether a server admits nothing with this key, or on this account: it will refuse the next call too."""
    return (status_of(error) in (401, 403) and not is_moderated(error)) or _is_of_money(error)


def _is_of_money(error: BaseException) -> bool:
    return status_of(error) == 402 or is_unpaid(f"{reason_of(error)} {error}")
