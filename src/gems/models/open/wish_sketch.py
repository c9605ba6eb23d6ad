"""A wish while its prompt is read: what waits for its noun, the groups so far, and what cannot be drawn.

What is not understood is never passed over in silence: a noun that no table has is drawn as its nearest neighbour, if
that is near enough; another is not drawn, and other words are left out. Each is a note for the user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from gems.errors import InputError
from gems.models.open.draft_wording import SCENERY_NAMES, noun_of
from gems.models.open.drawn_parts import has_part, has_scenery
from gems.models.open.phrasebook import Phrasebook
from gems.models.open.slots import writable
from gems.models.open.stage import CARRIERS, MAX_THINGS
from gems.models.open.things import INDEX, LOOK_NAMES, THINGS
from gems.models.open.wish import Relation, Wish
from gems.models.open.wish_bonds import Bonds, Draft, quantity
from gems.models.pocket.vocabulary import with_near_words

__all__ = ["HINT", "Neighbour", "Reading", "Sketch", "Waiting", "in_short"]

MAX_GROUPS: Final = 5

Neighbour = Callable[[str], str | None]
"""The name of the thing that is nearest in meaning to an unknown noun; None if none is near enough."""

HINT: Final = "for free language choose real models with --mllm and --generator"


class Reading(NamedTuple):
    """A prompt that was read.

    Attributes:
        wish: What it asks for.
        stand_ins: Nouns that are drawn as something else: the user's word, and the name of the thing or background.
        missing: Nouns that are not drawn, and all backgrounds but one.
        scenes: Those of them that are backgrounds.
        left_out: Words that mean nothing to the models.
        denials: Those of them that deny something, such as "no animals": nothing can tell whether they are kept.
        language: The code of the language.
    """

    wish: Wish
    stand_ins: tuple[tuple[str, str], ...] = ()
    missing: tuple[str, ...] = ()
    scenes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    denials: tuple[str, ...] = ()
    language: str = "en"

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        stand_ins = [f"{word!r} is drawn as {_a(name)}" for word, name in self.stand_ins]
        missing = [f"not drawn: {', '.join(self.missing)}"] if self.missing else []
        more = f" (there is one background, {self.drawn_scene})" if self.scenes else ""
        left_out = [f"left out: {', '.join(self.left_out)}"] if self.left_out else []
        return (*stand_ins, *(text + more for text in missing), *left_out)

    @property
    def drawn_scene(self) -> str:
        """The background, as it is named in a sentence."""
        return _a(self.wish.background)


def in_short(text: str) -> str:
    """A user's words as an error quotes them: no longer than a line."""
    return text if len(text) <= _LONGEST_QUOTE else f"{text[:_LONGEST_QUOTE]}..."


_LONGEST_QUOTE: Final = 120


def _a(name: str) -> str:
    return SCENERY_NAMES.get(name) or f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


