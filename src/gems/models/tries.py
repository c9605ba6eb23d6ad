"""Further tries of a chat call after faults that may pass: each is one request, which is counted and can be stopped.

The clients of providers' packages would try again by themselves, unseen. Only OpenAI's client is left to do so: its
requests are counted, see ``sent_requests``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, TypeVar

from langchain_core.language_models import BaseChatModel
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from gems.errors import BackendError
from gems.models.deadlines import IN_ONE_TRY, deadline_of
from gems.models.failures import is_passing, seconds_to_wait
from gems.stopping import pause

__all__ = ["TRIES", "in_tries", "tries_of"]

T = TypeVar("T")

TRIES: Final = "gems_tries"
"""The key in a chat model's ``metadata`` of how often one call is tried."""

_WAIT: Final = wait_random_exponential(multiplier=0.5, max=8)
"""Exponential back-off in seconds, with full jitter."""


def tries_of(model: BaseChatModel) -> int | None:
    """How often one call of a model is tried by ``in_tries``; None if its client tries again by itself, or nobody."""
    tries = (model.metadata or {}).get(TRIES)
    return tries if isinstance(tries, int) else None


def in_tries(call: Callable[[], T], model: BaseChatModel, is_misunderstood: Callable[[Exception], bool]) -> T:
    """Make a call, and make it again after a fault that may pass, as often as its model says.

    Args:
        call: The call; each time, one request.
        model: The model that is called.
        is_misunderstood: Whether an error means that the same request is of no use, whatever its status says.

    Raises:
        GraphDrained: The run is to stop, and another try would have to wait.
    """
    tries = 1 if IN_ONE_TRY.get() else tries_of(model) or 1
    end = time.monotonic() + (deadline_of(model) or math.inf)

    def may_pass(error: BaseException) -> bool:
        if isinstance(error, BackendError):  # out of an answer, which may be charged: the run itself asks again
            return False
        return isinstance(error, Exception) and is_passing(error) and not is_misunderstood(error)

    def seconds(state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(_WAIT(state), seconds_to_wait(error) if error else 0.0)

    def is_over(state: RetryCallState) -> bool:
        return state.attempt_number >= tries or time.monotonic() + state.upcoming_sleep >= end

    return Retrying(retry=retry_if_exception(may_pass), stop=is_over, wait=seconds, sleep=pause, reraise=True)(call)
