"""Compares a draft with the questions about its image: two accounts of one prompt, written apart from each other.

What one of them says, and neither the other nor the prompt does, was invented there or forgotten here. Both are mostly
in English, so that this works for prompts in any language.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from gems.languages import UNKNOWN, Words
from gems.nodes.absence import is_denial, is_drawn_though_absent, is_ruled_out
from gems.nodes.mapping_checks import (
    AFTER_A_THING,
    is_free_of,
    is_light,
    locate,
    misplaced,
    quotation_in,
    same_language,
    unmatched,
)
from gems.nodes.prompt_checks import Part, carried_by
from gems.nodes.question_checks import Mapped, content_of, uncovered
from gems.reading import Reading, read

__all__ = ["forgotten", "is_invented", "left_out"]


# --- invented -------------------------------------------------------------------------------------------------------


def is_invented(q: Mapped, questions: Sequence[Mapped], draft: str, parts: Sequence[Part] = ()) -> bool:
    """Whether a question asks for something of which neither the prompt nor the draft nor another question speaks.

    A question may say in its own words what the draft says in others. So it is only doubted if the other questions
    stand for all of the prompt's words that it stands for.

    Args:
        q: The question.
        questions: The other questions about the same prompt.
        draft: The prompt for the image model.
        parts: What became of the prompt in the draft, as the chat model says that wrote it.
    """
    asks, wish, text = q.asks, read(q.prompt), read(draft)
    if not all(_is_quoted_in(t, wish.text) or _is_quoted_in(t, text.text) for t in asks.quotations):
        return True
    if is_ruled_out(q, questions):
        return True
    mapped = frozenset[int]().union(*(other.places for other in questions))
    if not _claim(q, wish, _asides(wish, parts)) <= mapped or is_free_of(asks):
        return False
    witnesses = [r for r in (wish, text) if same_language(asks, r)]
    witnesses += [other.asks for other in questions if other.asks.text != asks.text]
    as_asked = read(q.prompt, asks.language)  # a few words may be taken for those of another language
    if _counts_of(asks) - frozenset[int]().union(*(r.values for r in (wish, as_asked, text, *witnesses))):
        return True
    thing = _existing_thing(asks)
    if thing and any(not unmatched(asks, thing[-1:], r) for r in witnesses):
        return False  # "a lucha libre mask", where the draft has a mask
    if any(not unmatched(asks, [i], r) for i in _counted_thing(asks) for r in witnesses):
        return False  # whatever adverb stands beside the number, of which the prompt or the draft speaks
    new, colours = content_of(asks), wish.colours() | text.colours()
    for r in witnesses:
        new = unmatched(asks, new, r)
    head = [] if "who" in asks.words else thing[-1:]  # "a woman who is a baker" is named twice
    new = [i for i in new if (i in head or asks.words[i] not in _COMMON) and not asks.colours([i]) & colours]
    return bool(new) and not _may_rename(asks, new)


def _may_rename(asks: Reading, new: Sequence[int]) -> bool:
    """Whether a question of known things may say a name of the prompt in another way: Bremen, "German"."""
    return all(i and asks.tokens[i].is_name for i in new) and len(new) * 2 < len(content_of(asks))


def _counts_of(asks: Reading) -> set[int]:
    """The numbers of a question, without those of what was named before: "the other two"."""
    return {n.value for n in asks.numbers if n.value > 1 and asks.words[n.position - 1] not in ("the", "other")}


def _is_quoted_in(quotation: str, text: str) -> bool:
    """Whether a quotation stands in a text; one or two letters, as a word."""
    if len(quotation) > 2:
        return quotation_in(quotation, text)
    return bool(re.search(rf"\b{re.escape(quotation)}\b", text))


def _asides(wish: Reading, parts: Sequence[Part]) -> frozenset[int]:
    """What is said to the chat model and not of the image, by the form of the words or by the chat model's account."""
    return wish.asides.union(*(locate(wish, part.words) for part in parts if not part.phrase))


def _claim(q: Mapped, wish: Reading, asides: frozenset[int]) -> frozenset[int]:
    """The words of the prompt that a question stands for, without those that only join others or are no part of it."""
    places = q.places - asides
    content = places.intersection(wish.content)
    return content if content and wish.language is not UNKNOWN else places


