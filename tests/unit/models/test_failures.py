from __future__ import annotations

from typing import Any

import pytest

from gems.errors import BackendError, InputError
from gems.models.failures import as_backend_error, is_moderated, is_passing, is_too_long, status_of


def raised(name: str, *bases: type, message: str = "no", cause: Exception | None = None, **fields: Any) -> Exception:
    """An exception of a class with this name and these bases, as a provider's package raises them."""
    error: Exception = type(name, bases or (Exception,), {})(message)
    for field, value in fields.items():
        setattr(error, field, value)
    error.__cause__ = cause
    return error


def core(name: str) -> type:
    return type(name, (Exception,), {})


FAILED_INSIDE = {"Error": {"Code": "ModelErrorException"}, "ResponseMetadata": {"HTTPStatusCode": 424}}
AMAZON = {"Error": {"Code": "ThrottlingException", "Message": "slow"}, "ResponseMetadata": {"HTTPStatusCode": 429}}


@pytest.mark.parametrize(
    ("error", "status", "passes"),
    [
        (raised("Any", core("ModelRateLimitError")), 429, True),
        (raised("Any", core("ModelAPIError")), 500, True),
        (raised("Any", core("ModelAPIError"), status_code=529), 529, True),
        (raised("Any", core("ModelConnectionError")), 503, True),
        (raised("Any", core("ModelTimeoutError")), 408, True),
        (raised("Any", core("ModelAuthenticationError")), 401, False),
        (raised("Any", core("ModelPermissionDeniedError")), 403, False),
        (raised("Any", core("ModelInvalidRequestError")), 400, False),
        (raised("Any", core("ModelNotFoundError")), 404, False),
        (raised("Any", core("ContextOverflowError"), status_code=400), 413, False),
        (raised("Wrapper", cause=raised("ClientError", code=429)), 429, True),
        (raised("ServerError", code=503), 503, True),
        (raised("RateLimit", code="rate_limit_exceeded", status_code=429), 429, True),
        (raised("Status", response=type("Response", (), {"status_code": 502})()), 502, True),
        (raised("ClientError", response=AMAZON), 429, True),
        (raised("ModelErrorException", response={**FAILED_INSIDE, "originalStatusCode": 500}), 500, True),
        (raised("ModelErrorException", response={**FAILED_INSIDE, "originalStatusCode": 400}), 400, False),
        (raised("EndpointConnectionError", core("ConnectionError")), 503, True),
        (raised("ReadTimeoutError", core("HTTPClientError")), 503, True),
        (raised("NoCredentialsError"), 401, False),
        (raised("DecodingError", core("RequestError")), 503, True),
        (raised("TooManyRedirects", core("RequestError")), None, False),
        (raised("UnsupportedProtocol", core("TransportError")), 503, False),
        (raised("Any", core("APIConnectionError"), cause=raised("TooManyRedirects")), 503, False),
        (raised("ServerDisconnectedError", core("ClientConnectionError")), 503, True),
        (raised("ClientPayloadError"), 503, True),
        (raised("ReadTimeout", core("Timeout")), 408, True),
        (raised("ChunkedEncodingError"), 503, True),
        (raised("ContentDecodingError"), 503, True),
        (ConnectionResetError(), 503, True),
        (TimeoutError(), 408, True),
        (raised("Bug", code=14), None, False),
        (raised("Grpc", code=lambda: 429), None, False),
        (KeyError("choices"), None, False),
        (raised("Any", core("ModelRateLimitError"), message="insufficient_quota"), 429, False),
    ],
)
def test_every_package_s_exceptions_have_a_status(error: Exception, status: int | None, passes: bool) -> None:
    assert status_of(error) == status
    assert is_passing(error) is passes
    told = as_backend_error(error, "m")
    assert isinstance(told, BackendError)
    assert (told.status_code, told.retryable) == (status, passes)
    assert str(told).startswith("m: ")
    assert "\n" not in str(told)


def test_a_servers_words_are_told_without_the_packages_around_them() -> None:
    error = raised(
        "HTTPStatusError",
        message="Error response 401 while fetching http://x: {...}",
        response=type("Response", (), {"status_code": 401, "content": b'{"object": "error", "message": "bad key"}'})(),
    )
    assert str(as_backend_error(error, "mistral")) == "mistral: answers 401: bad key"


def test_bad_input_stays_bad_input() -> None:
    error = InputError("no such word")
    assert as_backend_error(error, "m") is error


@pytest.mark.parametrize(
    ("words", "too_long", "moderated"),
    [
        ("This model's maximum context length is 8192 tokens", True, False),
        ("prompt is too long: 210000 tokens > 200000 maximum", True, False),
        ("the request exceeds the available context size, try increasing it", True, False),
        ("The response was filtered due to the prompt triggering Azure's content management policy", False, True),
        ("Your input was flagged", False, True),
        ("names of models are case-sensitive", False, False),
        ("Prompt failed the initial safety check.", False, True),
        ("unknown field logprobs", False, False),
        ("Invalid parameter: response_format", False, False),
    ],
)
def test_what_says_nothing_about_the_way_of_asking(words: str, too_long: bool, moderated: bool) -> None:
    error = raised("BadRequestError", message=words, status_code=400)
    assert is_too_long(error) is too_long
    assert is_moderated(error) is moderated


@pytest.mark.parametrize(
    ("error", "is_free"),
    [
        (raised("Any", core("ModelRateLimitError")), True),
        (raised("ServerError", code=503), True),
        (raised("APIConnectionError", cause=raised("ConnectError")), True),
        (raised("APIConnectionError", cause=raised("ReadError")), False),
        (raised("APIConnectionError", cause=raised("RemoteProtocolError")), False),
        (raised("ServerError", code=504), False),
        (raised("Any", core("ModelTimeoutError")), False),
    ],
)
def test_what_a_client_has_tried_again_is_tried_no_more_if_it_may_be_charged(error: Exception, is_free: bool) -> None:
    for has_retried in (False, True):
        told = as_backend_error(error, "m", has_retried=has_retried)
        assert isinstance(told, BackendError)
        assert told.retryable is (is_free or not has_retried)
