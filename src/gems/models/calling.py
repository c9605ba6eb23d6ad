"""One call of a chat model: on the caller's event loop where the model has a client for that, else in a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSequence

from gems.faces import in_thread, runs_here, until_cancelled
from gems.handlers import handled_on
from gems.models.deadlines import BEFORE_CALL, deadline_of, too_late, within_deadline
from gems.models.lenient import whole_texts
from gems.models.servers.told_errors import with_told_errors
from gems.models.tries import in_tries
from gems.printable import printable

__all__ = ["CALL", "LOST_ANSWERS", "NOTES", "REQUESTS", "UNMENDABLE", "call_model", "notes_of", "reading_in_threads"]

T = TypeVar("T")

CALL: Final[ContextVar[object]] = ContextVar("gems_call", default=None)
"""The call that is being made; several may be made at the same time by one node."""
REQUESTS: Final = "gems_requests"
"""The key in an answer's ``response_metadata`` of the requests that it took, where that is known."""
LOST_ANSWERS: Final = "gems_lost_answers"
"""The key there of the requests before it that may have been answered as well, and charged."""
NOTES: Final = "gems_notes"
"""The key there of what the model has the user know beside its answer: a list of lines."""


UNMENDABLE: Final = "gems_unmendable"
"""The key there, in an answer to the refiner, of why no prompt can mend what still fails: a list of lines."""


def notes_of(message: AIMessage, key: str = NOTES) -> list[str]:
    """What a chat model notes for the user in its answer, one line each; other values are no notes."""
    notes = message.response_metadata.get(key)
    lines = (
        [" ".join(printable(note).split()) for note in notes if isinstance(note, str)]
        if isinstance(notes, list)
        else []
    )
    return [line[:_LONGEST_NOTE] for line in dict.fromkeys(lines) if line][:_MOST_NOTES]


_LONGEST_NOTE: Final = 500
_MOST_NOTES: Final = 20


async def call_model(
    runnable: Runnable[Any, T],
    conversation: Sequence[BaseMessage],
    model: BaseChatModel,
    is_misunderstood: Callable[[Exception], bool],
) -> T:
    """Call a chat model within its deadline, again after faults that may pass, as often as its ``metadata`` says.

    A model that GEMS has made by its name is called in a thread, where its requests are counted and its answers are
    read however torn they arrive. So is a model without a client for event loops.

    Args:
        runnable: The model, set up for the call.
        conversation: The messages.
        model: The model itself.
        is_misunderstood: Whether an error means that the same request is of no use.

    Raises:
        Exception: The model's error.
        BackendError: There was no answer in time.
        WaitEnded: The run was cancelled. What was sent may be charged.
    """
    token, seconds = CALL.set(object()), deadline_of(model)
    messages = list(conversation)

    def invoke() -> T:
        BEFORE_CALL.get()()
        return runnable.invoke(messages)

    async def ainvoke() -> T:
        BEFORE_CALL.get()()
        return await runnable.ainvoke(messages)

    def call() -> T:
        return in_tries(lambda: with_told_errors(invoke, model), model, is_misunderstood)

    try:
        if runs_here():
            return _sendable(within_deadline(call, seconds))
        has_own_client = seconds is None and _has_async_client(model)
        try:
            async with asyncio.timeout(seconds) as limit:
                answer = until_cancelled(ainvoke() if has_own_client else in_thread(call))
                return _sendable(await answer)
        except TimeoutError:
            if limit.expired() and seconds is not None:
                raise too_late(seconds) from None
            raise
    finally:
        CALL.reset(token)


def _sendable(answer: T) -> T:
    """An answer that can be sent back: its server may have spelled halves of characters, which no request can hold."""
    messages = answer.values() if isinstance(answer, dict) else [answer]
    for message in messages:
        if isinstance(message, AIMessage):
            for name in ("content", "tool_calls", "invalid_tool_calls", "additional_kwargs"):
                setattr(message, name, whole_texts(getattr(message, name)))
    return answer


def _has_async_client(model: BaseChatModel) -> bool:
    """Whether a model's own package knows how to wait for it on an event loop."""
    kind = type(model)
    return kind._agenerate is not BaseChatModel._agenerate or kind._astream is not BaseChatModel._astream


def reading_in_threads(runnable: Runnable[Any, T]) -> Runnable[Any, T]:
    """A model, set up for structured answers, whose answers are read in our threads where it is awaited.

    LangChain's parsers would be run in asyncio's default pool, which belongs to the application.
    """
    if not isinstance(runnable, RunnableSequence):
        return runnable
    model, *readers = runnable.steps
    return RunnableSequence(model, *map(_InThread, readers), name=runnable.name)


class _InThread(Runnable[Any, Any]):
    """A step that computes, and calls nobody."""

    def __init__(self, step: Runnable[Any, Any]) -> None:
        self.step = step

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002 - LangChain's
        return self.step.invoke(input, config, **kwargs)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:  # noqa: A002 - same
        config = handled_on(config or RunnableConfig(), asyncio.get_running_loop())
        return await in_thread(self.step.invoke, input, config, **kwargs)