_COMMON: Final = Words(
    "man men woman women person people human humans boy girl child children kid kids animal animals creature bird "
    "plant building vehicle machine clothing clothes garment food fruit fish flower flowers place room area space "
    "surface ground floor sky head hand hands body hair light eyes viewer camera wear* worn hold* held carry* carrie* "
    "surround* cover* fill* form* us* lit stand* sit sits sitting lying lie lies laid rest* hang* float* stretch* "
    "perch* ride rides riding walk* travel* face* facing fly* mount* attach* hover* span* lean* situat* running run "
    "going coming move* moving measure* big large small little tiny huge tall adult male female real typical low high "
    "heavy heavily strong strongly different various model version blur* focus* consist*"
)
"""Words in which a question says what the prompt says otherwise: kinds of things, sizes, and ways to be somewhere.

What a question asks the existence of is named by its own kind: "a man" is not excused."""


# --- forgotten ------------------------------------------------------------------------------------------------------


def forgotten(prompt: str, draft: str, parts: Sequence[Part], questions: Iterable[Mapped]) -> list[Mapped]:
    """The questions about things, numbers and colours of the prompt that the draft has in no form.

    Args:
        prompt: The user's prompt.
        draft: The prompt for the image model.
        parts: What became of the prompt in the draft, as the chat model says that wrote it.
        questions: The questions about the image.
    """
    wish, text = read(prompt), read(draft)
    carriers = [places | _reworded(wish, part) for places, part in carried_by(wish, text, parts)]
    questions = list(questions)
    return [
        q
        for q in questions
        if (is_drawn_though_absent(q, questions, draft) if is_denial(q) else _is_forgotten(q, wish, text, carriers))
    ]


def _reworded(wish: Reading, part: Part) -> frozenset[int]:
    """The words of a part whose phrase says more than they do, and so perhaps what it leaves out of them."""
    words, phrase = read(part.words, wish.language), read(part.phrase)
    is_new = any(word not in words.words and word not in phrase.language.function for word in phrase.words)
    return locate(wish, part.words) if is_new else frozenset()


def _is_forgotten(q: Mapped, wish: Reading, text: Reading, carriers: Sequence[frozenset[int]]) -> bool:
    asks, own = q.asks, q.places.intersection(wish.content) or q.places
    if _has_other_number(asks, text) or _has_other_colour(asks, wish, q.places, text):
        return True
    thing = _existing_thing(asks) or _held_thing(asks)
    if not thing:
        return _is_unaccounted(asks, own, wish, text, carriers)
    if same_language(asks, text):
        missing = unmatched(asks, thing, text)
        if thing[-1] not in missing or len(missing) * 2 < len(thing) or asks.words[thing[-1]] in _COMMON:
            return False
    elif not own or not same_language(wish, text) or len(unmatched(wish, own, text)) < len(own):
        return False
    return not any(own and own <= places and _is_about_one_thing(wish, places) for places in carriers)


def _is_unaccounted(
    asks: Reading, own: frozenset[int], wish: Reading, text: Reading, carriers: Sequence[frozenset[int]]
) -> bool:
    """Whether neither a question nor the words that it stands for are in the draft or its account."""
    carried = frozenset[int]().union(*carriers)
    open_ = [i for i in own if i not in carried and not is_light(wish, i)]
    if not open_ or not carriers:
        return False
    if same_language(wish, text) and len(unmatched(wish, open_, text)) < len(open_):
        return False
    content = content_of(asks)
    return len(unmatched(asks, content, text)) * 2 >= len(content) > 0


_WORDS_OF_A_THING: Final = 5
"""Content words up to which a part is about one thing, so that its phrase is about that thing too."""


def _is_about_one_thing(wish: Reading, places: frozenset[int]) -> bool:
    return sum(i in places for i in wish.content) <= _WORDS_OF_A_THING


def _has_other_number(asks: Reading, text: Reading) -> bool:
    """Whether a question counts, and the draft has another number of the thing, or nowhere that number."""
    values = {n.value for n in asks.numbers if n.value > 1 and not n.is_measure}
    if not values or "exactly" not in asks.words:
        return False
    return bool(misplaced(asks, text)) or not values & (text.values | _sums(text))


_NEAR: Final = 8
"""Words between two numbers that may be of the same things: "a grey kitten and a pair of white ones" are three."""


def _sums(text: Reading) -> set[int]:
    counts = [(n.position, n.value) for n in text.numbers]
    counts += [(i, 1) for i, word in enumerate(text.words) if word in ("a", "an", "another")]
    neighbours = itertools.pairwise(sorted(dict(counts).items()))
    return {value + other for (place, value), (other_place, other) in neighbours if other_place - place <= _NEAR}


