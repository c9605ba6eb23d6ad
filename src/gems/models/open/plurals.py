"""Case forms of nouns that can only be plurals: "между деревьями", "obok drzew", "zwischen Bäumen"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from gems.languages import fold

__all__ = ["is_case_of_plural", "is_genitive_of_one", "is_listed_plural"]

_CASES: Final = {
    "pl": re.compile("(ami|mi|ach|om|ow)"),
    "ru": re.compile("(ами|ями|ьми|ах|ях|ам|ям|ов|ев)"),
    "ko": re.compile("들(은|이|을|의|과|도|에게|에|에서)?"),
}
"""Endings of the plural's cases, folded; words that end so by themselves are in the tables as they are."""
_CERTAIN: Final = {"pl": re.compile("(ami|ach|ow)"), "ru": re.compile("(ами|ями|ьми|ах|ях|ов|ев)")}
"""Those of them that no case of a singular has."""
_FLEETING: Final = {"pl": "e", "ru": "еоё"}
"""Vowels that only the genitive plural has: "butelek" of "butelka"."""
_LIKE_GENITIVE: Final = re.compile("[aeiyаяеиы]$")


def is_case_of_plural(word: str, plurals: Sequence[str], language: str) -> bool:
    """Whether a folded word is a case of a plural; it is no form that the table has.

    Args:
        word: The word.
        plurals: The plurals of the same stem that the table has.
        language: The code of the language.
    """
    if language == "de":
        return any(word == f"{plural}n" for plural in plurals)
    if language == "tr":
        return any(plural.endswith(("lar", "ler")) and word.startswith(plural) for plural in plurals)
    cases = _CASES.get(language)
    return cases is not None and any(ending.end() == len(word) for ending in cases.finditer(word))


def is_listed_plural(form: str, first: str, language: str) -> bool:
    """Whether a form that a table has without its singular is a plural's case, beside the first noun of its line."""
    word, singular = fold(form), fold(first.partition(" / ")[0].strip())
    if language not in _CERTAIN or word == singular or " " in word or word[:2] != singular[:2]:
        return False
    if any(ending.end() == len(word) for ending in _CERTAIN[language].finditer(word)):
        return True
    stem = singular[:-1]
    is_fleeting = word[-2:-1] in set(_FLEETING[language]) and word[:-2] + word[-1] == stem.replace("ь", "")
    return singular[-1:] in set("aeoаеоя") and (word == stem or is_fleeting)


def is_genitive_of_one(word: str, relation: str) -> bool:
    """Whether what looks like a Russian or Polish plural is the genitive of one, as in "obok książki"."""
    return relation in _OF and bool(_LIKE_GENITIVE.search(word)) and not is_case_of_plural(word, (), "pl")


_OF: Final = ("next to", "to the left of", "to the right of", "in front of", "behind", "around", "above", "in")
"""Relations whose words take the genitive."""
