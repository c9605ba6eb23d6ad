"""Errors in the shape that OpenAI's clients read, for all of the service's own routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from gems.errors import BackendError, InputError
from gems.secrets import conceal
from gems.serve.service import BusyError, ConflictError, RefusedError, SpentError, StoppingError

__all__ = ["ErrorBody", "RequestError", "add_handlers", "as_http", "error_response"]


class Fault(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """An error."""

    error: Fault


_KINDS: Final[dict[type[Exception], tuple[int, str]]] = {
    InputError: (400, "invalid_request"),
    ConflictError: (409, "conflict"),
    BusyError: (429, "rate_limit_exceeded"),
    SpentError: (429, "insufficient_quota"),
    StoppingError: (503, "stopping"),
    BackendError: (502, "backend_failure"),
}


class RequestError(HTTPException):
    """An error with a code, as OpenAI's have."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, conceal(message), headers)
        self.code = code


def error_response(status: int, message: str, *, code: str | None = None, param: str | None = None) -> Response:
    """An error as an answer."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    body = ErrorBody(error=Fault(message=conceal(message), type=kind, param=param, code=code))
    return JSONResponse(body.model_dump(), status)


def as_http(error: Exception) -> RequestError:
    """One of our errors as FastAPI's, for code that other libraries call."""
    status, code = _kind(error)
    headers = {"retry-after": str(error.retry_after)} if isinstance(error, RefusedError) else None
    return RequestError(status, str(error), code=code, headers=headers)


def _kind(error: Exception) -> tuple[int, str]:
    return next((found for kind, found in _KINDS.items() if isinstance(error, kind)), (500, "internal_error"))


def add_handlers(app: FastAPI) -> None:
    """Have every error leave in our shape."""

    async def ours(_: Request, error: Exception) -> Response:
        return _response(as_http(error))

    async def http(_: Request, error: Any) -> Response:
        return _response(error)

    async def validation(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"] if part != "body")
        return error_response(422, f"{param}: {first['msg']}" if param else first["msg"], param=param or None)

    async def bug(_: Request, error: Exception) -> Response:
        return error_response(500, f"internal error ({type(error).__name__})", code="internal_error")

    handlers: dict[type[Exception], Callable[..., Any]] = {
        **dict.fromkeys(_KINDS, ours),
        HTTPException: http,
        RequestValidationError: validation,
        Exception: bug,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def _response(error: HTTPException) -> Response:
    response = error_response(error.status_code, error.detail, code=getattr(error, "code", None))
    response.headers.update(error.headers or {})
    return response
