"""Checks in code that a chat model's draft keeps what the user asked for, and that the image model can read it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from functools import cache
from typing import Annotated, Any, ClassVar, Final, TypeVar

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator, create_model
from pydantic.config import JsonDict

from gems.errors import BackendError
from gems.faces import in_thread
from gems.models.failures import is_of_account
from gems.models.generators import ImageGenerator, excess_of, guide_of, objection_to
from gems.models.lenient import Form, Item, Note, form_name, items_of
from gems.nodes.ask import ask
from gems.nodes.mapping_checks import (
    affirms,
    contradicts,
    frees,
    is_light,
    locate,
    misplaced,
    quotation_in,
    same_language,
    unmatched,
)
from gems.nodes.meter import Meter
from gems.nodes.prompt_forms import DraftForm, Prompt
from gems.reading import Reading, alike, read

__all__ = [
    "PARTS",
    "PART_LIMIT",
    "SHORT",
    "Part",
    "Parts",
    "Plan",
    "carried_by",
    "drawable_prompt",
    "form_for",
    "in_front",
    "lost_words",
    "names_absences",
    "unreadable",
    "with_prompt",
    "without_prompt",
]


SHORT: Final[JsonDict] = {"maxLength": 1000}
"""Characters that a server with enforced schemas allows for a draft: a weak model that repeats itself never stops."""
_LONGEST_DRAFT: Final = 4000
"""Characters."""
_LONG: Final[JsonDict] = {"maxLength": _LONGEST_DRAFT}
_SHORT_PROMPT: Final = 500
"""Characters of a user's prompt up to which a draft of ``SHORT`` length has room for all of it."""
_MOST_PARTS: Final = 60
PART_LIMIT: Final[JsonDict] = {"maxItems": 40}
"""Parts that a server with enforced schemas allows."""


class Part(Item):
    """A piece of the wish, and what became of it in the prompt."""

    other_names: ClassVar[Mapping[str, Sequence[str]]] = {
        "words": ("wish", "source", "original"),
        "phrase": ("as", "prompt", "prompt_words", "target"),
    }

    words: Note = Field(
        default="",
        json_schema_extra={"maxLength": 200},
        description="A few words of the wish, copied: one thing and what is said of it.",
    )
    phrase: Note = Field(
        default="",
        json_schema_extra={"maxLength": 200},
        description="The prompt's words that say it, copied; empty for what is said to you and not of the image.",
    )

    @classmethod
    def from_pair(cls, key: str, value: Any) -> Any:
        """See ``Item.from_pair``: words and their phrase."""
        return {"words": key, "phrase": value}


