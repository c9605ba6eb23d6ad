"""Reads prompts as people write them, in any language there is a table for, into wishes.

It reads left to right with a cursor: numbers, looks and sizes wait for their noun, a relation for its second group.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from gems.errors import InputError
from gems.languages import fold
from gems.models.open.numerals import UNCOUNTABLE
from gems.models.open.phrasebook import TONGUES, Match, Meaning, Phrasebook, phrasebook
from gems.models.open.plurals import is_genitive_of_one
from gems.models.open.things import DEPTHS, INDEX, LOOK_NAMES, THINGS
from gems.models.open.tokens import quoted
from gems.models.open.wish import Relation
from gems.models.open.wish_bonds import CONTAINERS, PLACING, SUPPORTS, quantity
from gems.models.open.wish_negations import negated_text
from gems.models.open.wish_nouns import Nouns
from gems.models.open.wish_scenery import ABOVE
from gems.models.open.wish_sketch import HINT, Neighbour, Reading, Waiting, in_short

__all__ = ["Reading", "language_of_prompt", "read"]


@lru_cache(maxsize=256)  # a run asks for the same few prompts again and again
def language_of_prompt(text: str) -> Phrasebook:
    """The phrasebook that knows the most of a prompt's words; English unless another knows clearly more."""
    shares: dict[str, float] = {}
    for code in _likely(text):
        shares[code] = phrasebook(code).exact_share(text)
        if code == "en" and shares[code] == 1:
            return phrasebook(code)
    likeliest = max(shares[code] + _bonus(code) for code in shares)
    # A word that is known by its stem counts by half.
    likely = [code for code, share in shares.items() if (1 + share) / 2 + _bonus(code) >= likeliest]
    if len(likely) == 1:
        return phrasebook(likely[0])

    def evidence(book: Phrasebook) -> float:
        return _share_of(text, book) + _bonus(book.language) + 0.1 * book.written_share(text)  # "três" and "tres"

    return max(map(phrasebook, likely), key=evidence)


def _bonus(code: str) -> float:
    return 0.2 if code == "en" else 0.0


def _share_of(text: str, book: Phrasebook) -> float:
    """The share of a text's letters that a table knows; words that are only known by their stem count by half."""
    matches = [m for m in book.matches(text) if m.text != ","]
    letters = sum(len(m.text) * (1.0 if m.is_exact else 0.5) for m in matches if m.meanings)
    return letters / max(1, sum(len(m.text) for m in matches))


_SCRIPTS: Final = (
    (re.compile("[\u3040-\u30ff]"), ("ja",)),
    (re.compile("[\uac00-\ud7a3]"), ("ko",)),
    (re.compile("[\u4e00-\u9fff]"), ("zh", "ja")),
    (re.compile("[\u0400-\u04ff]"), ("ru",)),
)


def _likely(text: str) -> Sequence[str]:
    for script, codes in _SCRIPTS:
        if script.search(text):
            return codes
    return [code for code in TONGUES if code not in ("ru", "zh", "ja", "ko")]


@lru_cache(maxsize=256)
def read(prompt: str, neighbour: Neighbour | None = None) -> Reading:
    """Read a prompt.

    Args:
        prompt: What a user wrote.
        neighbour: Finds the thing that an unknown English noun is nearest to; without it unknown nouns are errors.

    Raises:
        InputError: A noun is unknown, or more is asked for than the models can draw; the message says what to do.
    """
    bare, texts = quoted(prompt)
    book = language_of_prompt(bare)
    if text := negated_text(bare, book):
        raise InputError(f"{in_short(text)!r} before a text: the open models cannot keep a text away; {HINT}")
    reader = _Reader(book, book.matches(bare), texts, neighbour if book.language == "en" else None)
    return reader.walk()


