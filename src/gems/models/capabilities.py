"""What is known about a chat model: the methods that it supports for structured answers, and what else it takes.

What a model does not support shows at its first call, and is not requested again in this process.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from pydantic import BaseModel

from gems.models.lenient import form_name

__all__ = ["MOST_TRIES", "ByIdentity", "Capabilities", "Method", "capabilities_of", "content_key"]

Method = Literal["json_schema", "tool", "json_mode", "text"]


@dataclass
class Capabilities:
    """What is known about one chat model at one server.

    A model's refusal of one way of asking, or an answer in it that cannot be read, teaches something only once another
    way has succeeded on the same content. It is not locked: if two threads learn the same thing at the same time, both
    write the same value.
    """

    methods: tuple[Method, ...]
    """The methods to try, best first; never empty."""
    logprobs: bool
    """Whether to request log-probabilities."""
    sees: bool = True
    """Whether to send images."""
    tools: bool = True
    """Whether to bind skills as tools."""
    system_role: bool = True
    """Whether to send the instructions as a system message, rather than in the user's first message."""
    refusals: Counter[tuple[str, ...]] = field(default_factory=Counter)
    """How often another place for the instructions was tried after a kind of refusal that does not name its reason."""
    unread: dict[int, tuple[Method, ...]] = field(default_factory=dict)
    """By content (``content_key``), the methods whose answers could not be read, while no other has been read."""
    orders: dict[str, tuple[Method, ...]] = field(default_factory=dict)
    """By form, the methods in another order, since answers by the best one could not be read."""
    hopeless: set[str] = field(default_factory=set)
    """The forms that no answer to the last question could be read in."""
    unread_turns: int = 0
    """How many turns with skills in a row could not be read, where the same task without them could."""

    def give_up(self, methods: Collection[Method]) -> None:
        """Note that another method has worked where these did not."""
        self.methods = tuple(method for method in self.methods if method not in methods) or self.methods

    def methods_for(self, content: int, form: str) -> tuple[Method, ...]:
        """The methods to try on a content, best first; those whose answers to it could not be read come last."""
        unread = [method for method in self.unread.get(content, ()) if method in self.methods]
        in_order = sorted(self.methods, key=self.orders.get(form, self.methods).index)
        return (*(method for method in in_order if method not in unread), *unread)

    def tries_for(self, form: str) -> int:
        """How many answers to one question may be paid for until one can be read."""
        return 1 if form in self.hopeless else MOST_TRIES

    def doubt(self, content: int, form: str) -> None:
        """Try another method on this content next time: answers by the one in use could not be read."""
        method = self.methods_for(content, form)[0]
        self.unread[content] = (*(m for m in self.unread.get(content, ()) if m != method), method)
        while len(self.unread) > _MOST_CONTENTS:
            self.unread.pop(next(iter(self.unread)), None)

    def despair(self, content: int, form: str) -> None:
        """Note that no answer to this content could be read: the next question gets one try, by another method."""
        self.doubt(content, form)
        self.orders[form] = self.methods_for(content, form)
        self.hopeless.add(form)

    def note_turn(self, *, was_read: bool) -> None:
        """Note whether a turn with skills could be read; if two could not, skills are no longer offered."""
        self.unread_turns = 0 if was_read else self.unread_turns + 1
        self.tools = self.tools and self.unread_turns < 2

    def conclude(self, content: int, form: str) -> None:
        """Note that an answer to this content could be read: methods whose answers to it could not are given up."""
        self.give_up(self.unread.pop(content, ()))
        self.hopeless.discard(form)


MOST_TRIES: Final = 3
"""Answers to one question that are paid for until one can be read: the first, the one after it was sent back, and one
by another method."""
_MOST_CONTENTS: Final = 64
"""Contents whose unread answers are remembered."""


def content_key(schema: type[BaseModel], messages: Sequence[BaseMessage]) -> int:
    """Identifies a form and the conversation that asks for it, within this process."""
    return hash((form_name(schema), *(text for message in messages for text in _texts_in(message.content))))


def _texts_in(content: str | list[Any]) -> Iterator[str]:
    """The texts of a message, images included: as they are, since each keeps its hash, and a copy is large."""
    if isinstance(content, str):
        yield content
        return
    for block in content:
        values = block.values() if isinstance(block, dict) else (block,)
        yield from (value if isinstance(value, str) else str(value) for value in values)


@dataclass(frozen=True, eq=False)
class ByIdentity:
    """A chat model as a cache key: models are mutable and cannot be hashed."""

    model: BaseChatModel

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByIdentity) and other.model is self.model


def capabilities_of(model: BaseChatModel, structured: Method | Literal["auto"] = "auto") -> Capabilities:
    """What is known about a model; at first, what its class and its LangChain profile say.

    It is forgotten every hour (``_FORGET_SECONDS``), since servers and models change.

    Args:
        model: Any chat model.
        structured: The only method to use, or "auto".
    """
    return _capabilities(ByIdentity(model), structured, int(_now() // _FORGET_SECONDS))


_FORGET_SECONDS: Final = 3600.0
_now = time.monotonic


@lru_cache(maxsize=64)
def _capabilities(key: ByIdentity, structured: Method | Literal["auto"], age: int) -> Capabilities:
    kind, profile = type(key.model), getattr(key.model, "profile", None) or {}
    # The Responses API has them only for plain text, and its client refuses the parameter.
    logprobs = "logprobs" in kind.model_fields and getattr(key.model, "use_responses_api", None) is not True
    if structured != "auto":
        return Capabilities((structured,), logprobs)
    methods: list[Method] = []
    if kind.with_structured_output is not BaseChatModel.with_structured_output:
        methods = ["json_schema", "json_mode"]
    if kind.bind_tools is not BaseChatModel.bind_tools:
        methods.insert(0 if profile.get("structured_output") is False else 1, "tool")
    return Capabilities((*methods, "text"), logprobs, sees=profile.get("image_inputs") is not False)
