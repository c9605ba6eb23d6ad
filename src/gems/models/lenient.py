"""Fields of forms that read what a chat model means, where it writes a value in another way than it was asked to.

The JSON schemas stay those of the strict form, which models are asked for. What cannot be read is never guessed to be a
yes. One bad item of a list costs that item, not the list.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from gems.graph.state import Answer

__all__ = [
    "Form",
    "Item",
    "Note",
    "Share",
    "Text",
    "YesNo",
    "bare_word",
    "choice_of",
    "is_broken_json",
    "items_of",
    "json_values",
    "whole_number",
    "without_half_characters",
]


class Form(BaseModel):
    """A form that a chat model fills in. Names of fields match in any case, and a missing field is read as null."""

    @model_validator(mode="before")
    @classmethod
    def _by_field(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        fields: dict[str, Any] = dict.fromkeys(cls.model_fields)
        fields |= {name: value for key, value in raw.items() if (name := _field_name(key)) in fields}
        fields |= {key: value for key, value in raw.items() if key in fields}  # the exact name takes precedence
        if all(value is None for value in fields.values()):
            raise ValueError(f"it has none of the fields {', '.join(fields)}")
        return fields


class Item(Form):
    """One item of a list in a form."""

    @classmethod
    def from_pair(cls, key: str, value: Any) -> Any:
        """The item's fields, from a list that was written as an object: its key and its value there."""
        raise ValueError(f"{key} is not an item of the list")

    @classmethod
    def from_text(cls, text: str) -> Any:
        """The item's fields, from an item that was written as a text."""
        raise ValueError("an item must be an object")

    @classmethod
    def stand_in(cls, raw: Any) -> Self | None:
        """What takes the place of an item that cannot be read, if something must."""
        return None


# --- lists ----------------------------------------------------------------------------------------------------------


def items_of(kind: type[Item], most: int | None = None) -> WrapValidator:
    """Annotates a list of items: each one is read by itself, and the list may have another shape.

    It may be a single item, an object with an item for each key, or JSON in a text. A list with items of which none can
    be read is invalid.

    Args:
        kind: The items.
        most: Items after this many are left out.
    """

    def read(raw: Any, handler: ValidatorFunctionWrapHandler) -> list[Item]:
        raw_items = _raw_items(kind, raw)
        if not raw_items:
            return list(handler([]))
        items, faults = list[Item](), list[str]()
        for raw_item in raw_items:
            fields = raw_item
            try:
                fields = _fields(kind, raw_item)
                items += handler([fields])
            except ValueError as error:  # a ValidationError is one
                faults.append(_fault(error))
                stand_in = kind.stand_in(fields)
                items += [stand_in] if stand_in else []
        if len(faults) == len(raw_items):
            raise ValueError(f"no item can be read: {faults[0]}")
        return items[:most]

    return WrapValidator(read)


def _raw_items(kind: type[Item], raw: Any) -> list[Any]:
    if isinstance(raw, str):
        raw = next(iter(json_values(raw)), [raw])
    if isinstance(raw, Mapping):
        return [raw] if _has_fields(kind, raw) else [{key: value} for key, value in raw.items()]
    if not isinstance(raw, Sequence):
        raise ValueError("it must be a list")
    return list(raw)


def _fields(kind: type[Item], raw: Any) -> Any:
    """The fields of an item in any shape."""
    if isinstance(raw, str):
        raw = next(iter(json_values(raw)), raw)
    if isinstance(raw, str):
        return kind.from_text(raw)
    if isinstance(raw, Mapping) and len(raw) == 1 and not _has_fields(kind, raw):
        [(key, value)] = raw.items()
        return kind.from_pair(str(key), value)
    return raw


def _has_fields(kind: type[Item], raw: Mapping[Any, Any]) -> bool:
    return any(_field_name(key) in kind.model_fields for key in raw)


def _field_name(key: object) -> str:
    return re.sub(r"[\s-]+", "_", str(key).strip().casefold())


def _fault(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}".removeprefix(": ")


_OPENING: Final = re.compile(r"[{\[]")
_CERTAIN_OPENING: Final = re.compile(r'{\s*"|\[\s*[{\["]')
"""How JSON begins; other brackets may belong to prose."""


_LONGEST_NUMBER: Final = 300


def whole_number(digits: str) -> int | float:
    """A whole number of JSON. One with hundreds of digits, which may be no float and no ``int`` either, is infinite."""
    return int(digits) if len(digits) < _LONGEST_NUMBER else float(digits)