class _Reader(Nouns):
    """The cursor over a prompt's phrases."""

    bound = ""
    """Words such as "more than", after which no number is exact."""

    def walk(self) -> Reading:
        """Read to the end."""
        for match in self.matches:
            self._take(match)
            self.position += 1
        return self.reading()

    def _take(self, match: Match) -> None:
        if meaning := self._choose(match):
            getattr(self, f"take_{meaning.kind}")(meaning, match)
        else:
            self._take_unknown(match.text)

    def _choose(self, match: Match) -> Meaning | None:
        """The meaning that fits where the phrase stands: a look before or after its noun, otherwise a thing."""
        if not match.meanings:
            return None
        look, thing = match.of("look"), match.of("thing")
        if look and thing:
            if self.book.language == "ko" and not match.is_exact:
                return thing  # 나무에 is "on a tree", 나무 의자 a wooden chair
            if self.follows_of() and not self.noun_follows() and not thing.is_stand_in:
                return thing  # "un bouquet de roses"
            return look if self.noun_follows() or (self.noun_precedes() and self.book.adjectives != "before") else thing
        place, relation = match.of("place"), match.of("relation")
        if place and relation:
            return relation if self.group_follows() else place
        background = match.of("background")
        if background and self.is_bunch(match):
            return Meaning("number", "some")
        if background and thing:
            return (
                thing if self.negation or self.waiting.number not in ("", "1") or self.noun_precedes() else background
            )
        number, word = match.of("number"), match.of("word")
        if thing and word and word.value == "flies":
            return word if self.says_flying(match) else thing
        if thing and word and self.is_old_somebody(thing):
            return thing
        if number and thing:
            return number if self.group_follows_soon() else thing
        if number and word:
            return number if self.group_follows() else word
        return match.meanings[0]

    # --- what each kind of meaning does

    def take_number(self, meaning: Meaning, match: Match) -> None:
        if self.waiting.number.isdecimal() and self.waiting.look and meaning.value.isdecimal():
            self.end_phrase()  # 一黑一白, "one black one white"
        if self.waiting.unknown:  # else adjectives wait: Turkish says "small brown a dog"
            self.end_phrase()
        if meaning.value == UNCOUNTABLE or (self.bound and meaning.value.isdecimal()):
            self._refuse_number(f"{self.bound} {match.text}".strip())
        follows_noun = self.noun_precedes() and (self._counts_subject(match) or not self.group_follows_soon())
        if meaning.value.isdecimal() and not int(meaning.value):
            self.deny_last() if follows_noun else self.deny_next(match.text)
            return
        if follows_noun and self.book.language in _COUNTING_AFTER:
            self.groups[-1].count, self.groups[-1].more = quantity(meaning.value)
            return
        earlier, is_definite = self.waiting.number, meaning.value.isdecimal()
        if earlier.isdecimal() and is_definite and (earlier != "1" or self.is_word(-1, "or")):
            self._refuse_number(f"{self.number_text} or {match.text}")
        self.waiting.number, self.number_text = meaning.value, fold(match.text)

    def _counts_subject(self, match: Match) -> bool:
        """Whether a Japanese number between a particle and a noun counts the noun before: 卵が二個皿に."""
        is_after_particle = self.position > 0 and self.matches[self.position - 1].text in ("が", "を", "は", "も")
        following = next(iter(self.next_matches()), None)
        is_of_next = match.text.endswith("の") or (following is not None and following.text.startswith("の"))
        return self.book.language == "ja" and is_after_particle and not is_of_next

    def _refuse_number(self, text: str) -> None:
        raise InputError(
            f"{in_short(text)}: the open models count to twelve, one whole number for each kind of thing; {HINT}"
        )

    def take_look(self, meaning: Meaning, match: Match) -> None:
        if self.is_about_nothing(match) or self.is_about_undrawn(match):
            return
        look = LOOK_NAMES.index("green" if self.is_green(match) else meaning.value)
        if self._belongs_to_last() and not self.groups[-1].look:
            self.groups[-1].look = look
        else:
            self.left_out += [LOOK_NAMES[self.waiting.look]] if self.waiting.look not in (0, look) else []
            self.waiting.look = look

    def take_size(self, meaning: Meaning, match: Match) -> None:
        if self.is_about_nothing(match) or self.is_about_undrawn(match):
            return
        if self._belongs_to_last() and not self.groups[-1].size:
            self.groups[-1].size = meaning.value
        else:
            self.waiting.size = meaning.value

    def _belongs_to_last(self) -> bool:
        """Whether an adjective here is about the noun before it."""
        if self.negation or not self.noun_precedes():
            return False
        if not self.noun_follows():
            return True
        is_next = not self.waiting.unknown and not self.is_word(-1, "ignore")  # no verb stands between
        return self.book.adjectives != "before" and is_next

    def take_place(self, meaning: Meaning, match: Match) -> None:
        self.end_group(match)
        if self.after_absent and self.stood_apart:
            self.left_out.append(match.text)
            return
        if meaning.value in DEPTHS and self.is_separated and not self.groups:
            return
        if self.groups and not self.is_separated:
            self.groups[-1].place = meaning.value
        else:
            self.waiting.place = meaning.value

    def take_relation(self, meaning: Meaning, match: Match) -> None:
        if self.negation and meaning.value == "holding" and self.group_follows():
            return  # "not wearing a hat" is "no hat"
        if self.after_absent and meaning.value == "holding" and not self.group_follows():
            return  # "das keine Fenster hat"
        if meaning.is_told:
            self.left_out.append(match.text)
        self.told_relation = match.text if meaning.is_told else ""
        if self.book.relations == "after" and self.follows_undrawn() and meaning.value in PLACING:
            if meaning.value in ABOVE and self.is_scene_before():
                above = self.waiting if self.thing_follows() or not self.groups else self.groups[-1]
                above.place = above.place or "top"
            return
        self.end_group(match)
        if self.after_absent and self.stood_apart:
            self.left_out.append(match.text)
            self.is_separated = True
            return
        if not self.groups:
            if meaning.value not in ("in", "on", "holding"):
                self.relation = None
            is_before = meaning.value != "holding" and self.book.relations == "between"
            self.leading = meaning.value if is_before or _stands_between(match, self.book) else ""
            self.relation_text = self.leading_text = match.text
            return
        self.drop_relation()
        self.relation_text = match.text
        if self.book.relations == "after" and not _stands_between(match, self.book):
            b = len(self.groups) - 1
            is_one = meaning.value == "playing with" or self.is_said_to_be_at()  # "a boy and a dog play"
            is_apart = self.is_apart and not is_one
            free = b > 0 and not is_apart and not any(r.a == b - 1 for r in self.relations)
            if free:
                self.relate(meaning.value, b - 1, b)
            elif meaning.value == "between" and b > 1 and self.groups[b].is_joined and not self.groups[b - 1].is_joined:
                self.relations.append(Relation("between", b - 2, b - 1, b))  # "the cat is a dog and a horse between"
            else:
                self.relation = (meaning.value, -1 - b)
        else:
            self.relation = (meaning.value, self.subject_of(meaning.value, match))
        self.is_separated = True

    def take_word(self, meaning: Meaning, match: Match) -> None:
        match meaning.value:
            case "no" | "not":
                self.take_no(match)
            case "neither":
                self.end_phrase()
                self.deny_next(match.text)
            case "nobody":
                self.absent.append(INDEX["person"])
            case "and" | "or" | "with":
                self.take_joint(meaning.value, match)
            case "flies":
                self.take_flying(match)
            case "bound":
                self.bound = match.text
            case "left out" | "unit":
                self.left_out.append(match.text)
            case "ignore" if match.text == "に" and self.waiting.unknown and not self.waiting.is_empty:
                self.missing.append(" ".join(self.waiting.unknown))  # 木の枝に is on no tree
                self.waiting = Waiting()
            case "ignore" if meaning.is_told:
                self.left_out.append(match.text)
            case "says" if self.negation:
                self.leave_denial(self.negation, match.text)
                self.negation = ""

    def take_thing(self, meaning: Meaning, match: Match) -> None:
        meaning = self.as_counted(meaning, match)
        thing = INDEX[meaning.value]
        if self.is_modifier(match) or self.is_adjective(meaning) or self.is_ingredient(thing):
            self.left_out.append(match.text)
            return
        if self.is_material(thing):
            self.relation, self.said_with = None, False
            self.left_out.append(match.text)
            return
        if self.is_sail(thing):
            self.waiting.unknown.append(match.text)
            self.end_phrase()
            return
        if self.negation and self.waiting.unknown and self.book.language == "zh":  # 没有帆的船
            self.leave_denial(self.negation, *self.waiting.unknown)
            self.negation, self.waiting.unknown = "", []
        if meaning.is_stand_in and not self.negation:
            self.stand_ins.append((match.text, meaning.value))
        # In Russian and Polish the genitive of one is often written as the plural.
        is_genitive = (
            self.book.language in ("ru", "pl")
            and match.is_exact
            and self.relation is not None
            and is_genitive_of_one(fold(match.text), self.relation[0])
        )
        is_asked, is_of = not self.negation, self.is_of_last()
        self.add(thing, plural=meaning.is_plural and not is_genitive, word=match.text)
        if is_of and self.relation is None and self.is_filled(len(self.groups) - 2, len(self.groups) - 1):
            self.relate("in", len(self.groups) - 2, len(self.groups) - 1)
        elif is_of and self.relation is None:
            self.dress_last()
        if self.wears_last_but_one():
            self.relate("holding", len(self.groups) - 1, len(self.groups) - 2)
        if is_asked and self.relation is None and self._is_locative(match):
            self._take_locative(THINGS[thing].name)

    def _is_locative(self, match: Match) -> bool:
        """Whether a noun's ending or particle says that something is there: "Vazoda", 花瓶に, 꽃병에."""
        following = next(iter(self.next_matches()), None)
        match self.book.language:
            case "ja":
                return following is not None and following.text in ("に", "には")
            case "ko":
                return match.text.endswith(("에", "에는"))
            case "tr":
                return not match.is_exact and match.text.endswith(
                    ("da", "de", "ta", "te", "daki", "deki", "taki", "teki")
                )
        return False

    def _take_locative(self, name: str) -> None:
        relation = "in" if name in CONTAINERS else "on" if name in SUPPORTS else ""
        if relation:
            self.relation, self.relation_text = (relation, -len(self.groups)), ""

    def _take_unknown(self, word: str) -> None:
        if not self.lacks(word):
            self.waiting.unknown.append(word)


def _stands_between(match: Match, book: Phrasebook) -> bool:
    """Chinese puts places after the second thing, and verbs between the two."""
    relation = match.of("relation")
    return book.language == "zh" and (
        (relation is not None and relation.value == "holding")
        or match.text.lstrip("正在")[:1] in "装裝盛追跳飞飛和跟骑騎开駕驾看靠面"
    )


_COUNTING_AFTER: Final = ("ja", "ko", "zh")
"""Languages that also say a number after its noun."""
