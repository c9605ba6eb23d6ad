"""Error responses in the form that OpenAI's clients read, for all of the service's own routes."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from gems.errors import BackendError, InputError
from gems.secrets import conceal
from gems.serve.refusals import BusyError, ConflictError, RefusedError, SpentError, StoppingError

__all__ = [
    "ERRORS",
    "IN_VAIN",
    "ErrorBody",
    "RequestError",
    "add_handlers",
    "add_safe_headers",
    "as_http",
    "error_response",
    "fault_of",
]


class Fault(BaseModel):
    """The details of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of an error response."""

    error: Fault


ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The prompt or a setting cannot be used, or the provider refuses to draw it.",
        401: "The key is missing or wrong.",
        403: "A page of another site sent the request, or the key does not allow it.",
        404: "It does not exist, or belongs to another key.",
        409: "The run's status does not allow this.",
        413: "The body is too long.",
        415: "The body is not sent as JSON.",
        422: "The body is not valid JSON, or does not have the right form.",
        429: "The queue is full, or the key has used up its limits. See Retry-After.",
        502: "A model failed.",
        503: "The service is being stopped, and resumes accepted runs at its next start; or its database is busy.",
    }.items()
}
"""The error responses of a route, for its schema."""

_KINDS: Final[dict[type[Exception], tuple[int, str]]] = {
    InputError: (400, "invalid_request"),
    ConflictError: (409, "conflict"),
    BusyError: (429, BusyError.code),
    SpentError: (429, SpentError.code),
    StoppingError: (503, StoppingError.code),
    BackendError: (502, "backend_failure"),
}
"""Status and code by the error's class."""


IN_VAIN: Final = {"x-should-retry": "false"}
"""Headers of an error that comes after a run has begun: OpenAI's clients, which send a request again after any 409 or
5xx, begin and pay for another run then. They heed this, as their own server sends it."""


class RequestError(HTTPException):
    """An error with a code, as OpenAI's errors have."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, conceal(message), headers)
        self.code = code


def fault_of(error: HTTPException, param: str | None = None) -> Fault:
    """The details of an error, as they are sent."""
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    return Fault(message=conceal(error.detail), type=kind, param=param, code=getattr(error, "code", None))


def error_response(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Response:
    """The response for an error."""
    body = ErrorBody(error=fault_of(RequestError(status, message, code=code), param))
    return JSONResponse(body.model_dump(), status)


def add_safe_headers(headers: MutableHeaders) -> None:
    """Add the headers that every response has: no page shows it in a frame, and no browser guesses what it is."""
    headers["x-content-type-options"] = "nosniff"
    headers["x-frame-options"] = "DENY"
    headers["referrer-policy"] = "no-referrer"
    headers.setdefault("content-security-policy", "frame-ancestors 'none'")


def as_http(error: Exception) -> RequestError:
    """One of our errors as an HTTP exception, for code that other libraries call."""
    status, code = next((kind for type_, kind in _KINDS.items() if isinstance(error, type_)), (500, "internal_error"))
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, RefusedError) else None
    if isinstance(error, (BackendError, ConflictError)):
        headers = IN_VAIN
    return RequestError(status, str(error), code=code, headers=headers)


def _busy_database(_: Request, error: Exception) -> Response:
    """Another process holds the ledger, for longer than it is waited for."""
    logging.getLogger("gems.serve").error("database", exc_info=error)
    message = "the service's database is busy or cannot be written to; try again"
    return _response(RequestError(503, message, code="database_busy", headers={"retry-after": "5"}))


def add_handlers(app: FastAPI) -> None:
    """Give every error response the same form."""

    async def on_own_error(_: Request, error: Exception) -> Response:
        return _response(as_http(error))

    async def on_http_error(_: Request, error: Any) -> Response:
        return _response(error)

    async def on_invalid_request(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body")
        return error_response(422, f"{param}: {first['msg']}" if param else first["msg"], param=param or None)

    handlers: dict[type[Exception], Callable[..., Any]] = {
        **dict.fromkeys(_KINDS, on_own_error),
        HTTPException: on_http_error,
        RequestValidationError: on_invalid_request,
        sqlite3.OperationalError: _busy_database,
    }
    for type_, handler in handlers.items():
        app.add_exception_handler(type_, handler)


def _response(error: HTTPException) -> Response:
    response = error_response(error.status_code, error.detail, code=getattr(error, "code", None))
    response.headers.update(error.headers or {})
    return response
