"""JSON as chat models write it by hand, with what JSON does not allow and no reader can misunderstand.

Commas may be missing between lines or stand at the end; there may be comments, quotes of any kind, none around single
words, some inside of texts, and the constants of Python and JavaScript. What is not complete is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

__all__ = ["begins_loosely", "joined_pairs", "read_loosely"]

_BEGINNING: Final = re.compile(
    r"""\{\s*(?://|/\*|\#|["'“”‘’]|[^\W\d]\w{0,40}\s*:\s*["'“\[{\w-])|\[\s*(?://|/\*|["'“]|\{\s*["'“\w])"""
)
_GAP: Final = re.compile(r"(?:\s+|//[^\n]*|/\*.*?\*/|#[^\n]*)*+", re.DOTALL)
_WORD: Final = re.compile(r"[^\W\d]\w{0,40}(?=\s*[,}\]\n]|\s*//|\s*/\*)")
_KEY: Final = re.compile(r"\w{1,40}(?=\s*[:=])")
_NO_NAME: Final = re.compile(r"[\"“”{}\[\]\n]|.{300}")
_NUMBER: Final = re.compile(r"[-+]?(?:\d{1,40}(?:\.\d{0,40})?|\.\d{1,40})(?:[eE][-+]?\d{1,3})?(?![\w.])")
_CLOSING: Final = {'"': '"', "'": "'", "“": '”"“', "”": '”"', "‘": "’'", "’": "’'"}
_AFTER_A_TEXT: Final = re.compile(r"\s*(?:[,:}\]]|//|/\*|#|$)|[^\S\n]*\n\s*[\"'“{\[]")
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_CONSTANTS: Final = {"true": True, "false": False, "null": None, "none": None, "undefined": None, "nan": None}
_DEPTH: Final = 12


def begins_loosely(text: str, start: int) -> bool:
    """Whether a bracket in a text looks like the beginning of JSON, rather than of words in brackets."""
    return bool(_BEGINNING.match(text, start))


def read_loosely(text: str, start: int) -> tuple[Any, int]:
    """The object or array that begins at a bracket, and where it ends.

    Raises:
        ValueError: It is not complete, or may have more than one meaning.
    """
    return _Reader(text).container(start, _DEPTH)


def joined_pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs. What has the same name twice is a list, so that contradictions are seen."""
    joined: dict[str, Any] = {}
    for name, value in pairs:
        before = joined.get(name)
        if before is None or before == value:
            joined[name] = value
        elif value is not None:
            joined[name] = [*_as_list(before), *_as_list(value)]
    return joined


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text

    def container(self, start: int, depth: int) -> tuple[Any, int]:
        if not depth:
            raise ValueError("it is nested too deeply")
        is_object, close = self._text[start] == "{", "}" if self._text[start] == "{" else "]"
        pairs, items = list[tuple[str, Any]](), list[Any]()
        position = self._gap(start + 1)
        while not self._text.startswith(close, position):
            name = ""
            if is_object:
                name, position = self._name(position)
            value, position = self._value(position, depth)
            pairs.append((name, value))
            items.append(value)
            position = self._separator(position, close)
        return (joined_pairs(pairs) if is_object else items), position + 1

    def _separator(self, position: int, close: str) -> int:
        """Where the next item begins, or the container ends."""
        position = self._gap(position)
        if self._text.startswith((",", ";"), position):
            return self._gap(position + 1)
        if not self._text.startswith((close, '"', "'", "“", "{", "["), position):
            raise ValueError("there is no comma")
        return position

    def _name(self, position: int) -> tuple[str, int]:
        if word := _KEY.match(self._text, position):
            name, position = word[0], word.end()
        else:
            name, position = self._quoted(position)
            if _NO_NAME.search(name):
                raise ValueError("a name does not end")
        position = self._gap(position)
        if not self._text.startswith((":", "="), position):
            raise ValueError("a name has no value")
        return name, self._gap(position + 1)

    def _value(self, position: int, depth: int) -> tuple[Any, int]:
        if self._text.startswith(("{", "["), position):
            return self.container(position, depth - 1)
        if number := _NUMBER.match(self._text, position):
            return float(number[0]) if re.search(r"[.eE]", number[0]) else int(number[0]), number.end()
        if word := _WORD.match(self._text, position):
            return _CONSTANTS.get(word[0].lower(), word[0]), word.end()
        return self._quoted(position)

    def _quoted(self, position: int) -> tuple[str, int]:
        """A text in quotes; a quote inside of it does not end it."""
        closing = _CLOSING.get(self._text[position : position + 1])
        if closing is None:
            raise ValueError("there is no text")
        parts, start = list[str](), position + 1
        for match in re.compile(rf"\\.|[{closing}]", re.DOTALL).finditer(self._text, start):
            if match.start() < start:
                continue
            if match[0][0] == "\\":
                character, end = self._escaped(match.start())
                parts += [self._text[start : match.start()], character]
                start = end
            elif _AFTER_A_TEXT.match(self._text, match.end()):
                return "".join([*parts, self._text[start : match.start()]]), match.end()
        raise ValueError("a text does not end")

    def _escaped(self, position: int) -> tuple[str, int]:
        character = self._text[position + 1]
        if character == "u" and (code := re.compile(r"[0-9a-fA-F]{4}").match(self._text, position + 2)):
            return chr(int(code[0], 16)), code.end()
        return _ESCAPES.get(character, character), position + 2

    def _gap(self, position: int) -> int:
        """Where white space and comments end."""
        match = _GAP.match(self._text, position)
        return match.end() if match else position
