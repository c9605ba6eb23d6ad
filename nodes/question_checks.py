"""Checks in code that the questions about an image are those of the prompt: none invented, none left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from gems.languages import Words
from gems.nodes.mapping_checks import (
    VAGUE,
    contradicts,
    is_copied,
    is_free_of,
    is_light,
    locate,
    misplaced,
    other_colour,
    quotation_in,
    same_language,
    unmatched,
)
from gems.reading import Reading, alike, read

__all__ = ["Mapped", "is_grounded", "is_mapped", "missing_parts", "says_optional", "sound_questions", "stands_for"]


@dataclass(frozen=True)
class Mapped:
    """A question, and the words of the prompt that it stands for, as a chat model says."""

    prompt: str
    question: str
    words: str = ""

    @cached_property
    def places(self) -> frozenset[int]:
        """Indexes of the prompt's words that it stands for."""
        return locate(read(self.prompt), self.words)

    @property
    def asks(self) -> Reading:
        """The question without what is in brackets."""
        return read(re.sub(r"\([^)]*\)", "", self.question))


def is_mapped(questions: Sequence[Mapped]) -> bool:
    """Whether the words of most questions are in the prompt. Otherwise the chat model's words are of no use."""
    return bool(questions) and sum(bool(q.places) for q in questions) * 2 >= len(questions)


def sound_questions(questions: Sequence[Mapped]) -> list[Mapped]:
    """The questions that are about the prompt, in order.

    A question that says more than its words, or whose words are not in the prompt, is kept only if something that
    it may stand for has no other question.
    """
    checked = [(q, _is_sound(q)) for q in questions]
    plain = [q for q in questions if _is_plain(q)]
    checked = [(q, None if is_sound and _adds(q, plain) else is_sound) for q, is_sound in checked]
    kept_questions = [q for q, is_sound in checked if is_sound]
    for q, is_sound in checked:
        if is_sound is None and _is_needed(q, kept_questions):
            kept_questions.append(q)
    return [q for q in questions if q in kept_questions]


def _is_needed(q: Mapped, rest: Sequence[Mapped]) -> bool:
    """Whether the other questions leave out something of the prompt that this one may stand for."""
    missing = _uncovered(q.prompt, rest)
    return bool(q.places.intersection(missing) if q.places else missing)


def _is_plain(q: Mapped) -> bool:
    """Whether a question only asks whether there is one thing."""
    return bool(q.places) and bool(_EXISTENCE.match(q.question)) and len(_content(q.asks)) == 1


def _adds(q: Mapped, plain: Sequence[Mapped]) -> bool:
    """Whether a question says more of words than that there is what they name, which another one asks already.

    What it adds has to be in the prompt. In another language that cannot be seen, except where there is only one word.
    """
    wish, asks, content = read(q.prompt), q.asks, _content(q.asks)
    if same_language(wish, asks):
        added = [i for i in unmatched(asks, content, wish) if asks.words[i] not in _HAVING]
        return any(p is not q and p.places == q.places and unmatched(asks, added, p.asks) for p in plain)
    is_word = sum(i in q.places for i in wish.content) == 1
    return is_word and len(content) > 1 and any(p.places == q.places for p in plain)


_EXISTENCE: Final = re.compile(r"(?:is|are) there\b", re.IGNORECASE)


def _is_sound(q: Mapped) -> bool | None:
    """Whether a question is about the prompt; None if that cannot be told from the question alone."""
    wish, asks = read(q.prompt), q.asks
    words = read(q.words, wish.language) if q.places else wish
    if _misquotes(wish, words, asks):
        return False
    if "same" in asks.words and "same" not in wish.words and wish.language.name == "en":
        return False  # a weak model compares what nobody compared
    if not _repeats(words, asks, wish, q) and (misplaced(wish, asks) or other_colour(wish, asks)):
        return False
    if q.places:
        if contradicts(_at(wish, q.places), asks) or contradicts(words, asks) or _affirms(wish, asks):
            return False
        return None if _says_more(wish, q, asks) else True
    if asks.values - {1} and wish.values and not asks.values & wish.values and not _is_vague(wish):
        return False
    if _affirms(wish, asks):
        return False
    if not same_language(wish, asks):
        return None
    return _is_about(wish, asks)


def _repeats(words: Reading, asks: Reading, wish: Reading, q: Mapped) -> bool:
    """Whether the numbers and colours of a question are those of its words, which are in the prompt as they are."""
    is_exact = bool(q.places) and is_copied(wish, q.words)
    return is_exact and asks.values - {1} <= words.values and asks.colours(shades=False) <= words.colours()


def _at(wish: Reading, places: frozenset[int]) -> Reading:
    """The prompt's own words at these places."""
    joint = " " if wish.language.spaced else ""
    return read(joint.join(wish.tokens[i].text for i in sorted(places)), wish.language)


