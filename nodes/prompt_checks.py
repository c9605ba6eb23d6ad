"""Checks a chat model's drafts in code instead of trusting its judgement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import Field
from pydantic.config import JsonDict

from gems.models.generators import ImageGenerator, excess_of, guide_of, objection_to
from gems.models.lenient import Form, Text
from gems.nodes.ask import ask
from gems.nodes.meter import Meter
from gems.wording import STOP_WORDS, hyphenated_words, stem

__all__ = ["PROMPT_NAMES", "SHORT", "Plan", "drawable_prompt", "is_grounded", "lost_words", "with_prompt"]


PROMPT_NAMES: Final = (
    "final_prompt", "new_prompt", "next_prompt", "image_prompt", "generation_prompt", "image_generation_prompt",
    "refined_prompt", "revised_prompt", "improved_prompt", "rewritten_prompt", "updated_prompt", "enhanced_prompt",
    "optimized_prompt", "positive_prompt", "prompt_text", "prompts", "draft"
)  # fmt: skip
"""Other names that models give to a prompt."""

SHORT: Final[JsonDict] = {"maxLength": 1000}
"""Characters that a server with enforced schemas allows for a draft: a weak model that repeats itself never stops."""


class Plan(Form):
    """Hand in the finished prompt for the image generator."""

    other_names: ClassVar[Mapping[str, Sequence[str]]] = {"prompt": PROMPT_NAMES}

    prompt: Text = Field(
        min_length=1,
        max_length=4000,
        description="The generation prompt, complete in itself.",
        json_schema_extra=SHORT,
    )


def drawable_prompt(
    meter: Meter,
    model: BaseChatModel,
    conversation: Sequence[BaseMessage],
    draft: str,
    *,
    prompt: str,
    generator: ImageGenerator,
) -> str:
    """A draft that keeps the prompt and that the image model can read; empty if the chat model cannot write one.

    The chat model is told once what is wrong with its draft. If words of the prompt are still lost, the prompt is put
    in front of the draft.

    Args:
        meter: Counts the calls.
        model: The chat model that wrote the draft.
        conversation: The messages that it answered with the draft.
        draft: The draft that the chat model wrote.
        prompt: The user's prompt; empty if nothing of it has to be kept.
        generator: The image model that the draft is for.
    """
    draft = " ".join(draft.split())
    fault = _fault_of(draft, prompt, generator)
    if fault and not meter.exhausted():
        repair = [*conversation, AIMessage(draft), HumanMessage(fault)]
        draft = " ".join(ask(meter, model, Plan, repair, blind=True).form.prompt.split())
    if guide_of(generator):
        draft = _without_prompt(prompt, draft)
    draft = with_prompt(prompt, draft, generator)
    return "" if objection_to(generator, draft) else draft


def _fault_of(draft: str, prompt: str, generator: ImageGenerator) -> str:
    if objection := objection_to(generator, draft):
        return f"{objection}. Write the prompt again, without them."
    if excess := excess_of(generator, draft):
        return f"{excess}. Write the prompt again."
    # An image model with a prompting style of its own cannot take the user's prompt in front of the draft.
    missing = lost_words(prompt, draft) if guide_of(generator) else []
    return f"The prompt has lost: {', '.join(missing)}. Write it again, with them." if missing else ""


def _without_prompt(prompt: str, draft: str) -> str:
    """The draft without the prompt in front of it, if the remainder says it all: else things would be drawn twice."""
    remainder = draft.removeprefix(prompt.rstrip(" .")).lstrip(" .,:;")
    return draft if lost_words(prompt, remainder) else remainder


def with_prompt(prompt: str, draft: str, generator: ImageGenerator) -> str:
    """The draft, with the prompt in front of it if the draft has lost a word of it.

    A weak model forgets things and a strong one paraphrases. The user's own words harm neither, unless the image model
    cannot read them, or reads no further.
    """
    whole = f"{prompt.rstrip(' .')}: {draft}"
    is_read = not objection_to(generator, whole) and not excess_of(generator, whole)
    return whole if lost_words(prompt, draft) and is_read else draft


def lost_words(prompt: str, draft: str) -> list[str]:
    """The prompt's content words that the draft does not contain in any form.

    Words that relate things (left of, behind, chasing) may be missing: a good draft says where things stand instead.
    """
    draft_stems = {stem(word) for word in hyphenated_words(draft)}
    words = hyphenated_words(prompt)
    content = [
        word
        for word, next_word in pairwise([*words, "a"])
        if word not in STOP_WORDS and not _is_action(word, next_word)
    ]
    return [word for word in dict.fromkeys(content) if stem(word) not in draft_stems]


def _is_action(word: str, next_word: str) -> bool:
    """Whether a word ending in -ing relates two things: "chasing" in "a cat chasing a dog", not "a sparkling cat"."""
    return word.endswith("ing") and (next_word in STOP_WORDS or next_word in _QUESTION_WORDS)


def is_grounded(question: str, prompt: str) -> bool:
    """Whether a question is about the prompt: more than half of its content words are in the prompt.

    A weak model asks about things that nobody named: whether the cat is made of wood, as in its example, or whether
    two things look the same.
    """
    prompt_stems = {stem(word) for word in hyphenated_words(prompt)}
    question_words = set(hyphenated_words(question))
    content = [w for w in question_words if w not in STOP_WORDS and w not in _QUESTION_WORDS]
    compares = "same" in question_words and "same" not in prompt_stems
    return not content or (sum(stem(w) in prompt_stems for w in content) > len(content) / 2 and not compares)


_QUESTION_WORDS: Final = frozenset(
    hyphenated_words(
        "do does did has have was were can exactly many much number read reads text word words written say says style "
        "two three four five six seven eight nine ten 1 2 3 4 5 6 7 8 9 10"
    )
)
"""Words that occur in questions about anything."""
