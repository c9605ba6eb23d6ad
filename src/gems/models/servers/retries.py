"""Other tries after faults of a server that may pass, as long as there is time, and no more than may be paid."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from PIL import Image
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_random_exponential

from gems.errors import BackendError, ContentRefusedError
from gems.stopping import apause

__all__ = ["PassingError", "charged", "try_until"]

_WAIT: Final = wait_random_exponential(multiplier=0.5, max=20)
"""Exponential back-off in seconds, with full jitter, so that many clients do not return at the same time."""
_SHARE_OF_CUT: Final = 0.85
"""The part of the time left after which a try ended because of the deadline, which the request itself may hit first."""

_T = TypeVar("_T")


class PassingError(BackendError):
    """A fault that may pass, so that a retry is worthwhile.

    Attributes:
        after: Seconds that the server asks to wait before the retry.
        may_cost: Whether the server may have drawn an image for the failed try; of a file that is fetched, whether it
            is torn.
        tries: How often it was tried in all.
        costly_tries: How many of these tries may have cost an image.
        rest: The image in a torn file, if no more than the end of its last rows is missing.
    """

    def __init__(
        self, message: str, *, after: float = 0.0, may_cost: bool = False, rest: Image.Image | None = None
    ) -> None:
        super().__init__(message, retryable=True)
        self.rest = rest
        self.after = after
        self.may_cost = may_cost
        self.tries = 1
        self.costly_tries = int(may_cost)


@contextmanager
def charged() -> Iterator[None]:
    """Mark the errors of the block, about an image that was drawn, as ones that may cost."""
    try:
        yield
    except BackendError as error:
        error.may_cost = error.may_cost or not isinstance(error, ContentRefusedError)
        raise


async def try_until(deadline: Callable[[], float], attempt: Callable[[], Awaitable[_T]], most_costly: int) -> _T:
    """Try again after passing faults, until the deadline or a number of faults that may cost.

    Raises:
        PassingError: The last one, with its number of tries.
    """
    costly_tries = 0
    reason: PassingError | None = None

    async def counted() -> _T:
        nonlocal costly_tries, reason
        begin = time.monotonic()
        try:
            return await attempt()
        except PassingError as error:
            costly_tries += error.may_cost
            # A try that the deadline cut short says less than the one before it.
            is_cut = time.monotonic() > begin + _SHARE_OF_CUT * (deadline() - begin)
            reason = error if reason is None or not is_cut else reason
            raise

    def is_over(state: RetryCallState) -> bool:
        return costly_tries >= most_costly or time.monotonic() + state.upcoming_sleep >= deadline()

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(PassingError), stop=is_over, wait=_seconds_before, sleep=apause, reraise=True
    )
    try:
        return await retrying(counted)
    except PassingError as error:
        fault = reason or error
        fault.tries, fault.costly_tries = retrying.statistics.get("attempt_number", 1), costly_tries
        if error.after and costly_tries < most_costly and time.monotonic() + error.after >= deadline():
            fault.args = (f"{fault} (it asks to wait {error.after:.0f} s, longer than there is time)",)
        raise fault from None


def _seconds_before(state: RetryCallState) -> float:
    """Seconds to wait before the next try."""
    error = state.outcome.exception() if state.outcome else None
    return max(_WAIT(state), error.after if isinstance(error, PassingError) else 0.0)