def _is_vague(words: Reading) -> bool:
    return any(word in VAGUE for word in words.words)


def _misquotes(wish: Reading, words: Reading, asks: Reading) -> bool:
    """Whether a question quotes another text than the words that it stands for."""
    foreign = [q for q in asks.quotations if not quotation_in(q, wish.text)]
    other = words.quotations and asks.quotations and not any(quotation_in(q, words.text) for q in asks.quotations)
    return bool((foreign and words.quotations) or other)


def _affirms(wish: Reading, asks: Reading) -> bool:
    """Whether a question asks for what the prompt says must not be."""
    if asks.is_negated or is_free_of(asks) or not same_language(wish, asks):
        return False
    negated = {i for group in wish.negated for i in group}
    heads = {wish.words[group[-1]] for group in wish.negated}
    elsewhere = {wish.words[i] for i in wish.content if i not in negated}
    return any(asks.has(head) and not any(alike(head, word) for word in elsewhere) for head in heads)


# --- invented -------------------------------------------------------------------------------------------------------

_FRAME: Final = Words(
    "image picture photo photograph scene shown visible visibly present seen appear* look* feature* "
    "contain* include* display* "
    "depict* locat* place* position* anywhere background foreground style text word words letter letters "
    "lettering say says "
    "read reads written writing spell* correct* legib* readab* clear* color* colour* material kind type "
    "main central subject "
    "overall entire whole setting set made make take takes happening render* drawn painted decorat* "
    "design* styl* dress* mood "
    "atmosphere lighting composition feel* exact* precise* many much number count total least most more "
    "than fewer true "
    "evident recogni* identif* apparent suggest* convey* evoke* seem* resembl* view* shot frame* focus "
    "part form shape element "
    "detail* object item thing figure character typical actual entirely completely fully portray* "
    "illustrat* give* being "
    "do does did has have had was were can come* fall* cast shin* suit* kinds name* label* side half "
    "free nearest closest "
    "carried sort print* amount"
)
"""Words that occur in questions about anything."""
_HAVING: Final = Words("wear* worn hold* held carry* carrie* surround* cover* fill* form* us* lit")
"""Verbs that only join a thing to another one that the question names."""
_RELATING: Final = Words(
    "stand* sit* lying lie* laid rest* hang* float* stretch* "
    "perch* rid* use* using walk* travel* face* facing fly* flying mount* attach* hover* span* lean* "
    "situat* running run "
    "going coming move* moving"
)
"""Words in which a question puts a relation that the prompt puts in a preposition."""
_PREPOSITIONS: Final = Words(
    "in on at with of under over behind beside near from through across against into onto above below to"
)
_GENERIC: Final = Words(
    "man men woman women person people human humans boy girl child children kid kids animal animals "
    "creature bird plant "
    "building vehicle machine clothing clothes garment food fruit place room area space surface ground "
    "floor sky head face "
    "hand hands body hair light eyes top viewer camera"
)
"""Names of kinds: a question may use them for a thing that the prompt names more closely."""
_SUBJECT: Final = re.compile(
    r"^(?:is|are|does|do|has|have|was|were|can) (?:the|his|her|its|their|this|that|these|those)\b", re.I
)


def _content(asks: Reading) -> list[int]:
    return [i for i in asks.content if asks.words[i] not in _FRAME]


def _says_more(wish: Reading, q: Mapped, asks: Reading) -> bool:
    """Whether a question says all of its own words and something that is not in the prompt besides.

    Where it says some of its words in another way, the rest of what it says may be that.
    """
    own, content = [i for i in wish.content if i in q.places], _content(asks)
    counts = asks.values - {1}
    if not (wish.language.name == asks.language.name == "en") or (
        read(q.words, wish.language).is_negated and (asks.is_negated or is_free_of(asks))
    ):
        return False
    missing = unmatched(wish, own, asks)
    extra = unmatched(asks, content, wish)
    if extra and _SUBJECT.match(asks.text) and extra[0] == content[0]:
        extra = extra[1:]  # "Is the dog a border collie?"
    is_relation = any(wish.words[i] in _PREPOSITIONS for i in q.places)
    extra = [i for i in extra if asks.words[i] not in _HAVING and not (is_relation and asks.words[i] in _RELATING)]
    extra = [i for i in extra if i == content[0] or asks.words[i] not in _GENERIC]
    is_count_invented = bool(counts) and not counts & wish.values and not _is_vague(wish) and not _is_plural(asks)
    if not missing:
        return bool(extra) or is_count_invented
    return len(extra) > 2 * len(missing) + 1


