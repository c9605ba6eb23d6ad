"""The pocket chat model's language: prompts into scene specs, specs into questions, and questions back into meaning.

A prompt is one to three groups of things joined by "and", a comma, a position or a verb. Plain synonyms are mapped to
the words of the vocabulary; anything else is an error that names the unknown words and their nearest neighbours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from gems.errors import InputError
from gems.models.pocket.spec import Group, SceneSpec
from gems.models.pocket.vocabulary import (
    ATTRIBUTES,
    COUNTS,
    MAX_COUNT,
    NUMBER_WORDS,
    OBJECTS,
    PLURALS,
    POSITIONS,
    RELATIONS,
    SINGULARS,
    SYNONYMS,
    with_near_words,
)

__all__ = ["MAX_GROUPS", "Question", "parse_prompt", "parse_question", "questions_of"]

MAX_GROUPS: Final = 3

_RELATION_SYNONYMS: Final = {
    "on the left of": "to the left of",
    "left of": "to the left of",
    "on the right of": "to the right of",
    "right of": "to the right of",
    "before": "in front of",
    "in back of": "behind",
    "underneath": "under",
    "beneath": "under",
    "below": "under",
    "above": "on top of",
    "atop": "on top of",
}
_POLITE: Final = re.compile(
    r"^(?:please\s+)?(?:(?:draw|paint|show|make|create|generate|render)\s+(?:me\s+)?)?"
    r"(?:(?:(?:an?|the)\s+)?(?:photo|picture|image|drawing|painting|illustration)\s+(?:of|with)\s+)?"
)
_REAL_MODEL_HINT: Final = (
    "the pocket models know 40 objects, 18 attributes and counts up to seven (gems doctor lists them); "
    "for free language choose real models with --mllm and --generator"
)


# --- prompts --------------------------------------------------------------------------------------------------------


def parse_prompt(text: str) -> SceneSpec:
    """The spec of a prompt such as "three blue cars to the left of a striped elephant, and a cat".

    Raises:
        InputError: A word is outside the vocabulary (close matches are listed), or the sentence does not parse.
    """
    words = _normalise(text)
    unknown = [w for w in dict.fromkeys(words) if w not in _KNOWN_WORDS]
    if unknown:
        raise InputError(f"unknown {_list_unknown(unknown)}; {_REAL_MODEL_HINT}")

    reader = _Reader(words)
    groups = [_read_group(reader)]
    relations: list[str | None] = []
    while not reader.at_end:
        relations.append(_read_joint(reader))
        groups.append(_read_group(reader))
    if len(groups) > MAX_GROUPS:
        raise InputError(f"{len(groups)} groups of things; the pocket models draw at most {MAX_GROUPS}")
    objects = [g.object for g in groups]
    for obj in objects:
        if objects.count(obj) > 1:
            raise InputError(
                f"two groups of {OBJECTS[obj].plural}; the pocket models tell groups apart by their object"
            )
    return SceneSpec(tuple(groups), tuple(relations))


class _Reader:
    """Words with a cursor."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._position = 0

    @property
    def at_end(self) -> bool:
        return self._position == len(self._words)

    @property
    def rest(self) -> str:
        return " ".join(self._words[self._position : self._position + 5])

    def take(self, *options: str) -> str | None:
        """Consume and return the first option, of one or several words, that comes next; None if none does."""
        for option in options:
            parts = option.split()
            if self._words[self._position : self._position + len(parts)] == parts:
                self._position += len(parts)
                return option
        return None


def _read_group(reader: _Reader) -> Group:
    number = reader.take(*COUNTS, *_DIGITS)
    reader.take("the")
    attribute = reader.take(*ATTRIBUTES[1:])
    noun = reader.take(*PLURALS, *SINGULARS)
    if noun is None:
        expected = "an object" if attribute else "a number, an attribute or an object"
        raise InputError(f"expected {expected} at {reader.rest or 'the end of the prompt'!r}; {_REAL_MODEL_HINT}")
    obj = PLURALS[noun] if noun in PLURALS else SINGULARS[noun]
    if number is None:
        if noun not in SINGULARS:
            raise InputError(f"how many {noun}? say a number from two to seven")
        count = 1
    else:
        count = COUNTS.get(number) or int(number)
    if not 1 <= count <= MAX_COUNT:
        raise InputError(f"{number} {noun}: the pocket models count from one to seven")
    return Group(count, ATTRIBUTES.index(attribute) if attribute else 0, obj)


def _read_joint(reader: _Reader) -> str | None:
    reader.take(",")
    if reader.take("and", "with"):
        return None
    reader.take("that are", "that is", "which are", "which is", "are", "is", "standing", "sitting", "placed")
    relation = reader.take(*RELATIONS)
    if relation is None and not _starts_group(reader):
        raise InputError(
            f"expected 'and' or a relation ({', '.join(RELATIONS)}) at {reader.rest or 'the end of the prompt'!r}"
        )
    return relation


def _starts_group(reader: _Reader) -> bool:
    return reader.rest.split(" ")[0] in {*COUNTS, *_DIGITS, *ATTRIBUTES[1:], *SINGULARS}


def _normalise(text: str) -> list[str]:
    """Split into lower-case words and punctuation, drop polite phrases and map synonyms to the vocabulary."""
    text = _POLITE.sub("", " ".join(text.lower().split()).rstrip(" .!"), count=1)
    text = re.sub(r"[;:]", ",", text)
    for phrase, relation in _RELATION_SYNONYMS.items():
        text = re.sub(rf"(?<!to the )\b{phrase}\b", relation, text)
    return [_map_synonym(word) for word in re.findall(r"[a-z]+(?:-[a-z]+)*|\d+|[^\s\w]", text)]


