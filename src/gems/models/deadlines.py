"""The end of a call that outlives its timeout.

A provider's client bounds each silence of the server, not the whole call: one that keeps sending a byte, or a client
that knows no timeout, would wait without end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Final, TypeVar

from langchain_core.language_models import BaseChatModel

from gems.errors import BackendError

__all__ = ["DEADLINE", "deadline_of", "within_deadline"]

T = TypeVar("T")

DEADLINE: Final = "gems_deadline_seconds"
"""The key in a chat model's ``metadata`` of the seconds that one call may take, with all its client's retries."""


def deadline_of(model: BaseChatModel) -> float | None:
    """The seconds that one call of a model may take; None if there is no limit."""
    seconds = (model.metadata or {}).get(DEADLINE)
    return seconds if isinstance(seconds, float) else None


def within_deadline(call: Callable[[], T], seconds: float | None) -> T:
    """Make a call; give up on it when it is too late. What was given up on ends by itself, and its answer is dropped.

    Args:
        call: The call.
        seconds: The limit; None for none.

    Raises:
        BackendError: There was no answer in time.
    """
    if seconds is None:
        return call()
    answer: Future[T] = Future()
    context = copy_context()

    def work() -> None:
        try:
            answer.set_result(context.run(call))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True, name="gems-chat-call").start()
    try:
        return answer.result(seconds)
    except TimeoutError:
        if answer.done():  # the call's own error
            raise
        raise BackendError(
            f"the chat model gave no whole answer in {seconds:g} s (the chat option timeout)", retryable=False
        ) from None
