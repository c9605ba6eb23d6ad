"""What a server says is wrong: the words of an error in any shape, and what they mean for the next try."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Final

from pydantic_core import from_json

from gems.models.lenient import whole_number, whole_texts

__all__ = [
    "error_message",
    "is_busy_kind",
    "is_refusal",
    "json_body",
    "json_of_error",
    "kind_of_error",
    "minimax_status",
    "refused_fields",
    "says_refusal",
    "status_of_error",
    "text_of",
    "words_of",
]

_SAYS: Final = (
    *("title", "error", "message", "msg", "exception_message", "error_message", "error_description"),
    *("error_msg", "errmsg", "status_msg", "base_resp"),
    *("detail", "details", "errors", "description", "reason", "failure_reason"),
)
"""The names, in lower case, under which servers say what is wrong, in the order in which that reads well."""

_NAMES: Final = ("exception_type", "type", "code", "finish_reason", "finishreason", "name", "status")
"""The names under which they only name the error."""

_MAX_PARTS: Final = 3
_DEPTH: Final = 6
_MOST_READ: Final = 2**18
"""The bytes at the beginning of an error that are read: all that servers say, and parsed in a moment."""

_REFUSALS: Final = re.compile(
    r"content.?(?:polic|filter|management)|moderation|moderated|flagged|guardrail|prohibited.?content|image_safety"
    r"|inappropriate|responsible.?ai|usage polic|safety (?:system|reason|polic)"
    r"|(?:failed|did not pass)[\w ]{0,24} safety check|nsfw (?:content|image)[\w ]{0,12} detected"
    r"|(?<!case)(?<!case.)sensitive"
    # DashScope, Volcengine, Tencent, MiniMax, Zhipu
    r"|data.?inspection|illegal_?detected|[\"']?status_code[\"']?\s*:\s*102[67]\b|[\"']code[\"']\s*:\s*[\"']?1301\b"
    r"|敏感|违规",
    re.IGNORECASE,
)
"""How providers say that their moderation refuses words or an image."""


def says_refusal(text: str) -> bool:
    """Whether a server's words say that its provider refuses what was asked, in whatever way it is asked."""
    return bool(_REFUSALS.search(text))


def error_message(body: bytes) -> str:
    """The message in the body of an error, in any server's format; empty if there is none that can be shown."""
    content = json_of_error(body)
    if isinstance(content, Mapping):
        return words_of(content) if _known_names(content) else ""
    if isinstance(content, list | str):
        return words_of(content)
    text = _shown(text_of(body[:300]))
    return "" if text == "null" else text


def words_of(error: object, depth: int = _DEPTH) -> str:
    """What an error says: a text, an object, a list of them, or any of these written as a text."""
    if isinstance(error, str):
        inner = json_body(error.encode("utf-8", "replace")) if error.lstrip()[:1] in ("{", "[") else None
        return (words_of(inner, depth - 1) if inner and depth else "") or _shown(error)
    if isinstance(error, list) and depth:
        return "; ".join(_distinct(words_of(part, depth - 1) for part in error[: 2 * _MAX_PARTS]))
    if isinstance(error, Mapping) and depth:
        return _words_in(error, depth)
    return "" if error is None or isinstance(error, bool | list | Mapping) else str(error)


def _words_in(error: Mapping[str, object], depth: int) -> str:
    fields = {str(name).lower(): content for name, content in error.items()}
    if not _known_names(error):  # the inputs that are wrong, each with what is wrong with it
        parts = ((name, words_of(content, depth - 1)) for name, content in fields.items() if not name.startswith("@"))
        return "; ".join(_distinct(f"{name}: {words}" for name, words in parts if words))
    parts_said = _distinct(words_of(fields.get(name), depth - 1) for name in _SAYS)
    words = ": ".join(parts_said) or next(filter(None, (words_of(fields.get(name), 1) for name in _NAMES)), "")
    place = fields.get("loc")  # of FastAPI
    return f"{'.'.join(map(str, place))}: {words}" if isinstance(place, list) and words else words


def _known_names(error: Mapping[str, object]) -> set[str]:
    return {str(name).lower() for name in error}.intersection((*_SAYS, *_NAMES))


def _distinct(parts: Iterable[str]) -> list[str]:
    """The first parts that say something that no other one contains."""
    texts = list(dict.fromkeys(filter(None, parts)))
    return [text for text in texts if not any(text != other and text in other for other in texts)][:_MAX_PARTS]


