"""The errors that GEMS raises on purpose, each with one clear line for the user."""

from __future__ import annotations

__all__ = [
    "BackendError",
    "ContentRefusedError",
    "GemsError",
    "InputError",
    "MalformedAnswerError",
    "is_passing_status",
]


class GemsError(Exception):
    """Base of all errors raised on purpose."""


class InputError(GemsError, ValueError):
    """Something the user gave cannot be used: a prompt, an option, a file, a model name. Never retried."""


class BackendError(GemsError, RuntimeError):
    """A model or a store did not do its work.

    Attributes:
        retryable: Whether trying again may help.
        status_code: The HTTP status that says so, where a server did.
    """

    def __init__(self, message: str, *, retryable: bool = True, status_code: int | None = None) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.status_code = status_code


class ContentRefusedError(BackendError):
    """An image model's provider will not draw this prompt. Other words may be drawn; the same ones never will be."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class MalformedAnswerError(BackendError):
    """A chat model answered, but not in the form that was asked for."""


def is_passing_status(status: int) -> bool:
    """Whether what an HTTP status tells of may be gone in a moment: too many requests, a timeout, a broken server."""
    return status in (408, 409, 425, 429) or status >= 500