def _readable(raw: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    """The parts that can be read; a prompt without any is as good."""
    try:
        return handler(raw)
    except ValueError:
        return []


Parts = Annotated[list[Part], items_of(Part, _MOST_PARTS), WrapValidator(_readable)]
"""What became of each piece of the wish."""
PARTS: Final = (
    "The whole wish, piece by piece from its first word to its last, and for each the prompt's words that say it."
)


class Plan(DraftForm):
    """Hand in the finished prompt for the image generator."""

    prompt: Prompt = Field(
        min_length=1,
        max_length=_LONGEST_DRAFT,
        description="The generation prompt, complete in itself.",
        json_schema_extra=SHORT,
    )
    parts: Parts = Field(default=[], description=PARTS, json_schema_extra=PART_LIMIT)


FormWithPrompt = TypeVar("FormWithPrompt", bound=Form)


def form_for(form: type[FormWithPrompt], prompt: str) -> type[FormWithPrompt]:
    """A form with a ``prompt``, such as ``Plan``, that has room for all of the user's prompt."""
    return form if len(prompt) <= _SHORT_PROMPT else _with_room(form)


@cache
def _with_room(form: type[FormWithPrompt]) -> type[FormWithPrompt]:
    field = copy(form.model_fields["prompt"])
    field.json_schema_extra = _LONG
    return create_model(form_name(form), __base__=form, __doc__=form.__doc__, prompt=(Prompt, field))


async def drawable_prompt(
    meter: Meter,
    model: BaseChatModel,
    conversation: Sequence[BaseMessage],
    draft: str,
    parts: Sequence[Part] = (),
    *,
    prompt: str = "",
    generator: ImageGenerator,
    calls_after: int = 0,
) -> tuple[str, Sequence[Part]]:
    """A draft that keeps the prompt and that the image model can read, and its parts; empty if there is none.

    The chat model is told once what is wrong with its draft. If words of the prompt are still lost, the prompt is put
    in front of the draft.

    Args:
        meter: Counts the calls.
        model: The chat model that wrote the draft.
        conversation: The messages that it answered with the draft.
        draft: The draft that the chat model wrote.
        parts: What the draft says in other words than the prompt, as the chat model says.
        prompt: The user's prompt; empty if nothing of it has to be kept.
        generator: The image model that the draft is for.
        calls_after: Chat calls that must be left when the chat model has been asked again.
    """
    draft = " ".join(draft.split())
    fault, losses = await in_thread(unreadable, draft, generator), lost_words(prompt, draft, parts)
    if (fault or losses) and not meter.exhausted(chat_calls=1 + calls_after):
        request = fault or WORDS_LOST.format(words=", ".join(losses))
        repair = [*conversation, AIMessage(draft), HumanMessage(request)]
        try:
            with meter.optional(calls_after):
                plan = (await ask(meter, model, form_for(Plan, prompt or draft), repair, blind=True)).form
            other = " ".join(plan.prompt.split())
            still_missing = lost_words(prompt, other, plan.parts)
            if fault or len(still_missing) < len(losses):
                draft, parts, losses = other, plan.parts, still_missing
        except BackendError as error:  # the draft is paid for, and of use
            if is_of_account(error):
                raise
    return await in_thread(_joined_with, prompt, draft, generator, parts), parts


def _joined_with(prompt: str, draft: str, generator: ImageGenerator, parts: Sequence[Part]) -> str:
    """The draft, with the prompt in front of it where that is needed; empty if the image model cannot draw it."""
    if guide_of(generator):
        draft = without_prompt(prompt, draft, parts)
    draft = with_prompt(prompt, draft, generator, parts)
    return "" if objection_to(generator, draft) else draft


def unreadable(draft: str, generator: ImageGenerator) -> str:
    """What the image model cannot read of a draft, and what to do, in words for a chat model; empty if it reads all."""
    if objection := objection_to(generator, draft):
        return f"{objection}. Write the prompt again, without them."
    excess = excess_of(generator, draft)
    return f"{excess}. Write the prompt again." if excess else ""


def without_prompt(prompt: str, draft: str, parts: Sequence[Part]) -> str:
    """The draft without the prompt in front of it, if the remainder says it all: else things would be drawn twice."""
    remainder = draft.removeprefix(prompt.rstrip(" .")).lstrip(" .,:;")
    return draft if remainder == draft or not remainder or lost_words(prompt, remainder, parts) else remainder


def with_prompt(prompt: str, draft: str, generator: ImageGenerator, parts: Sequence[Part] = ()) -> str:
    """The draft, with the prompt in front of it if the draft has lost a word of it.

    The user's own words bring back what a weak model forgets, unless the image model cannot read them or reads
    no further. A draft in another language was written in the one that the image model reads.
    """
    return in_front(prompt, draft, generator) if lost_words(prompt, draft, parts) else draft


def in_front(prompt: str, draft: str, generator: ImageGenerator) -> str:
    """The draft with the prompt in front of it, if the image model reads both, and in the same language."""
    if names_absences(prompt, generator):
        return draft
    whole = f"{prompt.rstrip(' .')}: {draft}"
    is_read = not objection_to(generator, whole) and not excess_of(generator, whole)
    is_one_language = same_language(read(prompt), read(draft))
    return whole if is_read and is_one_language and len(whole) <= _LONGEST_DRAFT else draft


def names_absences(prompt: str, generator: ImageGenerator) -> bool:
    """Whether a prompt names what must not be there, to an image model whose guide says that it draws what it reads."""
    return bool(guide_of(generator)) and bool(read(prompt).negated)


WORDS_LOST: Final = (
    "The prompt has lost: {words}. Write it again, with them. If it says them in other words, name those in parts."
)


# --- what a draft has lost ------------------------------------------------------------------------------------------


def lost_words(prompt: str, draft: str, parts: Sequence[Part] = ()) -> list[str]:
    """What the prompt asks for and a draft neither says in any form of the same words nor, by ``parts``, in others.

    Quotations and what is negated are never given up; numbers and other words, if the parts account for most of the
    prompt. For a draft in another language only ``parts`` show what became of the other words; without them, nothing is
    concluded.
    """
    wish, text = read(prompt), read(draft)
    quotations = [f'"{q}"' for q in wish.quotations if not quotation_in(q, text.text)]
    carried = frozenset[int]().union(*(places for places, _ in carried_by(wish, text, parts)))
    losses = {*misplaced(wish, text), *_lost_negations(wish, text, parts, carried)}
    losses |= {i for part in parts for i in (*_belied(wish, text, part), *_gone(wish, text, part)) if i not in carried}
    if not _is_account(wish, text, carried):
        losses |= {*_lost_numbers(wish, text, carried), *_lost_content(wish, text, carried)}
    return [*quotations, *wish.spell(losses)]


def _is_account(wish: Reading, text: Reading, carried: frozenset[int]) -> bool:
    """Whether the parts account for most of the prompt, or of what the draft does not say in its words.

    What such an account says nothing of is mostly said to the chat model, or said in passing. Whether a thing was
    forgotten shows when the draft is compared with the requirements.
    """
    in_other_words = unmatched(wish, wish.content, text) if same_language(wish, text) else wish.content
    accounted = [sum(i in carried for i in indexes) * 2 >= len(indexes) for indexes in (wish.content, in_other_words)]
    return bool(carried) and any(accounted)


def carried_by(wish: Reading, text: Reading, parts: Sequence[Part]) -> list[tuple[frozenset[int], Part]]:
    """The parts that are true, each with the indexes of the prompt's words that the draft carries by it."""
    return [(places, part) for part in parts if (places := _carried(wish, text, part))]


def _belied(wish: Reading, text: Reading, part: Part) -> list[int]:
    """Indexes of the prompt's words for which a part has another number or colour, or their opposite."""
    places, words, phrase = locate(wish, part.words), read(part.words, wish.language), read(part.phrase, text.language)
    return [i for i in wish.content if i in places] if phrase.tokens and contradicts(words, phrase) else []


def _gone(wish: Reading, text: Reading, part: Part) -> list[int]:
    """Indexes of the prompt's words that are to be said by a phrase of which the draft does not have half."""
    phrase = read(part.phrase, text.language)
    if not phrase.content or len(unmatched(phrase, phrase.content, text)) * 2 < len(phrase.content):
        return []
    places = locate(wish, part.words)
    own = [i for i in wish.content if i in places and not is_light(wish, i)]
    return unmatched(wish, own, text) if same_language(wish, text) else own


def _carried(wish: Reading, text: Reading, part: Part) -> frozenset[int]:
    """Indexes of the prompt's words that the draft carries by this part; empty if it is not true."""
    places, words, phrase = locate(wish, part.words), read(part.words, wish.language), read(part.phrase, text.language)
    if not places or not phrase.tokens or not _stands_in(phrase, text) or contradicts(words, phrase):
        return frozenset()
    content = [i for i in wish.content if i in places]
    if same_language(wish, phrase):
        missing = unmatched(wish, content, phrase)
        if missing and not unmatched(phrase, phrase.content, words):
            return places - set(missing)  # it only says less
    return places


def _stands_in(phrase: Reading, text: Reading) -> bool:
    """Whether a phrase is in the draft, perhaps with other words between or in another form."""
    if " ".join(phrase.words) in " ".join(text.words):
        return True
    content = phrase.content or list(range(len(phrase.tokens)))
    missing = unmatched(phrase, content, text)
    return len(missing) * 5 <= len(content) and phrase.values - {1} <= text.values and not misplaced(phrase, text)


def _lost_numbers(wish: Reading, text: Reading, carried: Collection[int]) -> list[int]:
    counts = [n for n in wish.numbers if n.value > 1 and not n.is_measure and n.position not in wish.asides]
    return [n.position for n in counts if n.position not in carried and not _has_value(text, n.value)]


def _has_value(text: Reading, value: int) -> bool:
    """Whether a draft has a number, or its numbers add up to it; "1920s" has the number 1920."""
    with_ending = re.compile(rf"{value}\D+")
    return value in text.values | {sum(text.values)} or any(with_ending.fullmatch(word) for word in text.words)


def _lost_negations(wish: Reading, text: Reading, parts: Sequence[Part], carried: Collection[int]) -> list[int]:
    """What is not to be there, and yet is drawn, or is left unsaid by a chat model that says what it says otherwise."""
    if not wish.negated or not same_language(wish, text):
        return []
    denials = sum(map(frees, text.words))
    unsaid = bool(parts) and denials < len(wish.negated)
    return [
        i
        for group in wish.negated
        if _is_drawn(wish, group, text) or (unsaid and not set(group) & set(carried))
        for i in group
    ]


def _is_drawn(wish: Reading, group: Sequence[int], text: Reading) -> bool:
    """Whether a draft has what the prompt negates, and nowhere wants."""
    name = wish.words[group[-1]]
    denials = sum(alike(name, wish.words[other[-1]]) for other in wish.negated)
    is_wanted_too = sum(alike(name, word) for word in wish.words) > denials or "other" in wish.words[: group[0]][-2:]
    return not is_wanted_too and affirms(text, [wish.words[i] for i in group])


def _lost_content(wish: Reading, text: Reading, carried: Collection[int]) -> list[int]:
    negated = {i for group in wish.negated for i in group} if same_language(wish, text) else set()
    open_ = [i for i in wish.content if i not in carried and i not in negated and not is_light(wish, i)]
    missing = unmatched(wish, open_, text)
    if carried:
        return missing
    if not same_language(wish, text):
        names = [i for i in missing if wish.words[i].isascii()]
        return [] if _has_latin_script(wish) else names
    missing = [i for i in missing if not _is_action(wish, i)]
    return [] if _is_rich(wish, text, missing) else missing


def _is_action(wish: Reading, index: int) -> bool:
    """Whether a word relates two things: "chasing" in "a cat chasing a dog". A draft may say where they are.

    A sparkling cat is none.
    """
    return wish.language.name == "en" and wish.words[index].endswith("ing") and index + 1 not in wish.content_places


def _has_latin_script(reading: Reading) -> bool:
    return sum(word.isascii() for word in reading.words) * 2 > len(reading.words)


def _is_rich(wish: Reading, text: Reading, missing: Sequence[int]) -> bool:
    """Whether a draft without parts says so much of its own that it may say what is missing in other words.

    A weak model forgets things and adds little; so a thing of which no word is left counts as lost, unless it is one of
    many in a rich draft.
    """
    additions = len(unmatched(text, text.content, wish))
    if any(wish.language.colours_of(wish.words[i]) for i in missing) or additions < 3 * len(missing):
        return False
    chunks = _chunks(wish)
    absent_chunks = [chunk for chunk in chunks if set(chunk) <= set(missing)]
    things = [chunk for chunk in absent_chunks if not (len(chunk) == 1 and wish.words[chunk[0]].endswith("ing"))]
    return not things or (len(things) * 3 <= len(chunks) and additions >= 8 * len(things))


def _chunks(wish: Reading) -> list[list[int]]:
    """The content words, neighbours together."""
    chunks: list[list[int]] = []
    for i in wish.content:
        if chunks and i == chunks[-1][-1] + 1 and wish.tokens[i].clause == wish.tokens[i - 1].clause:
            chunks[-1].append(i)
        else:
            chunks.append([i])
    return chunks
