"""Why the service refuses a request."""

from __future__ import annotations

__all__ = ["BusyError", "ConflictError", "RefusedError", "SpentError", "StoppingError"]


class RefusedError(Exception):
    """The request was not accepted, but may be later.

    Attributes:
        code: Name of the reason, in error responses and metrics.
        retry_after: Seconds after which to try again.
    """

    code = "refused"

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BusyError(RefusedError):
    """The queue is full."""

    code = "rate_limit_exceeded"


class SpentError(RefusedError):
    """The API key has used up its limits of the day."""

    code = "insufficient_quota"


class StoppingError(RefusedError):
    """The service is being stopped."""

    code = "stopping"

    def __init__(self) -> None:
        super().__init__("the service is being stopped; try again soon", 10)


class ConflictError(Exception):
    """The run's status does not allow this."""