def without_half_characters(text: str) -> str:
    """The text without halves of UTF-16 characters, which JSON can spell and nothing can write down."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def json_values(text: str) -> list[Any]:
    """The JSON objects and arrays in a text, outermost first; any text may be around them."""
    return _scan(text)[0]


def is_broken_json(text: str) -> bool:
    """Whether there is JSON in a text that cannot be parsed as a whole, so that ``json_values`` are its pieces."""
    return _scan(text)[1]


def _scan(text: str) -> tuple[list[Any], bool]:
    decoder, values = json.JSONDecoder(strict=False, parse_int=whole_number), list[Any]()
    position, is_broken = 0, False
    while match := _OPENING.search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except RecursionError:  # thousands of brackets, from a model that repeats itself
            return values, True
        except ValueError:
            is_broken = is_broken or bool(_CERTAIN_OPENING.match(text, match.start()))
            position = match.end()
            continue
        values.append(value)
    return values, is_broken


# --- values ---------------------------------------------------------------------------------------------------------


def bare_word(text: str) -> str:
    """A word in lower case, without the quotes, brackets and asterisks around it and the punctuation after it."""
    word = unicodedata.normalize("NFKC", text).casefold().strip()
    return word.lstrip(" \t\n\"'`*_([<“‘").rstrip(" \t\n\"'`*_)]>”’.!,;:。、")


def _read_text(raw: Any) -> Any:
    if raw is None:
        return ""
    if isinstance(raw, str):
        return without_half_characters(raw).strip()
    if isinstance(raw, bool):
        raise ValueError("it must be a text")
    if isinstance(raw, (int, float)):
        return str(int(raw) if _as_float(raw).is_integer() else raw)
    if isinstance(raw, Sequence):
        return "\n".join(filter(None, map(_read_text, raw)))
    raise ValueError("it must be a text")


def _read_note(raw: Any) -> str:
    try:
        return str(_read_text(raw))
    except (ValueError, RecursionError):
        return ""


_YES_WORDS: Final = frozenset({"yes", "y", "yep", "yeah", "true", "1", "1.0"})
_NO_WORDS: Final = frozenset({"no", "n", "nope", "false", "0", "0.0"})


def _read_answer(raw: Any) -> Answer:
    """Yes or no if it says exactly that; unsure if it says anything else."""
    if isinstance(raw, (bool, int, float)) and raw in (0, 1):
        return "yes" if raw else "no"
    if isinstance(raw, str) and (word := bare_word(raw)):
        return "yes" if word in _YES_WORDS else "no" if word in _NO_WORDS else "unsure"
    raise ValueError("it must be yes, no or unsure")


UNSTATED: Final = 0.5
"""The confidence of an answer that states none that can be read: a guess, so that nothing is made surer than it is."""

_LEVELS: Final = {"certain": 1.0, "very high": 0.95, "high": 0.9, "medium": 0.7, "moderate": 0.7, "low": 0.5}
_NUMBER: Final = re.compile(
    r"(?P<value>\d*[.,]?\d+)\s*(?:(?P<percent>%|percent|pct)|(?:/|out of)\s*(?P<whole>\d+))?", re.ASCII
)
_LEAST_PERCENTAGE: Final = 10
"""A bare number above one is a percentage; up to this one it may just as well be a mark out of ten."""


def _read_share(raw: Any) -> float:
    """A number in [0, 1], also from a percentage, a fraction, a text or a word; ``UNSTATED`` if it cannot be read."""
    share = UNSTATED
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        share = _as_share(_as_float(raw))
    elif isinstance(raw, str):
        word = bare_word(raw)
        if match := _NUMBER.fullmatch(word):
            value = float(match["value"].replace(",", "."))
            whole = 100.0 if match["percent"] else float(match["whole"] or 0)
            share = value / whole if whole else _as_share(value)
        else:
            share = _LEVELS.get(word, UNSTATED)
    return share if 0 <= share <= 1 else UNSTATED  # NaN is in no range


def _as_float(value: float) -> float:
    """The number as a float; infinity if it is too large for one, as an ``int`` may be."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _as_share(value: float) -> float:
    return value / 100 if _LEAST_PERCENTAGE < value <= 100 else value


def choice_of(choices: Sequence[str], otherwise: str) -> BeforeValidator:
    """Annotates a choice of words: they match in any case, with hyphens, or in the plural; others are ``otherwise``."""
    by_letters = {_letters(choice): choice for choice in choices}

    def read(raw: Any) -> str:
        letters = _letters(raw) if isinstance(raw, str) else ""
        return by_letters.get(letters) or by_letters.get(letters.removesuffix("s")) or otherwise

    return BeforeValidator(read)


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text.casefold()))


Text = Annotated[str, BeforeValidator(_read_text)]
"""A text; null is an empty one, a number is its digits, a list is its lines."""

Note = Annotated[str, BeforeValidator(_read_note)]
"""A text that the form is of use without; what is no text is an empty one."""

YesNo = Annotated[Answer, BeforeValidator(_read_answer)]
"""An answer to a question; a truth value is one too. Other words than yes and no, such as "partially", are unsure."""

Share = Annotated[float, BeforeValidator(_read_share)]
"""A share of one, such as a confidence."""