def _shown(text: str) -> str:
    """A text, if it is neither a page nor a file."""
    text = text[:_MOST_READ]
    is_file = "\0" in text or text.count("\ufffd") > max(2, len(text) // 20)
    return "" if is_file or "<html" in text.lower() or "<!doctype" in text.lower() else text.strip()


_NOT_TAKEN: Final = (
    r"(?:\b(?:unknown|unrecogni[sz]ed|unsupported|unexpected|extra|additional|disallowed|forbidden|no such)\b"
    r"|\binvalid (?=\W*(?:request )?(?:param|field|arg|propert|key|option|input|value)|['\"`])"
    r"|\bnot (?:\w+ )?(?:support(?:ed)?|permitted|allowed|accept(?:ed)?|recogni[sz]ed|expected|known|available|valid)\b"
    r"|\b(?:does not|doesn't|cannot|can't) (?:have|take|use|handle)\b|不支持|未知|无效)"
)
"""How servers say that they do not know a field of a request, or do not take it."""
_NOT_SO: Final = r"(?:\b(?:must|should|has to) (?:not )?be\b|\bout of range\b)"
"""How they say it of the value of the field before that."""
_BETWEEN: Final = r"(?:[^.;!?]|\.(?=\w)){0,80}?"
_CHOICES: Final = re.compile(
    r"(?<!not )(?<!yet )(?<!currently )\b(?:expected|allowed|permitted|valid|supported|known|available)"
    r"(?:(?: \w+){0,3}? (?:one of|are)\b|(?: \w+s)?:).*",
    re.IGNORECASE | re.DOTALL,
)
"""Matches what a server lists in place of what it refuses."""


def refused_fields(reason: str, fields: Iterable[str]) -> set[str]:
    """Those of a request's fields that a server does not take, in its own words; not those that it only mentions."""
    words = _CHOICES.sub("", reason)
    return {field for field in fields if _refuses(words, rf"(?<![\w-]){re.escape(field)}(?![\w-])(?![\s=:]*\d)")}


def _refuses(words: str, name: str) -> bool:
    wording = rf"{_NOT_TAKEN}{_BETWEEN}{name}|{name}{_BETWEEN}(?:{_NOT_TAKEN}|{_NOT_SO})"
    return bool(re.search(wording, words, re.IGNORECASE))


_STATUS_NAMES: Final = ("code", "status", "status_code", "error_code", "errcode", "http_status")
_KIND_NAMES: Final = ("type", "code", "status", "error_type", "error_code", "errcode", "name")


def status_of_error(error: Mapping[str, object]) -> int | None:
    """The HTTP status in an error, under whatever name; None if there is none."""
    texts = (str(error.get(name)) for name in _STATUS_NAMES)
    return next((int(text) for text in texts if re.fullmatch("[45][0-9][0-9]", text)), None)


_MINIMAX_STATUSES: Final = {
    1000: 500,
    1001: 504,
    1002: 429,
    1004: 401,
    1008: 402,
    1013: 500,
    1024: 500,
    1033: 500,
    1039: 429,
}
"""What the codes in MiniMax's ``base_resp`` mean as a status of HTTP, as far as that is known."""


def minimax_status(report: Mapping[str, object]) -> int | None:
    """The HTTP status that MiniMax's ``base_resp`` stands for; None if that is not known."""
    code = report.get("status_code")
    return _MINIMAX_STATUSES.get(code) if isinstance(code, int) else None


def kind_of_error(error: Mapping[str, object]) -> str:
    """How an error is classed, in the server's words; empty if it is not."""
    return " ".join(kind for name in _KIND_NAMES if isinstance(kind := error.get(name), str))


_BUSY_KIND: Final = re.compile(
    r"overload|rate.?limit|too.?many.?request|throttl|busy|\b(?:no|out.?of|at|over|insufficient).?capacity|unavailable"
    r"|slow.?down|resource.?exhausted|model.?loading",
    re.IGNORECASE,
)


def is_busy_kind(kind: str) -> bool:
    """Whether a server classes an error as one of a time when it takes no requests, and does nothing for them."""
    return bool(_BUSY_KIND.search(kind.replace("_", " ")))


def is_refusal(body: bytes) -> bool:
    """Whether an error says that the server does not draw such prompts."""
    content = json_of_error(body)  # which may spell its characters in escapes
    text = (
        json.dumps(content, ensure_ascii=False) if content is not None else body[:_MOST_READ].decode("utf-8", "replace")
    )
    return says_refusal(text[:4000])


def text_of(body: bytes) -> str:
    """The text of a body in UTF-8, or else in Windows' encoding of Western languages."""
    text = body.decode("utf-8", "replace")
    # A single bad character may also be one that was cut, or UTF-8 that a server has damaged.
    return body.decode("cp1252", "replace") if "\ufffd" in text and not _UTF_8.search(body) else text


_UTF_8: Final = re.compile(rb"[\xc2-\xf4][\x80-\xbf]")


def json_body(body: bytes) -> object:
    """The JSON in a body, in any of Unicode's encodings; None if it is not JSON.

    Every text in it can be sent again, in an address or in a request.
    """
    try:
        text = body.decode(json.detect_encoding(body), "surrogatepass")
        content: object = whole_texts(json.loads(text, parse_int=whole_number), spelled_in=text)
        return content
    except (ValueError, RecursionError):
        return None


def json_of_error(body: bytes) -> object:
    """The JSON in the body of an error, of one that is very long what its beginning holds; None if it is not JSON."""
    if len(body) <= _MOST_READ:
        return json_body(body)
    try:
        content: object = from_json(body[:_MOST_READ], allow_partial="trailing-strings")
    except ValueError:
        return None
    return content