def _is_plural(asks: Reading) -> bool:
    """Whether a question asks for more than one, which the plural says."""
    return asks.values <= {1, 2} and bool(re.search(r"\b(?:at least|more than|or more)\b", asks.text, re.I))


def is_grounded(question: str, prompt: str) -> bool:
    """Whether a question is about the prompt, judged by the words that both have: for a question without ``words``.

    A weak model asks about things that nobody named: whether the cat is made of wood, as in its example, or whether
    two things look the same.
    """
    return _is_sound(Mapped(prompt, question)) is True


def _is_about(wish: Reading, asks: Reading) -> bool | None:
    """Whether more than half of a question's content is in the prompt; None if nothing of it is."""
    content = _content(asks)
    foreign = unmatched(asks, content, wish)
    if any(quotation_in(q, wish.text) for q in asks.quotations) or not content:
        return True
    if asks.is_negated and wish.is_negated and len(foreign) < len(content):
        return True
    if len(foreign) == len(content):
        return None if not asks.quotations else False
    return True if len(foreign) * 2 < len(content) else None


# --- left out -------------------------------------------------------------------------------------------------------

_LOOSE_NUMBERS: Final = Words(
    "pair couple both twin twins single lone duo trio quartet paar beide beiden paire par pareja ambos "
    "coppia paio casal"
)


def missing_parts(prompt: str, questions: Sequence[Mapped]) -> list[str]:
    """What the prompt asks for and no question stands for, in the prompt's words."""
    wish = read(prompt)
    readings = [q.asks for q in questions]
    quotations = [f'"{t}"' for t in wish.quotations if not any(quotation_in(t, asks.text) for asks in readings)]
    return [*quotations, *wish.spell(_uncovered(prompt, questions))]


def _uncovered(prompt: str, questions: Sequence[Mapped]) -> list[int]:
    wish = read(prompt)
    covered = {i for q in questions for i in q.places}
    covered |= {
        i for i in wish.content for q in questions if same_language(wish, q.asks) and not unmatched(wish, [i], q.asks)
    }
    negated = {i for group in wish.negated for i in group}
    missing = {i for i in wish.content if i not in covered and i not in negated and not is_light(wish, i)}
    if not wish.language.spaced:
        missing = {i for i in missing if {i - 1, i + 1} & missing or not {i - 1, i + 1} & covered}
    missing |= {
        n.position
        for n in wish.numbers
        if n.value > 1 and not n.is_measure and not _counted(wish, n.value, n.position, questions)
    }
    missing |= {i for group in wish.negated if not any(_denies(wish, group, q) for q in questions) for i in group}
    return sorted(missing)


def _counted(wish: Reading, value: int, position: int, questions: Sequence[Mapped]) -> bool:
    if wish.words[position] in _LOOSE_NUMBERS and any(position in q.places for q in questions):
        return True
    return any(value in q.asks.values for q in questions)


def _denies(wish: Reading, group: Sequence[int], q: Mapped) -> bool:
    """Whether a question stands for something that is not to be there."""
    says_so = q.asks.is_negated or is_free_of(q.asks)
    is_about = bool(q.places & set(group)) or (same_language(wish, q.asks) and q.asks.has(wish.words[group[-1]]))
    is_its_own = sum(i in q.places for i in wish.content) <= len(group) + 1
    return is_about and (says_so or is_its_own)


def stands_for(missing: Sequence[str], q: Mapped) -> bool:
    """Whether a question is about something that had none: by its words, or as far as can be told."""
    return not q.places or any(
        set(read(part, read(q.prompt).language).words) & {read(q.prompt).words[i] for i in q.places} for part in missing
    )


_OPTIONAL: Final = re.compile(
    r"\b(?:ideally|if (?:you can|possible|it fits)|maybe|perhaps|possibly|optional\w*|preferabl[ye]|bonus|would be nice"
    r"|nice to have|am liebsten|wenn (?:es )?(?:geht|möglich)|idealerweise|vielleicht|eventuell|gerne? auch|si possible"
    r"|idéalement|peut-être|de préférence|si es posible|idealmente|quizás?|tal vez|preferiblemente|se possibile|magari"
    r"|se possível|talvez|indien mogelijk|misschien|bij voorkeur|jeśli można|może|eğer mümkünse|mümkünse|belki)\b"
    r"|если можно|желательно|возможно|по возможности|может быть|в идеале"
    r"|最好|如果可以|可能的话|如果可能|可以的话|できれば|可能なら|もし可能"
    r"|가능하면|가능하다면|되도록|إن أمكن|ان امكن|لو أمكن|ربما|يفضل|यदि संभव|अगर संभव|हो सके|शायद",
    re.IGNORECASE,
)


def says_optional(prompt: str) -> bool:
    """Whether the user says of anything that it may be left out."""
    return bool(_OPTIONAL.search(prompt))
