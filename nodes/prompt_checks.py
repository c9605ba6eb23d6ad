"""What code checks of a prompt that a chat model wrote, rather than trusting the model's own judgement."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import BaseModel, Field
from pydantic.config import JsonDict

from gems.models.generators import ImageGenerator, guide_of, objection_to
from gems.nodes.ask import ask
from gems.nodes.meter import Meter
from gems.wording import hyphenated_words, stem

__all__ = ["SHORT", "Plan", "drawable_prompt", "is_grounded", "lost_words", "with_wish"]


SHORT: Final[JsonDict] = {"maxLength": 1000}
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

    The chat model that wrote the prompt in answer to ``asked`` is told once what is wrong with it. Where words of the
    wish are still lost, the wish is put in front.
    """
    prompt = " ".join(prompt.split())
    fault = _fault_of(prompt, wish, generator)
    if fault and not meter.exhausted():
        told = [*asked, AIMessage(prompt), HumanMessage(fault)]
        prompt = " ".join(ask(meter, model, Plan, told, blind=True).form.prompt.split())
    if guide_of(generator):
        prompt = _without_wish(wish, prompt)
    prompt = with_wish(wish, prompt, generator)
    return "" if objection_to(generator, prompt) else prompt


def _fault_of(prompt: str, wish: str, generator: ImageGenerator) -> str:
    if objection := objection_to(generator, prompt):
        return f"{objection}. Write the prompt again, without them."
    # An image model that wants to be prompted in its own way would be thrown by the wish in front.
    lost = lost_words(wish, prompt) if guide_of(generator) else []
    return f"The prompt has lost: {', '.join(lost)}. Write it again, with them." if lost else ""


def _without_wish(wish: str, prompt: str) -> str:
    """The prompt without the wish in front, where the rest holds all of it: else everything would be drawn twice."""
    rest = prompt.removeprefix(wish.rstrip(" .")).lstrip(" .,:;")
    return prompt if lost_words(wish, rest) else rest


def with_wish(wish: str, prompt: str, generator: ImageGenerator) -> str:
    """The prompt or, where it lost a word of the wish, with the wish in front of it.

    A weak model forgets a thing, a strong one paraphrases, and neither is harmed by the user's own words; unless the
    image model cannot read those.
    """
    whole = f"{wish.rstrip(' .')}: {prompt}"
    return whole if lost_words(wish, prompt) and not objection_to(generator, whole) else prompt


def lost_words(wish: str, prompt: str) -> list[str]:
    """The wish's words of substance that the prompt does not hold in any form.

    Words that relate things (left of, behind, chasing) may be gone: a good prompt says instead where things stand.
    """
    kept = {stem(word) for word in hyphenated_words(prompt)}
    words = hyphenated_words(wish)
    # A sparkling cat is a look, a cat chasing a dog is not.
    looks = [not w.endswith("ing") or after not in _EMPTY | _ASKING for w, after in pairwise([*words, "a"])]
    named = [w for w, look in zip(words, looks, strict=True) if look and w not in _EMPTY]
    return [w for w in dict.fromkeys(named) if stem(w) not in kept]


def is_grounded(question: str, wish: str) -> bool:
    """Whether a question is about the wish: more than half of its words of substance are the wish's own.

    A weak model asks about what nobody named: whether the cat is made of wood, in the style of its example, or whether
    two things look the same.
    """
    held = {stem(word) for word in hyphenated_words(wish)}
    asked = set(hyphenated_words(question))
    words = [w for w in asked if w not in _EMPTY and w not in _ASKING]
    compares = "same" in asked and "same" not in held
    return not words or (sum(stem(w) in held for w in words) > len(words) / 2 and not compares)


_EMPTY: Final = frozenset(
    hyphenated_words(
        "a an the and or of to in on at by with from for as is are be it its that which this these there one each some "
        "any left right front behind under over above below top bottom next near beside between inside outside through "
        "across against please draw show make create image picture photo me"
    )
)
"""Words that hold nothing which could be lost, and those that relate things to each other."""


_ASKING: Final = frozenset(
    hyphenated_words(
        "do does did has have was were can exactly many much number read reads text word words written say says style "
        "two three four five six seven eight nine ten 1 2 3 4 5 6 7 8 9 10"
    )
)
"""Words that questions are made of, whatever they are about."""
