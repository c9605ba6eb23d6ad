"""Diminutives that no table has: of "zeilbootjes", "barquinho" or "домик" the noun, which is then a small one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from gems.languages import fold

__all__ = ["bases"]

_PLAIN: Final = ("", "o", "a", "e")
_ENDINGS: Final[dict[str, tuple[tuple[re.Pattern[str], tuple[str, ...]], ...]]] = {
    "nl": ((re.compile("(?:t|p|et)?je(?P<plural>s)?"), ("", "e")), (re.compile("kje(?P<plural>s)?"), ("g",))),
    "de": ((re.compile("(?:chen|lein)s?"), ("", "e", "el")),),
    "pt": ((re.compile("z?inh[oa](?P<plural>s)?"), _PLAIN),),
    "es": ((re.compile("(?:e?c)?(?:it|ill)[oa](?P<plural>s)?"), _PLAIN),),
    "it": ((re.compile("(?:in|ett|ell)(?:[oa]|(?P<plural>[ie]))"), _PLAIN),),
    "pl": (
        (re.compile("(?:ek|k[aoęąu]|kiem|ce|(?P<plural>k[ió]w?|kami|kach))"), ("", "a", "o")),
        (re.compile("(?:eczk|ecz?k|cz?k)(?:[aoęąu]|(?P<plural>i))"), ("a", "ka", "ek")),
    ),
    "ru": (
        (
            re.compile(
                "(?:ь?ч?ик(?:|[аеу]|ом)|ок|ёк|к[аоуе]|ком|кой|(?P<plural>ь?ч?ик(?:и|ов|ами|ах)|ки|ков|ками|ках))"
            ),
            ("", "а", "о"),
        ),
        (re.compile("[оеи]чк(?:[ауео]|ой|(?P<plural>и|ами|ах))"), ("а", "ка", "ца", "ица", "о")),
    ),
}
"""By language: endings of diminutives, and what the noun itself may end in instead."""
_SPELLINGS: Final = {
    **dict.fromkeys(("es", "pt"), (("qu", "c"), ("gu", "g"), ("c", "z"))),
    "it": (("ch", "c"), ("gh", "g")),
    "pl": (("sz", "ch"), ("cz", "c")),
    "de": (("ä", "a"), ("ö", "o"), ("ü", "u")),
}
"""What is spelled otherwise in the noun: "barquito" is of "barco", "Häuschen" of "Haus"."""


def bases(word: str, language: str) -> Iterator[tuple[str, bool]]:
    """The nouns, folded, that a word may be a diminutive of, and whether its form is a plural."""
    text = word.lower()
    for ending, finals in _ENDINGS.get(language, ()):
        for start in range(3, len(text)):
            match = ending.fullmatch(text, start)
            if match is None:
                continue
            is_plural = bool(match.groupdict().get("plural"))
            for stem in _stems(text[:start], language):
                yield from ((fold(stem + final), is_plural) for final in finals)


def _stems(stem: str, language: str) -> Iterator[str]:
    """A stem, and how else it may be spelled."""
    yield stem
    for spelling, own in _SPELLINGS.get(language, ()):
        if language == "de" and spelling in stem:
            yield stem.replace(spelling, own)
        elif stem.endswith(spelling):
            yield stem.removesuffix(spelling) + own
    if language == "nl" and stem[-1] == stem[-2]:
        yield stem[:-1]  # "balletje"
