"""What code checks of a prompt that a chat model wrote, rather than trusting the model's own judgement."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from gems.models.generators import ImageGenerator, objection_to
from gems.nodes.calls import ask
from gems.nodes.meter import Meter

__all__ = ["SHORT", "Plan", "drawable_prompt", "is_grounded", "lost_words", "with_wish"]


SHORT: Final[JsonDict] = {"maxLength": 1500}
"""What a server that enforces schemas lets a prompt grow to: a weak model that repeats itself finds no end."""


class Plan(BaseModel):
    """Hand in the finished prompt for the image generator."""

    prompt: str = Field(
        min_length=1,
        max_length=4000,
        description="The generation prompt, complete in itself.",
        json_schema_extra=SHORT,
    )


def drawable_prompt(
    meter: Meter,
    model: BaseChatModel,
    asked: Sequence[BaseMessage],
    prompt: str,
    *,
    wish: str,
    generator: ImageGenerator,
) -> str:
    """A prompt that keeps the wish and that the image model can read; empty if the chat model cannot write one.

    Where the image model objects, the chat model that wrote the prompt in answer to ``asked`` is told so, once.
    """
    prompt = with_wish(wish, prompt, generator)
    objection = objection_to(generator, prompt)
    if objection and not meter.exhausted():
        told = [*asked, AIMessage(prompt), HumanMessage(f"{objection}. Write the prompt again, without them.")]
        prompt = with_wish(wish, ask(meter, model, Plan, told, blind=True).form.prompt, generator)
        objection = objection_to(generator, prompt)
    return "" if objection else prompt


def with_wish(wish: str, prompt: str, generator: ImageGenerator) -> str:
    """The prompt on one line and, where it lost a word of the wish, with the wish in front of it.

    A weak model forgets a thing, a strong one paraphrases, and neither is harmed by the user's own words; unless the
    image model cannot read those.
    """
    prompt = " ".join(prompt.split())
    whole = f"{wish.rstrip(' .')}: {prompt}"
    return whole if lost_words(wish, prompt) and not objection_to(generator, whole) else prompt


def lost_words(wish: str, prompt: str) -> list[str]:
    """The wish's words of substance that the prompt does not hold in any form.

    Words that relate things (left of, behind, chasing) may be gone: a good prompt says instead where things stand.
    """
    kept = {_stem(word) for word in _WORD.findall(prompt.lower())}
    words = [w for w in _WORD.findall(wish.lower()) if w not in _EMPTY and not w.endswith("ing")]
    return [w for w in dict.fromkeys(words) if _stem(w) not in kept]


def is_grounded(question: str, wish: str) -> bool:
    """Whether a question is about the wish: more than half of its words of substance are the wish's own.

    A weak model asks about what nobody named: whether the cat is made of wood, in the style of its example.
    """
    held = {_stem(word) for word in _WORD.findall(wish.lower())}
    words = [w for w in _WORD.findall(question.lower()) if w not in _EMPTY and w not in _ASKING]
    return not words or sum(_stem(w) in held for w in words) > len(words) / 2


_WORD: Final = re.compile(r"[^\W_]+(?:-[^\W_]+)*")
_EMPTY: Final = frozenset(
    _WORD.findall(
        "a an the and or of to in on at by with from for as is are be it its that which this these there one each some "
        "any left right front behind under over above below top bottom next near beside between inside outside through "
        "across against please draw show make create image picture photo me"
    )
)
"""Words that hold nothing which could be lost, and those that relate things to each other."""


_ASKING: Final = frozenset(
    _WORD.findall(
        "do does did has have was were can exactly many much number read reads text word words written say says style "
        "two three four five six seven eight nine ten 1 2 3 4 5 6 7 8 9 10"
    )
)
"""Words that questions are made of, whatever they are about."""


def _stem(word: str) -> str:
    """Singular and plural alike: no dictionary, and none is needed to see whether a word is still there."""
    for ending in ("ies", "ie", "es", "s", "y", "e"):
        if len(word) - len(ending) > 2 and word.endswith(ending) and not word.endswith("ss"):
            return word.removesuffix(ending)
    return word
