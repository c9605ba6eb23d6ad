"""Calls to a chat model: one structured answer, and the building blocks of prompts."""

from __future__ import annotations

import base64
import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langgraph.errors import GraphBubbleUp
from PIL import Image
from pydantic import BaseModel

from gems.errors import BackendError, MalformedAnswerError
from gems.memory.image_store import decode_png, is_opaque, size_of_sound_png
from gems.models.capabilities import capabilities_of, content_key
from gems.models.endings import is_cut_off, is_refused
from gems.models.failures import as_backend_error
from gems.models.form_reading import read_form
from gems.models.lenient import form_name
from gems.models.registry import model_fingerprint
from gems.models.structured import answer_in_form
from gems.models.thoughts import answer_text
from gems.models.tries import tries_of
from gems.models.unfinished_answers import may_lack_items, read_whole_part, repeats_itself
from gems.nodes.meter import Meter
from gems.nodes.retry import is_backend_failure

__all__ = ["Answer", "ask", "image_block", "in_our_words"]

Schema = TypeVar("Schema", bound=BaseModel)

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer(Generic[Schema]):
    """A completed form, and the message that contained it.

    Attributes:
        in_part: The answer was cut off or broken: the form is what was whole in it, and its lists may lack items.
    """

    form: Schema
    message: AIMessage
    in_part: bool = False


async def ask(
    meter: Meter,
    model: BaseChatModel,
    schema: type[Schema],
    messages: Sequence[BaseMessage],
    *,
    logprobs: bool = False,
    blind: bool = False,
    earlier: int = 0,
) -> Answer[Schema]:
    """Make one structured call. An answer that cannot be read is sent back once, then asked for by another method.

    That is done as far as the budget allows it, and only once if no answer to the last question could be read. What a
    run can do without is sent back at most. If an answer is cut off or broken, its complete part is used where the
    answer repeats itself or was sent back in vain.

    Args:
        meter: Counts the calls.
        model: The chat model.
        schema: The form to fill in.
        messages: The conversation.
        logprobs: Request the answer's log-probabilities, if the model gives them.
        blind: A model that cannot see may be called without the images.
        earlier: How many answers to the same question were paid for already, and could not be read.

    Raises:
        MalformedAnswerError: No answer could be read.
        BackendError: The model could not be reached or refused, or failed tries have used up the budget.
    """
    if meter.total.chat_calls and meter.exhausted():  # those of an earlier start of the run, too
        raise BackendError("the budget was used up by calls that failed", retryable=False)
    capabilities = capabilities_of(model, meter.options.structured)
    logprobs = logprobs and meter.options.logprobs
    content, form = content_key(schema, messages), form_name(schema)
    most, has_other_method = max(1, capabilities.tries_for(form) - earlier), len(capabilities.methods) > 1
    conversation, fault, was_sent_back = list(messages), "", False
    for tries in range(1, most + 1):
        try:
            message = await answer_in_form(model, schema, conversation, capabilities, logprobs=logprobs, blind=blind)
        except Exception as error:
            failure = in_our_words(error, model)
            # What is whole in the answer before is paid for.
            has_answer = tries > 1 and isinstance(failure, BackendError)
            if has_answer and (part := _part_of(message, schema, is_final=True)) is not None:
                _note(schema, tries, in_part=True)
                return Answer(part, message, in_part=True)
            raise failure from None
        try:
            answer = Answer(read_form(message, schema), message, in_part=may_lack_items(message))
        except MalformedAnswerError as error:
            fault = str(error)
        else:
            capabilities.conclude(content, form)
            _note(schema, tries, in_part=answer.in_part)
            return answer
        # An answer that was cut off or refused does not show that the method failed.
        is_of_method = not (is_cut_off(message) or is_refused(message) or meter.is_optional)
        may_change_method = has_other_method and is_of_method
        is_last = tries == most or meter.must_stop() or (was_sent_back and not may_change_method)
        if (part := _part_of(message, schema, is_final=is_last or was_sent_back)) is not None:
            _note(schema, tries, in_part=True)
            return Answer(part, message, in_part=True)
        if is_last:
            break
        if may_change_method and (was_sent_back or earlier):
            capabilities.doubt(content, form)
            conversation, was_sent_back = list(messages), False
        else:
            reply = str(message.text)[:2000].strip() or "(nothing that can be read)"
            conversation = [*messages, AIMessage(reply), HumanMessage(REPAIR.format(fault=fault))]
            was_sent_back = True
    if is_of_method:
        capabilities.despair(content, form)
    _note(schema, 0)
    raise MalformedAnswerError(f"the chat model gave no valid {schema.__name__}: {fault}", answer_text(message))


def _part_of(message: AIMessage, schema: type[Schema], *, is_final: bool) -> Schema | None:
    """What is whole in an answer that cannot be read as a whole; None if it is to be asked for again first."""
    part = read_whole_part(message, schema) if is_final or repeats_itself(message) else None
    return _pieces(message, schema) if part is None and is_final else part


def _pieces(message: AIMessage, schema: type[Schema]) -> Schema | None:
    with contextlib.suppress(MalformedAnswerError):
        return read_form(message, schema, pieces=True)
    return None


def _note(schema: type[BaseModel], tries: int, *, in_part: bool = False) -> None:
    """Log how well a model keeps to forms; ``tries`` is 0 if no answer was valid."""
    name = form_name(schema)
    text = f"{'valid in part' if in_part else 'valid'} at try {tries}" if tries else "invalid"
    _LOG.debug("%s: %s", name, text, extra={"form": name, "tries": tries, "in_part": in_part})


def in_our_words(error: Exception, model: BaseChatModel) -> Exception:
    """What a call of a chat model raised, in one line without keys; a stop of the run stays what it is.

    Whatever a provider's package raises is a failure of the provider. A bug in a model of your own stays a bug.
    """
    if isinstance(error, GraphBubbleUp) or not (is_backend_failure(error) or _is_of_a_package(model)):
        return error
    has_retried = tries_of(model) is not None or hasattr(model, "max_retries")
    return as_backend_error(error, model_fingerprint(model), has_retried=has_retried)


def _is_of_a_package(model: BaseChatModel) -> bool:
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    return any(package.startswith("langchain_") for package in packages - {"langchain_core"})


def image_block(png: bytes, longest: int, form: Literal["png", "webp"] = "png") -> dict[str, Any]:
    """A PNG as LangChain's provider-neutral content block, its longer side at most ``longest`` pixels, and opaque."""
    if max(size_of_sound_png(png)) > longest or form != "png" or not is_opaque(png):
        image = decode_png(png)
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        smaller = io.BytesIO()
        image.save(smaller, form)
        png = smaller.getvalue()
    return {"type": "image", "base64": base64.b64encode(png).decode("ascii"), "mime_type": f"image/{form}"}


REPAIR = """\
Your answer could not be read: {fault}
Answer again, in the required form only."""
