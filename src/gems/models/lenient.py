"""Fields of forms that read what a chat model means, where it writes a value in another way than it was asked to.

The JSON schemas stay those of the strict form, which models are asked for. What cannot be read is never guessed to be a
yes. One bad item of a list costs that item, not the list.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, NamedTuple, Self, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from gems.graph.state import Answer
from gems.models.loose_json import begins_loosely, joined_pairs, read_loosely
from gems.models.yes_or_no import plain_words, yes_or_no

__all__ = [
    "ANSWER_NAMES",
    "Form",
    "Item",
    "Note",
    "Prose",
    "Share",
    "Text",
    "YesNo",
    "choice_of",
    "field_name",
    "form_name",
    "is_all_json",
    "is_broken_json",
    "items_of",
    "json_values",
    "only_list",
    "prose_after",
    "prose_around",
    "read_answer",
    "whole_number",
    "whole_texts",
    "without_half_characters",
]


class Form(BaseModel):
    """A form that a chat model fills in. Names of fields match in any case, and a missing field is read as null."""

    other_names: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Other names that models give to fields, most certain first."""
    is_judgement: ClassVar[bool] = False
    """Whether what a model thinks on its way may be the opposite of what it would answer in the end."""

    @model_validator(mode="before")
    @classmethod
    def _by_field(cls, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw
        fields = cls.by_field(raw)
        if all(value is None for value in fields.values()):
            raise ValueError(f"it has none of the fields {', '.join(fields)}")
        return fields

    @classmethod
    def by_field(cls, raw: Mapping[Any, Any]) -> dict[str, Any]:
        """The value of each field of the form: of several under its names, that of the most certain name."""
        return {field: next(iter(cls.values_of(field, raw)), None) for field in cls.model_fields}

    @classmethod
    def values_of(cls, field: str, raw: Mapping[Any, Any]) -> list[Any]:
        """All values that an object has under the names of a field, the exact name first, without nulls."""
        values = {field_name(key): value for key, value in raw.items() if value is not None}
        values |= {key: value for key, value in raw.items() if key in cls.model_fields and value is not None}
        return [values[name] for name in (field, *cls.other_names.get(field, ())) if name in values]

    @classmethod
    def enters(cls, name: str) -> bool:
        """Whether the form may stand in an object of this name, which is written as names of fields are."""
        return True

    @classmethod
    def from_prose(cls, text: str) -> Any:
        """The fields in an answer without JSON; None if there are none. The only list is read by its items."""
        field = only_list(cls)
        return {field: Prose(text)} if field else None


def form_name(schema: type[BaseModel]) -> str:
    """The name of a form in its JSON schema."""
    return str(schema.model_config.get("title") or schema.__name__)


def only_list(schema: type[BaseModel]) -> str | None:
    """The name of the list that a form is about, whatever else it may say; None if it is about other things."""
    required = [(name, field) for name, field in schema.model_fields.items() if field.is_required()]
    is_list = len(required) == 1 and get_origin(required[0][1].annotation) is list
    return required[0][0] if is_list else None


class Item(Form):
    """One item of a list in a form. Its first field says what it is about."""

    reads_prose: ClassVar[bool] = False
    """Whether items may also be read from an answer that is a text without JSON."""

    @classmethod
    def from_pair(cls, key: str, value: Any) -> Any:
        """The item's fields, from a list that was written as an object: its key and its value there."""
        raise ValueError(f"{key} is not an item of the list")

    @classmethod
    def from_text(cls, text: str) -> Any:
        """The item's fields, from an item that was written as a text."""
        raise ValueError("an item must be an object")

    @classmethod
    def in_order(cls, raw_items: list[Any]) -> list[Any]:
        """The items of a list; with what they are about, where only their order says it."""
        return raw_items

    @classmethod
    def items_in(cls, text: str) -> list[Any]:
        """The items in a text that stands in the place of the list: its lines."""
        return [line for line in text.splitlines() if line.strip()]

    @classmethod
    def stand_in(cls, raw: Any) -> Self | None:
        """What takes the place of an item that cannot be read, if something must."""
        return None


class Prose(str):
    """An answer without JSON, in the place of a list."""

    __slots__ = ()


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
        raw_items = kind.in_order(_raw_items(kind, raw))
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
        if isinstance(raw, Prose) and not kind.reads_prose:
            raise ValueError("it must be a list")
        raw = _json_or_text(raw)
    if isinstance(raw, str):
        return kind.items_in(raw)
    raw = _out_of_frame(kind, raw)
    if isinstance(raw, Mapping):
        return (
            _rows(raw) if _is_item(kind, raw) else [{key: part} for key, value in raw.items() for part in _parts(value)]
        )
    if not isinstance(raw, Sequence):
        raise ValueError("it must be a list")
    return list(raw)


def _rows(raw: Mapping[Any, Any]) -> list[Any]:
    """An item, or the items of a table that is written by its columns."""
    lengths = {len(value) if isinstance(value, list) else 0 for value in raw.values()}
    if len(lengths) > 1 or lengths <= {0, 1}:
        return [raw]
    return [dict(zip(raw, row, strict=True)) for row in zip(*raw.values(), strict=True)]


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _fields(kind: type[Item], raw: Any) -> Any:
    """The fields of an item in any shape."""
    if isinstance(raw, str):
        raw = _json_or_text(raw)
    while isinstance(raw, list) and len(raw) == 1:
        [raw] = raw
    if isinstance(raw, str):
        return kind.from_text(raw)
    raw = _out_of_frame(kind, raw)
    if isinstance(raw, Mapping) and len(raw) == 1:
        inner = _out_of_frame(kind, next(iter(raw.values())))
        raw = inner if isinstance(inner, Mapping) and _is_whole(kind, inner) and not _says_what(kind, raw) else raw
    if isinstance(raw, list) and len(raw) > 1 and isinstance(raw[0], str):  # the values of its fields, in their order
        return dict(zip(kind.model_fields, raw, strict=False))
    if isinstance(raw, Mapping) and not _is_item(kind, raw):
        names = {*kind.model_fields, *itertools.chain.from_iterable(kind.other_names.values())}
        subjects = [key for key in raw if len(raw) == 1 or field_name(key) not in names]
        if len(subjects) == 1:  # what it is about is the name of its main value; others may be beside it
            beside = {key: value for key, value in raw.items() if key != subjects[0]}
            return {**beside, **kind.from_pair(str(subjects[0]), raw[subjects[0]])}
    return raw


def _out_of_frame(kind: type[Item], raw: Any) -> Any:
    """The item inside of an object, with what the object says beside it; anything else as it is."""
    if not isinstance(raw, Mapping) or len(raw) < 2 or _is_item(kind, raw):
        return raw
    wholes = {key: inner for key, inner in raw.items() if isinstance(inner, Mapping) and _is_whole(kind, inner)}
    subjects = {str(next(iter(kind.by_field(inner).values()))) for inner in wholes.values()}
    beside = [(key, value) for key, value in raw.items() if key not in wholes]
    if len(subjects) != 1 or subjects & {*map(str, raw)} or any(re.search(r"[\d?？]", str(key)) for key, _ in beside):
        return raw
    return joined_pairs([pair for inner in wholes.values() for pair in inner.items()] + beside)


def _is_whole(kind: type[Item], raw: Mapping[Any, Any]) -> bool:
    """Whether an object has what an item is about, and the field after that."""
    fields = list(kind.by_field(raw).values())
    return all(value is not None for value in fields[:2])


def _says_what(kind: type[Item], raw: Mapping[Any, Any]) -> bool:
    """Whether the only name in an object is no name of a field, so that it may be what the item is about."""
    names = {*kind.model_fields, *itertools.chain.from_iterable(kind.other_names.values()), "item", "entry"}
    return not any(field_name(key) in names for key in raw)


def _json_or_text(text: str) -> Any:
    """The JSON in a text; the text itself if it has none, or only brackets somewhere in it."""
    is_json = text.lstrip().startswith("[")
    return next((value for value in json_values(text) if is_json or isinstance(value, Mapping)), text)


def _is_item(kind: type[Item], raw: Mapping[Any, Any]) -> bool:
    """Whether an object is an item, rather than a list with the items by their names."""
    first = next(iter(kind.model_fields))
    names = {first, *kind.other_names.get(first, ())}
    return any(
        field_name(key) in names and not (isinstance(value, Mapping) and _is_whole(kind, value))
        for key, value in raw.items()
    )


def field_name(key: object) -> str:
    """A name in an object as the names of fields are written."""
    return _field_name(str(key))


@lru_cache(maxsize=1024)  # answers have the same few names, which every form is tried with
def _field_name(key: str) -> str:
    words = re.sub(r"\s*\([^()]*\)\s*$", "", key)  # "answer (yes/no)"
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", words.strip(" \t\n*_`\"'"))
    return re.sub(r"[\s_-]+", "_", words.casefold())


def _fault(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'][1:])}: {first['msg']}".removeprefix(": ")


_OPENING: Final = re.compile(r"[{\[]")
_CERTAIN_OPENING: Final = re.compile(r'{\s*"|\[\s*[{\["]')
"""How JSON begins; other brackets may belong to prose."""
_MAX_FAILURES: Final = 10_000
"""Brackets that begin no JSON, after which no more is looked for: each of them takes time in proportion to the text."""
_MAX_VALUES: Final = 5_000
"""A text of more JSON values than these is read no further: a stream that tells its progress has some hundreds."""


_LONGEST_NUMBER: Final = 300
_LOOSE_TRIES: Final = 6
"""Brackets in a text from which JSON with faults is read."""


def whole_number(digits: str) -> int | float:
    """A whole number of JSON. One with hundreds of digits, which may be no float and no ``int`` either, is infinite."""
    return int(digits) if len(digits) < _LONGEST_NUMBER else float(digits)


def without_half_characters(text: str) -> str:
    """The text without halves of UTF-16 characters, which JSON can spell and nothing can write down."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def whole_texts(value: Any, *, spelled_in: str | None = None) -> Any:
    """A value of JSON whose texts can all be written down, see ``without_half_characters``.

    Args:
        value: The value.
        spelled_in: The JSON that it was read from, if known, which mostly tells that there is nothing to do.
    """
    if spelled_in is not None and not _HALF_A_CHARACTER.search(spelled_in):
        return value
    if isinstance(value, str):
        return without_half_characters(value)
    if isinstance(value, list):
        return [whole_texts(item) for item in value]
    if isinstance(value, dict):
        return {whole_texts(key): whole_texts(item) for key, item in value.items()}
    return value


_HALF_A_CHARACTER: Final = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")
"""Matches what may become half of a UTF-16 character, spelled out or not."""


def json_values(text: str) -> list[Any]:
    """The JSON objects and arrays in a text, outermost first; any text may be around them."""
    return _scan(text).values


def is_broken_json(text: str) -> bool:
    """Whether there is JSON in a text that cannot be parsed as a whole, so that ``json_values`` are its pieces."""
    return _scan(text).is_broken


def is_all_json(text: str) -> bool:
    """Whether there are no words between and around the JSON in a text."""
    return not re.search(r"\w", re.sub(r"```\s*\w*", "", _scan(text).prose))


def prose_around(text: str) -> str:
    """What stands in a text around its JSON."""
    return _scan(text).prose


def prose_after(text: str) -> str:
    """What follows the last JSON in a text; empty if it has none."""
    return _scan(text).after


def _mended(text: str) -> str:
    """The text with the quotation marks that a page's markup has replaced, and the brace that a server has cut off.

    A server that is told how an answer begins may leave that beginning out.
    """
    if "&quot;" in text and '"' not in text:
        text = html.unescape(text)
    whole = text.strip()
    if _MEMBER.match(whole):
        for end in ("", "}"):
            with contextlib.suppress(ValueError, RecursionError):
                if isinstance(json.loads(f"{{{whole}{end}", strict=False, parse_int=str), dict):
                    return f"{{{whole}{end}"
    return text


_MEMBER: Final = re.compile(r'"\w+"\s*:')
"""How the members of a JSON object begin."""


class _Scan(NamedTuple):
    values: list[Any]
    is_broken: bool
    prose: str
    """What is not in the values."""
    after: str = ""
    """What follows the last value."""


def _scan(text: str) -> _Scan:
    text = _mended(text)
    whole = text.strip()
    if whole.startswith(('"', '{\\"', "{\\n", '[{\\"')):  # JSON in a text that is in JSON
        with contextlib.suppress(ValueError):
            inner = json.loads(whole if whole.startswith('"') else f'"{whole}"', strict=False)
            text = inner if isinstance(inner, str) and _OPENING.search(inner) else text
    decoder = json.JSONDecoder(strict=False, parse_int=whole_number, object_pairs_hook=joined_pairs)
    spelling = text if _HALF_A_CHARACTER.search(text) else ""  # of thousands of values, looked through once
    values, loose_tries = list[Any](), _LOOSE_TRIES
    position, is_broken, prose, end, failures = 0, False, list[str](), 0, 0
    while match := _OPENING.search(text, position):
        value = None
        try:
            value, position = decoder.raw_decode(text, match.start())
        except RecursionError:  # thousands of brackets, from a model that repeats itself
            return _Scan(values, True, text)
        except ValueError:
            if loose_tries and begins_loosely(text, match.start()):
                loose_tries -= 1
                try:
                    value, position = read_loosely(text, match.start())
                except ValueError:
                    value = None
            if value is None:
                is_broken = is_broken or bool(_CERTAIN_OPENING.match(text, match.start()))
                position, failures = match.end(), failures + 1
                if failures > _MAX_FAILURES:
                    return _Scan(values, True, text)
                continue
        values.append(whole_texts(value, spelled_in=spelling))
        prose.append(text[end : match.start()])
        end = position
        if len(values) == _MAX_VALUES:
            return _Scan(values, True, text)
    is_broken = is_broken or (bool(values) and _lacks_beginning(values[-1], prose[0], text[end:]))
    return _Scan(values, is_broken, "".join([*prose, text[end:]]), text[end:] if values else "")


def _lacks_beginning(last: Any, before: str, after: str) -> bool:
    """Whether what follows the last JSON value closes what nothing in the text has opened.

    A bracket too many at the end is none of that, as models write it.
    """
    closes_list = isinstance(last, dict) and _CLOSES_LIST.match(after)
    return bool(closes_list or (_CLOSES_OBJECT.match(after) and _IS_CUT.search(before)))


_CLOSES_LIST: Final = re.compile(r"\s*,?\s*\]")
_CLOSES_OBJECT: Final = re.compile(r"\s*,?\s*\}")
_IS_CUT: Final = re.compile(r'[,:\]}]\s*("[^"]*"\s*:\s*)?\Z')
"""Matches the end of what is before a value inside of other JSON."""


# --- values ---------------------------------------------------------------------------------------------------------


def _read_text(raw: Any) -> Any:
    if raw is None:
        return ""
    if isinstance(raw, str):
        return without_half_characters(raw).strip()
    if isinstance(raw, bool):
        raise ValueError("it must be a text")
    if isinstance(raw, (int, float)):
        if not math.isfinite(number := _as_float(raw)):
            raise ValueError("it must be a text")
        return str(int(raw) if number.is_integer() else raw)
    if isinstance(raw, Sequence):
        return "\n".join(filter(None, map(_read_text, raw)))
    if isinstance(raw, Mapping) and (inner := next(filter(None, map(raw.get, _TEXT_NAMES)), None)) is not None:
        return _read_text(inner)
    raise ValueError("it must be a text")


_TEXT_NAMES: Final = ("text", "value", "content", "positive")
"""Names of a text inside of an object in its place."""


def _read_note(raw: Any) -> str:
    try:
        return str(_read_text(raw))
    except (ValueError, RecursionError):
        return ""


ANSWER_NAMES: Final = (
    "verdict", "result", "passed", "pass", "is_met", "met", "is_satisfied", "satisfied", "fulfilled", "is_correct",
    "correct", "judgment", "judgement", "decision", "assessment", "response", "value", "outcome", "status", "yes_no",
    "yes/no", "label", "ok", "antwort", "réponse", "reponse", "respuesta", "resposta", "risposta", "ответ", "答案",
    "回答", "答え", "답변", "답"
)  # fmt: skip
"""Names that models give to an answer, most certain first."""


def read_answer(raw: Any, depth: int = 3) -> Answer:
    """Yes or no if it says exactly that; unsure if it says anything else, or both.

    Args:
        raw: A text, a truth value, or a list or object with such values.
        depth: How deep the answer may be inside of lists and objects.

    Raises:
        ValueError: It is no answer.
    """
    if isinstance(raw, (bool, int, float)) and raw in (0, 1):
        return "yes" if raw else "no"
    if isinstance(raw, str) and raw.strip():
        return yes_or_no(raw)
    if depth and isinstance(raw, (list, Mapping)):
        names = ("answer", *ANSWER_NAMES)
        inner = raw if isinstance(raw, list) else [value for key, value in raw.items() if field_name(key) in names]
        answers = {read_answer(value, depth - 1) for value in inner if value is not None}
        if answers:
            return answers.pop() if len(answers) == 1 else "unsure"
    raise ValueError("it must be yes, no or unsure")


UNSTATED: Final = 0.5
"""The confidence of an answer that states none that can be read: a guess, so that nothing is made surer than it is."""

_LEVELS: Final = {"certain": 1.0, "very high": 0.95, "high": 0.9, "medium": 0.7, "moderate": 0.7, "low": 0.5}
_NUMBER: Final = re.compile(
    r"(?<![\w.,-])(?P<value>\d++(?:[.,]\d++)?|[.,]\d++) ?"
    r"(?:(?P<percent>%|percent|pct)|(?:/|(?:out )?of) ?(?P<whole>\d++))?"
    r"(?!\w|[.,]\d| ?[-–—] ?\d)",
    re.ASCII,
)
_IS_A_BOUND: Final = re.compile(
    r"[<>≤≥±?]|n't\b|\b(?:not|no|less|more|than|under|below|over|above|most|least|between|or|to|un\w+)\b"
)
"""What makes a number in a text another number than the confidence."""
_LEAST_PERCENTAGE: Final = 10
"""A bare number above one is a percentage; up to this one it may just as well be a mark out of ten."""


def _read_share(raw: Any) -> float:
    """A number in [0, 1], also from a percentage, a fraction, a text or a word; ``UNSTATED`` if it cannot be read."""
    if isinstance(raw, list) and len(raw) == 1:
        [raw] = raw
    if isinstance(raw, Mapping):
        raw = raw.get("confidence", raw.get("value"))
    share = UNSTATED
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        share = _as_share(_as_float(raw))
    elif isinstance(raw, str):
        share = _share_in(plain_words(raw))
    return share if 0 <= share <= 1 else UNSTATED  # NaN is in no range


def _share_in(text: str) -> float:
    """The share that a text states: the only number in it, or a level in words."""
    text = " ".join(text.split())
    matches = list(_NUMBER.finditer(text))
    if not matches:
        words = [word for word in re.findall(r"[^\W_]+", text) if word not in ("confidence", "certainty")]
        return _LEVELS.get(" ".join(words), UNSTATED)
    match, value = matches[0], float(matches[0]["value"].replace(",", "."))
    if len(matches) > 1 or _IS_A_BOUND.search(text):
        return UNSTATED
    if whole := 100.0 if match["percent"] else float(match["whole"] or 0):
        return value / whole
    # "0.9 (sure)" is a share; "1 car" is none.
    is_alone = not re.search(r"[^\W\d]", text)
    return _as_share(value) if is_alone or not value.is_integer() or value > _LEAST_PERCENTAGE else UNSTATED


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
        letters = "" if isinstance(raw, list) else _letters(_read_note(raw))
        return by_letters.get(letters) or by_letters.get(letters.removesuffix("s")) or otherwise

    return BeforeValidator(read)


def _letters(text: str) -> str:
    return "".join(filter(str.isalpha, text.casefold()))


Text = Annotated[str, BeforeValidator(_read_text)]
"""A text; null is an empty one, a number is its digits, a list is its lines."""

Note = Annotated[str, BeforeValidator(_read_note)]
"""A text that the form is of use without; what is no text is an empty one."""

YesNo = Annotated[Answer, BeforeValidator(read_answer)]
"""An answer to a question; a truth value is one too. Other words than yes and no, such as "partially", are unsure."""

Share = Annotated[float, BeforeValidator(_read_share)]
"""A share of one, such as a confidence."""
