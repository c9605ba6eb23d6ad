"""The errors that GEMS raises on purpose, each with a one-line message for the user."""

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
    """Base class of all errors raised on purpose."""


class InputError(GemsError, ValueError):
    """The user's input cannot be used: a prompt, an option, a file, a model name. Never retried."""


class BackendError(GemsError, RuntimeError):
    """A model or a store failed.

    Attributes:
        retryable: Whether a retry may help.
        status_code: The HTTP status of a server's answer, if the error came from one.
        reason: What the server said, without our words around it; the whole message if nobody else said anything.
    """

    def __init__(
        self, message: str, *, retryable: bool = True, status_code: int | None = None, reason: str | None = None
    ) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.status_code = status_code
        self.reason = message if reason is None else reason


class ContentRefusedError(BackendError):
    """The provider of an image model refused a prompt. Another wording may be accepted; the same one never is."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class MalformedAnswerError(BackendError):
    """A chat model answered, but not in the requested form."""


def is_passing_status(status: int) -> bool:
    """Whether an HTTP status stands for a transient fault: too many requests, a timeout, a server error."""
    return status in (408, 409, 425, 429) or status >= 500
