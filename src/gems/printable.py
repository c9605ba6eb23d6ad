"""Text of strangers that can be shown: without the characters that command a terminal or reorder what it shows."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

__all__ = ["as_markdown", "as_shown", "in_plain_words", "printable"]

_BIDIRECTIONAL: Final = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks, embeddings, overrides and isolates of the bidirectional algorithm (Unicode Standard Annex 9)."""
_CONTROLS: Final = [*range(0x20), *range(0x7F, 0xA0)]
_REMOVED: Final = dict.fromkeys([*_CONTROLS, *map(ord, _BIDIRECTIONAL)]) | {0x2028: " ", 0x2029: " "}
_TABLE: Final = {code: value for code, value in _REMOVED.items() if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """The text without control characters, bidirectional controls and lone surrogates; line breaks and tabs stay."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c for c in text.translate(_TABLE) if unicodedata.category(c) != "Cs")


def as_shown(value: object) -> object:
    """A value of a template: text becomes ``printable``. What is markup already stays."""
    return printable(value) if type(value) is str else value


def as_markdown(text: str) -> str:
    """A text as text in Markdown: it opens no line, column, link, image, code or tag."""
    return re.sub(r"[|\[<&`\\]", lambda special: f"&#{ord(special[0])};", re.sub(r"\s+", " ", printable(text)))


def in_plain_words(experience: str) -> str:
    """What a run has learned, without the marks by which the embedded chat models find elements of a wording again."""
    return re.sub(r"`\{(\w+)\}`", r"\1", experience.replace("}` `{", "}`, `{"))