def _has_other_colour(asks: Reading, wish: Reading, places: frozenset[int], text: Reading) -> bool:
    """Whether a question is about a colour, and the draft gives the thing another one, or nowhere has that colour."""
    colours = asks.colours(shades=False)
    if wish.language is not UNKNOWN:  # of which the colours are known
        colours &= wish.colours(places)
    shades = asks.colours(unmatched(asks, asks.content, text))
    if shades and wish.colours(places) and not shades & text.colours():
        return True
    return not colours <= text.colours() or bool(not asks.numbers and misplaced(asks, text))


# --- left out -------------------------------------------------------------------------------------------------------


def left_out(prompt: str, draft: str, parts: Sequence[Part], questions: Sequence[Mapped]) -> list[str]:
    """Words of the prompt that the draft keeps, and that no question stands for.

    Numbers, quotations and what is negated are named even if the draft does not keep them.
    """
    wish, text = read(prompt), read(draft)
    quotations = [f'"{t}"' for t in wish.quotations if not any(quotation_in(t, q.asks.text) for q in questions)]
    if wish.language is UNKNOWN:  # nothing tells which of its words only join others
        return quotations
    carried = frozenset[int]().union(*(places for places, _ in carried_by(wish, text, parts)))
    mapped = frozenset[int]().union(*(q.places for q in questions))
    strict = {n.position for n in wish.numbers} - mapped | {i for group in wish.negated for i in group}
    missing = [i for i in uncovered(prompt, questions) if i not in wish.asides]
    literal = set(missing) - set(unmatched(wish, missing, text)) if same_language(wish, text) else set()
    return [*quotations, *wish.spell([i for i in missing if i in carried - mapped | literal | strict])]


# --- English questions ----------------------------------------------------------------------------------------------


_EXISTENCE: Final = re.compile(r"(?:is|are) there\b", re.IGNORECASE)
_HOLDING: Final = Words("wear wears wearing have has having hold holds holding carry carries carrying contain contains")


def _existing_thing(asks: Reading) -> list[int]:
    """Indexes of the words for what a question asks the existence of: "red cup" in "Is there a red cup on it?"."""
    return _thing_from(asks, 2) if _EXISTENCE.match(asks.text) else []


_ADVERB: Final = re.compile(r"\w (?:に|で)|\w+[히게로만](?: |\Z)")
"""Matches an adverb of Japanese or Korean, with the word that follows it."""
_NO_THINGS: Final = Words("色 대 대의 대가 명 명의 마리 개가 개의")
"""A part of the names of colours, and what Korean puts between a number and a thing."""


def _counted_thing(asks: Reading) -> list[int]:
    """Indexes of the words that may name what a question counts, in languages other than English.

    They follow the number or, as in Japanese and Korean, stand before it.
    """
    counts = [n.position for n in asks.numbers if n.value > 1 and not n.is_measure]
    if not counts or asks.language.name == "en":
        return []
    content = {i for i in content_of(asks) if not asks.colours([i]) and asks.words[i] not in _NO_THINGS}
    return _run_from(asks, counts[0], content, 1) or _run_from(asks, counts[0], content, -1)


def _run_from(asks: Reading, start: int, content: AbstractSet[int], step: int) -> list[int]:
    """The next content words from an index on in its clause, up to the word after them that is none."""
    run, is_skipped = list[int](), False
    places = range(start + step, len(asks.words) if step > 0 else -1, step)
    for i in itertools.takewhile(lambda i: asks.tokens[i].clause == asks.tokens[start].clause, places):
        is_content = i in content
        is_skipped = is_content and (is_skipped or (step < 0 and bool(_ADVERB.match(" ".join(asks.words[i : i + 2])))))
        if is_content and not is_skipped:
            run.append(i)
        elif run:
            break
    return run


def _held_thing(asks: Reading) -> list[int]:
    """Indexes of the words for what something has or wears: "hat" in "Does the man wear a hat?"."""
    verbs = [i for i, word in enumerate(asks.words) if word in _HOLDING and i > 0]
    return _thing_from(asks, verbs[0] + 1) if verbs else []


def _thing_from(asks: Reading, start: int) -> list[int]:
    """The content words from there to the next preposition or participle."""
    content, thing = set(content_of(asks)), list[int]()
    for i in range(start, len(asks.words)):
        if thing and (asks.words[i] in AFTER_A_THING or asks.words[i].endswith("ing")):
            break
        if i in content:
            thing.append(i)
    return thing
