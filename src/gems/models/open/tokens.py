"""What the open generator reads: a token for each meaning that stands in a prompt, whatever its words and language.

Nouns are all one token, and come with the vector of their name; every letter of a quoted text is a token. Words that
mean nothing to the model are left out, as a text encoder hears little in them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gems.models.open.phrasebook import Match, Meaning, Phrasebook
from gems.models.open.slots import ALPHABET, VECTOR, thing_vectors, writable
from gems.models.open.things import (
    ARRANGEMENTS,
    BACKGROUNDS,
    DEPTHS,
    INDEX,
    LOOK_NAMES,
    MAX_COUNT,
    PLACES,
    RELATIONS,
    SIZES,
)
from gems.wording import ELISION

__all__ = ["END", "MAX_TOKENS", "PAD", "TEXT_MARK", "TOKENS", "Encoded", "encode_prompts", "quoted", "tokens_of_prompt"]

PAD, END, THING = "[PAD]", "[END]", "[THING]"
MAX_TOKENS: Final = 120

_MARKS: Final = ("exactly", "placed", "no", "says", ";", ":", ",")
TOKENS: Final = (
    *(PAD, END, THING, *_MARKS),
    *(f"number {n}" for n in (*range(1, MAX_COUNT + 1), "some", "many")),
    *(f"look {look}" for look in LOOK_NAMES[1:]),
    *(f"size {size}" for size in SIZES),
    *(f"relation {name}" for name in RELATIONS),
    *(f"place {name}" for name in (*PLACES, *DEPTHS)),
    *(f"arrangement {name}" for name in ARRANGEMENTS),
    *(f"background {name}" for name in BACKGROUNDS),
    *(f"letter {letter}" for letter in ALPHABET),
)
"""All tokens; a token's id is its index."""

_IDS: Final = {token: number for number, token in enumerate(TOKENS)}

_QUOTES: Final = re.compile(
    r"[\"“”„«»「」『』]([^\"“”„«»「」『』]{1,60})[\"“”„«»「」『』]|"
    rf"(?<!\w)(?!{ELISION})" + r"['‘’]([^'‘’]{1,60})['‘’](?!\w)"
)
_SPLIT: Final = re.compile(rf"(;|:|\bexactly\b|\bplaced\b|{'|'.join(ARRANGEMENTS)})")


def quoted(text: str) -> tuple[str, list[str]]:
    """A text with each quoted part replaced by TEXT_MARK, and the quoted parts."""
    parts: list[str] = []

    def keep(match: re.Match[str]) -> str:
        parts.append(match.group(1) or match.group(2))
        return f" {TEXT_MARK} "

    return _QUOTES.sub(keep, text.replace(TEXT_MARK, " ")), parts


TEXT_MARK: Final = "\ue000"
"""Where a quoted text stood. The character means nothing in a prompt, and is removed from prompts that have it."""


class Encoded(NamedTuple):
    """Token ids (batch, tokens), padded; the vectors of nouns (batch, tokens, VECTOR); the mask of real tokens."""

    ids: NDArray[np.int64]
    vectors: NDArray[np.float32]
    mask: NDArray[np.int64]


def tokens_of_prompt(prompt: str, book: Phrasebook) -> list[tuple[int, int]]:
    """Pairs of a token's id and a thing's index, which is -1 for all tokens but nouns."""
    bare, texts = quoted(prompt)
    result: list[tuple[int, int]] = []
    remaining = iter(texts)
    for part in re.split(f"({TEXT_MARK})", bare):
        if part == TEXT_MARK:
            result += [(_IDS[f"letter {letter}"], -1) for letter in writable(next(remaining))]
            continue
        for piece in _SPLIT.split(part):
            if piece in _MARKS:
                result.append((_IDS[piece], -1))
            elif piece in ARRANGEMENTS:
                result.append((_IDS[f"arrangement {piece}"], -1))
            else:
                result += _of_matches(book.matches(piece))
    return [*result[: MAX_TOKENS - 1], (_IDS[END], -1)]


def _of_matches(matches: Sequence[Match]) -> list[tuple[int, int]]:
    result = []
    for position, match in enumerate(matches):
        following = matches[position + 1] if position + 1 < len(matches) else None
        names_thing = following is not None and (following.of("thing") or following.of("look"))
        for meaning in sorted(match.meanings, key=lambda m: _PRIORITY[m.kind] if names_thing else -_PRIORITY[m.kind]):
            if meaning.kind == "thing":
                result.append((_IDS[THING], INDEX[meaning.value]))
            elif meaning.kind == "word":
                token = {
                    "no": "no",
                    "not": "no",
                    "neither": "no",
                    "or": ",",
                    "and": ",",
                    "says": "says",
                    "with": ",",
                }.get(meaning.value)
                result += [(_IDS[token], -1)] if token else []
            elif meaning == _ZERO:
                result.append((_IDS["no"], -1))
            elif token_id := _IDS.get(
                f"{meaning.kind.replace('adverb', 'relation')} {meaning.value}"
            ):  # none for a number above twelve
                result.append((token_id, -1))
            break
    return result


_ZERO: Final = Meaning("number", "0")
_PRIORITY: Final = {
    "word": 0,
    "number": 1,
    "size": 2,
    "look": 3,
    "relation": 4,
    "adverb": 4,
    "place": 5,
    "background": 6,
    "thing": 7,
}
"""The order of a phrase's meanings where a noun follows; where none follows, the other way round."""


def encode_prompts(prompts: Sequence[list[tuple[int, int]]]) -> Encoded:
    """Tokens of prompts as arrays, padded to the longest."""
    length = max(map(len, prompts))
    ids = np.zeros((len(prompts), length), dtype=np.int64)
    vectors = np.zeros((len(prompts), length, VECTOR), dtype=np.float32)
    for row, pairs in enumerate(prompts):
        for column, (token, thing) in enumerate(pairs):
            ids[row, column] = token
            if thing >= 0:
                vectors[row, column] = thing_vectors()[thing]
    return Encoded(ids, vectors, (ids > 0).astype(np.int64))
