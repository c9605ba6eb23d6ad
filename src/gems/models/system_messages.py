"""Calls of chat models, some of which refuse system messages: their instructions go to the user's first message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.runnables import Runnable

from gems.models.calling import call_model
from gems.models.capabilities import Capabilities
from gems.models.deadlines import IN_ONE_TRY
from gems.models.failures import status_of
from gems.models.tries import tries_of
from gems.models.unsupported_requests import (
    gives_no_reason,
    is_not_understood,
    refuses_images,
    refuses_system_role,
)

__all__ = ["invoke"]

T = TypeVar("T")


async def invoke(
    runnable: Runnable[Any, T],
    messages: Sequence[BaseMessage],
    capabilities: Capabilities,
    way: str,
    model: BaseChatModel,
) -> T:
    """Call a chat model. If it may refuse system messages, they become part of the user's first message.

    That it refuses them is remembered once the call without them has succeeded. A refusal that gives no reason is
    followed by such a call once for each way of asking, an error of the server by a single request in all, and not
    again if that was of no use.

    Args:
        runnable: The model, set up for the call.
        messages: The conversation.
        capabilities: The model's capabilities as far as they are known; the call may update them.
        way: How the model is asked, such as "tool".
        model: The model itself.

    Raises:
        Exception: The model's error; of two, the first, unless only that one was about the system message.
    """
    if not capabilities.system_role:
        return await call_model(runnable, _without_system_role(messages), model, is_not_understood)
    try:
        return await call_model(runnable, messages, model, is_not_understood)
    except Exception as error:
        if refuses_images(error, messages):  # whatever it says of roles beside that
            raise
        names_role, status = refuses_system_role(error), status_of(error) or 500
        kind = (way if status < 500 else "", str(status))
        may_guess = gives_no_reason(error) and (status < 500 or _is_asked_once(model))
        may_mean_role = names_role or (may_guess and capabilities.refusals[kind] < _MOST_GUESSES)
        if not may_mean_role or not any(m.type == "system" for m in messages):
            raise
        first_error = error
    is_guess = IN_ONE_TRY.set(status >= 500 and not names_role)
    try:
        answer = await call_model(runnable, _without_system_role(messages), model, is_not_understood)
    except Exception as error:
        if names_role and not refuses_system_role(error):
            raise
        capabilities.refusals[kind] = _MOST_GUESSES
        answer = None
    finally:
        IN_ONE_TRY.reset(is_guess)
    if answer is None:
        raise first_error  # with its own cause, in which a package keeps the server's words
    capabilities.refusals[kind] += 1
    # A server that failed may be well again by chance.
    if names_role or status < 500 or capabilities.refusals[kind] == _MOST_GUESSES:
        capabilities.system_role = False
    return answer


def _is_asked_once(model: BaseChatModel) -> bool:
    """Whether a call of a model can be a single request, without further ones by its client."""
    return bool(tries_of(model)) or not getattr(model, "max_retries", None) or getattr(model, "heeds_one_try", False)


_MOST_GUESSES: Final = 2
"""After this many calls without a system message, it is known whether a kind of refusal was about that."""


def _without_system_role(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The conversation with the text of its system messages at the beginning of the user's first message."""
    instructions = "\n\n".join(str(m.text) for m in messages if m.type == "system")
    turns = [m for m in messages if m.type != "system"]
    first = next((i for i, m in enumerate(turns) if m.type == "human"), None)
    if not instructions:
        return turns
    if first is None:
        return [HumanMessage(instructions), *turns]
    content = turns[first].content
    if isinstance(content, str):
        joined: str | list[Any] = f"{instructions}\n\n{content}"
    else:
        joined = [{"type": "text", "text": instructions}, *content]
    turns[first] = turns[first].model_copy(update={"content": joined})
    return turns