@dataclass
class Waiting:
    """What was read before its noun."""

    number: str = ""
    look: int = 0
    size: str = ""
    place: str = ""
    unknown: list[str] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits that a noun would take."""
        return not (self.number or self.look or self.size)

    def draft(self, thing: int) -> Draft:
        """A group of a thing, of which its number was said."""
        count, more = quantity(self.number)
        return Draft(thing, count, more, self.look, self.size, self.place)


class Sketch(Bonds):
    """A wish that grows as its prompt is read: its groups, and what was read before its noun.

    Args:
        book: The words of the prompt's language.
        texts: The prompt's quoted parts.
        neighbour: Finds the thing that an unknown noun is nearest to.
    """

    def __init__(self, book: Phrasebook, texts: list[str], neighbour: Neighbour | None) -> None:
        super().__init__()
        self.book, self.texts, self.neighbour = book, texts, neighbour
        self.background = ""
        self.absent: list[int] = []
        self.missing: list[str] = []
        self.scenes: list[str] = []
        self.denials: list[str] = []
        self.waiting = Waiting()
        self.number_text = ""
        """The last number, as it was written."""
        self.elided: list[Waiting] = []
        """Numbers and looks whose noun is said elsewhere: "a red and a blue car", "two cats, one black, one white"."""
        self.negation = ""
        """The negation that waits for its noun, as it was written."""
        self.after_absent = ""
        """How the last noun was named, if it must not be there: "bare" or with an "article"."""
        self.is_separated = True
        """Whether a comma, an "and" or a relation stands between the last group and the cursor."""
        self.is_apart = False
        """Whether an "and" or a comma stands between the last two groups."""
        self.said_with = self.said_and = self.said_comma = False
        self.with_text = ""
        """The last "with" as it was written; empty if it means no more than "and"."""
        self.is_with_apart = False
        """Whether a comma or an "and" stands before the last "with"."""

    def reading(self) -> Reading:
        """What has been read, at the end of the prompt.

        Raises:
            InputError: It is nothing, too much, or contradicts itself.
        """
        self.end_phrase()
        self.leave_number()
        self.share_out()
        self.share_relations()
        if self.negation:
            self.leave_denial(self.negation)
        self.drop_relation()
        if self.leading and not _is_preposition(self.leading, self.leading_text):
            self.left_out.append(self.leading_text)
        self._write()
        self.join_mentions()
        self._bare_trees()
        absent = tuple(dict.fromkeys(self.absent))
        for name, part in ((THINGS[g.thing].name, part) for g in self.groups for part in absent):
            if has_part(name, part):
                self.leave_denial(f"{noun_of(part, 2)} stay: every drawing of {_a(name)} has such a part")
        for part in absent:
            if has_scenery(self.background, part):
                self.leave_denial(f"{noun_of(part, 2)} stay: they are painted in {_a(self.background)}")
        wish = Wish(tuple(g.group() for g in self.groups), tuple(self.relations), self.background, absent)
        _check(wish, self.left_out, self.book)
        missing, scenes, left_out, denials = (
            tuple(dict.fromkeys(words)) for words in (self.missing, self.scenes, self.left_out, self.denials)
        )
        return Reading(wish, tuple(self.stand_ins), missing, scenes, left_out, denials, self.book.language)

    def end_phrase(self) -> None:
        """Settle words that no table has: a noun, if something waits for one; otherwise they are left out."""
        unknown, self.waiting.unknown = self.waiting.unknown, []
        if not unknown:
            self._end_adjectives()
            return
        if self.negation:
            self.leave_denial(self.negation, *unknown)
            self.negation, self.after_absent, self.waiting = "", "bare", Waiting()
            return
        is_awaited = not self.waiting.is_empty or self.relation is not None or self.said_with
        is_noun = is_awaited or (self.is_separated and _is_plural(unknown[-1]))
        if (self.groups or self.background) and (not is_noun or _is_participle(unknown[-1])):
            self.left_out += unknown
            return
        self._add_unknown(unknown)

    def _end_adjectives(self) -> None:
        """Settle numbers, looks and sizes without a noun: those without a number are of the noun before."""
        waiting = self.waiting
        if not (waiting.look or waiting.size):
            return
        if self.negation:
            self.deny(self.negation)
        if waiting.number and waiting.look:
            self.elided.append(waiting)
        elif self.groups and not waiting.number:
            self.groups[-1].look = self.groups[-1].look or waiting.look
            self.groups[-1].size = self.groups[-1].size or waiting.size
        else:
            return
        self.waiting = Waiting(place=waiting.place)

    def _settle_elided(self, thing: int, waiting: Waiting) -> None:
        """Give what waited for its noun to the noun that is read now, or to the one before."""
        if waiting.number and waiting.look:
            self.groups += [elided.draft(thing) for elided in self.elided]
            self.elided = []
        elif len(self.elided) == 1 and not waiting.number:  # "two black, big dogs"
            [elided] = self.elided
            self.left_out += [LOOK_NAMES[elided.look]] if waiting.look else []
            waiting.number, waiting.look, self.elided = elided.number, waiting.look or elided.look, []
        else:
            self.share_out()

    def share_out(self) -> None:
        """Divide the last group by the looks that were said after it, or tell that they are left out."""
        elided, self.elided = self.elided, []
        if not elided:
            return
        base = self.groups[-1] if self.groups else Draft(0, 0)
        drafts = [waiting.draft(base.thing) for waiting in elided]
        if base.look:
            self.groups += drafts
        elif base.more or sum(draft.count for draft in drafts) == base.count:
            self.groups[-1:] = [replace(draft, size=draft.size or base.size, place=base.place) for draft in drafts]
        else:
            self.left_out += [f"{waiting.number} {LOOK_NAMES[waiting.look]}" for waiting in elided]

    def leave_number(self) -> None:
        """Settle a number that no noun follows: it is of the plural before it, or is left out."""
        number, self.waiting.number = self.waiting.number, ""
        if number in ("", "1"):
            return
        if self.groups and self.groups[-1].more:
            self.groups[-1].count, self.groups[-1].more = quantity(number)
        else:
            self.left_out.append(self.number_text)

    def _add_unknown(self, words: list[str]) -> None:
        """Draw the nearest thing for an unknown noun; without one, the wish lacks it, and is nothing if that is all."""
        name = self.neighbour(" ".join(words)) if self.neighbour else None
        if name is None and len(words) > 1 and self.neighbour:
            name = self.neighbour(words[-1])
        if name is not None:
            self.stand_ins.append((" ".join(words), name))
            self.add(INDEX[name], plural=_is_plural(words[-1]), word=" ".join(words))
        elif self.groups or self.background:
            self.missing.append(" ".join(words))
            self.end_at_undrawn()
            self.relation, self.waiting, self.said_with = None, Waiting(), False
        else:
            things = with_near_words([" ".join(words)], self.book.words_of("thing"))
            raise InputError(f"unknown thing {in_short(things)}; the open models draw {len(THINGS)} things; {HINT}")

    def add(self, thing: int, *, plural: bool, word: str) -> None:
        """Begin a group of what waits for its noun."""
        waiting, self.waiting = self.waiting, Waiting()
        self.left_out += waiting.unknown
        if self.negation:
            self.negation, self.after_absent = "", "article" if waiting.number else "bare"
            self.absent.append(thing)
            self.relation, self.said_with = None, False
            return
        self.after_absent = ""
        if self.elided:
            self._settle_elided(thing, waiting)
        number = waiting.number or ("some" if plural else "1")
        count, more = quantity(number)
        draft = Draft(thing, count, more, waiting.look, waiting.size, waiting.place, "", word)
        is_joined = self.said_and and not self.said_with
        draft.is_joined, draft.is_listed = is_joined, self.said_comma
        self.groups.append(draft)
        last = len(self.groups) - 1
        self.is_apart = self.is_separated and self.relation is None
        shared, self.shared = self.shared, None
        if self.relation is not None:
            self.join(last)
        elif self.leading and last and not self.said_and:
            self.relate_to_leading(last)
        elif self.said_with and last:
            is_vain = not self.attach(last, is_apart=self.is_with_apart)
            self.left_out += [self.with_text] if is_vain and self.with_text else []
        elif is_joined and last and self.attach_too(last):
            pass
        elif shared and is_joined:
            self.shared = shared
            self.to_share.append(Relation(shared[0], last, shared[1]))
        self.said_with = self.said_and = self.said_comma = False
        self.is_separated = False

    def leave_denial(self, *words: str) -> None:
        """Leave out words that deny what no table has. It is hardly drawn, but nobody can see that it is not."""
        self.left_out.append(" ".join(words))
        self.denials.append(" ".join(words))

    def drop_relation(self) -> None:
        """Tell of a relation without a second thing, such as "a dog chasing" or "birds on the roof"; it needs two."""
        if self.relation is not None and self.relation_text:
            is_bare = _is_preposition(self.relation[0], self.relation_text)
            self.left_out += [] if is_bare else [self.relation_text]
        self.relation = None

    def deny(self, text: str) -> None:
        """Refuse a negation of anything but a thing.

        Raises:
            InputError: Always.
        """
        raise InputError(
            f"{in_short(text)!r}: the open models can leave out things, but no look, size, place, relation or "
            f"background; say what it is instead; {HINT}"
        )

    def end_at_undrawn(self) -> None:
        """Remember that the last noun is no group; whoever reads knows where it is."""
        raise NotImplementedError

    # --- the end

    def _bare_trees(self) -> None:
        """A tree that must have no leaves is a bare tree, which has a drawing of its own."""
        trees = [group for group in self.groups if THINGS[group.thing].name == "tree"]
        if trees and any(THINGS[part].name in _LEAVES for part in self.absent):
            self.absent = [part for part in self.absent if THINGS[part].name not in _LEAVES]
            for group in trees:
                group.thing = INDEX["bare tree"]

    def _write(self) -> None:
        """Put the quoted text on what carries it: the last thing before it that can, or a sign of its own."""
        if not self.texts:
            return
        text = writable(self.texts[0])
        if not text or len(self.texts) > 1:
            raise InputError(f"the open models write one text of Latin letters and digits; {HINT}")
        if len(self.texts[0].strip()) > 16:
            raise InputError(
                f"the text {in_short(self.texts[0])!r} is too long: the open models write up to 16 letters; {HINT}"
            )
        carrier = next((g for g in self.groups if THINGS[g.thing].name in CARRIERS), None)
        if (
            carrier is None
            and len(self.groups) == 1
            and self.groups[0].count == 1
            and THINGS[self.groups[0].thing].kind in _WRITABLE
        ):
            carrier = self.groups[0]
        if carrier is None:
            carrier = Draft(INDEX["placard"])
            self.groups.append(carrier)
        carrier.text = text


def _check(wish: Wish, left_out: Sequence[str], book: Phrasebook) -> None:
    """Refuse a wish for nothing, for too much, or one that contradicts itself."""
    if not wish.groups and not wish.background:
        words = with_near_words(left_out[:3], book.words_of("thing")) or "nothing"
        raise InputError(f"the prompt names no thing that the open models can draw ({in_short(words)}); {HINT}")
    if len(wish.groups) > MAX_GROUPS:
        raise InputError(f"{len(wish.groups)} groups of things; the open models draw at most {MAX_GROUPS}")
    if sum(group.count for group in wish.groups) > MAX_THINGS:
        raise InputError(f"{sum(g.count for g in wish.groups)} things; the open models draw at most {MAX_THINGS}")
    for group in wish.groups:
        twins = [g for g in wish.groups if g.thing == group.thing]
        if len(twins) > 1 and len({g.look for g in twins}) < len(twins):
            raise InputError(
                f"two groups of {noun_of(group.thing, 2)}; the open models tell such groups apart by their looks"
            )
        if group.thing in wish.absent:
            raise InputError(f"{noun_of(group.thing, 2)} are asked for, and asked not to be there")


def _is_plural(word: str) -> bool:
    return word.endswith("s") and not word.endswith(("ss", "us", "is"))


def _is_preposition(name: str, text: str) -> bool:
    """Whether a relation is but an "in the" or "on", which says nothing without its noun."""
    return name in ("in", "on") and len(text.split()) < 3


def _is_participle(word: str) -> bool:
    return word.endswith(("ing", "ed", "ly"))


_LEAVES: Final = ("autumn leaf", "green leaf")
_WRITABLE: Final = ("thing", "clothing", "building", "food", "vehicle", "furniture")