def _map_synonym(word: str) -> str:
    if word in SYNONYMS:
        return SYNONYMS[word]
    for ending in ("es", "s"):
        stem = word.removesuffix(ending)
        if stem != word and SYNONYMS.get(stem) in SINGULARS:
            return OBJECTS[SINGULARS[SYNONYMS[stem]]].plural
    stem = re.sub("ies$", "y", word)
    if SYNONYMS.get(stem) in SINGULARS:
        return OBJECTS[SINGULARS[SYNONYMS[stem]]].plural
    return word


def _list_unknown(words: list[str]) -> str:
    candidates = {*SINGULARS, *PLURALS, *ATTRIBUTES[1:], *COUNTS, *SYNONYMS}
    return ("word " if len(words) == 1 else "words ") + with_near_words(words, candidates)


_DIGITS: Final = tuple(str(n) for n in range(1000, 0, -1))
_JOINING_WORDS: Final = "and with the , that which are is standing sitting placed"
_KNOWN_WORDS: Final = frozenset(
    {*SINGULARS, *PLURALS, *ATTRIBUTES[1:], *COUNTS, *_DIGITS, *_JOINING_WORDS.split()}
    | {word for relation in RELATIONS for word in relation.split()}
)


# --- questions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Question:
    """The meaning of one yes/no question about an image. ``object`` and ``other`` index OBJECTS.

    A question that is not atomic ("Are there exactly five glass flowers?") also has an attribute: both must hold.
    """

    kind: Literal["object", "count", "attribute", "position", "verb"]
    object: int
    count: int = 0
    attribute: int = 0
    relation: str = ""
    other: int = 0


def questions_of(spec: SceneSpec) -> list[tuple[str, Question]]:
    """The atomic questions of a spec, each with its meaning: the benchmark's questions in yes/no form."""
    questions: list[tuple[str, Question]] = []
    for i, group in enumerate(spec.groups):
        word, is_single = OBJECTS[group.object], group.count == 1
        questions.append((f"Are there any {word.plural} in the image?", Question("object", group.object)))
        number = NUMBER_WORDS[group.count - 1]
        noun = word.singular if is_single else word.plural
        questions.append(
            (
                f"{'Is' if is_single else 'Are'} there exactly {number} {noun} in the image?",
                Question("count", group.object, count=group.count),
            )
        )
        if group.attribute:
            questions.append(
                (
                    f"{_are_the(group)} {ATTRIBUTES[group.attribute]}?",
                    Question("attribute", group.object, attribute=group.attribute),
                )
            )
        relation = spec.relations[i] if i < len(spec.relations) else None
        if relation:
            other = spec.groups[i + 1]
            noun = OBJECTS[other.object].singular if other.count == 1 else OBJECTS[other.object].plural
            questions.append(
                (
                    f"{_are_the(group)} {relation} the {noun}?",
                    Question(
                        "position" if relation in POSITIONS else "verb",
                        group.object,
                        relation=relation,
                        other=other.object,
                    ),
                )
            )
    return questions


def _are_the(group: Group) -> str:
    word = OBJECTS[group.object]
    return f"Is the {word.singular}" if group.count == 1 else f"Are the {word.plural}"


_NOUN: Final = {**PLURALS, **SINGULARS}
_NOUNS: Final = "|".join(sorted(_NOUN, key=len, reverse=True))
_LOOKS: Final = "|".join(ATTRIBUTES[1:])
_THE: Final = rf"(?:the |an? )?(?:(?:{'|'.join(NUMBER_WORDS)}) )?(?:(?:{_LOOKS}) )?"
"""What may precede a noun in these questions without changing their meaning."""
_PATTERNS: Final = (
    (
        "object",
        re.compile(rf"(?:are|is) there (?:any|an?) (?:(?P<attribute>{_LOOKS}) )?(?P<a>{_NOUNS})(?: in the image)?"),
    ),
    ("object", re.compile(rf"(?:are|is) the (?P<a>{_NOUNS}) in the image")),
    (
        "count",
        re.compile(
            rf"(?:are|is) there exactly (?P<n>{'|'.join(NUMBER_WORDS)}|[1-7]) (?:(?P<attribute>{_LOOKS}) )?"
            rf"(?P<a>{_NOUNS})(?: in the image)?"
        ),
    ),
    ("attribute", re.compile(rf"(?:are|is) {_THE}(?P<a>{_NOUNS}) (?P<attribute>{_LOOKS})")),
    (
        "relation",
        re.compile(rf"(?:are|is) {_THE}(?P<a>{_NOUNS}) (?P<relation>{'|'.join(RELATIONS)}) {_THE}(?P<b>{_NOUNS})"),
    ),
)


def parse_question(text: str) -> Question | None:
    """The meaning of a yes/no question in the wording of ``questions_of``, or None for any other text."""
    text = " ".join(text.lower().rstrip(" ?").split())
    for kind, pattern in _PATTERNS:
        match = pattern.fullmatch(text)
        if match is None:
            continue
        parts = match.groupdict()
        obj = _NOUN[parts["a"]]
        look = ATTRIBUTES.index(parts.get("attribute") or "")
        if kind == "object":
            return Question("object", obj, attribute=look)
        if kind == "count":
            return Question("count", obj, count=COUNTS.get(parts["n"]) or int(parts["n"]), attribute=look)
        if kind == "attribute":
            return Question("attribute", obj, attribute=look)
        relation = parts["relation"]
        return Question(
            "position" if relation in POSITIONS else "verb", obj, relation=relation, other=_NOUN[parts["b"]]
        )
    return None
