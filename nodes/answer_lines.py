"""Finds answers to questions in a text without JSON: the lines of a list, or the rows of a table."""

from __future__ import annotations

import re
import unicodedata
from typing import Any, Final

from gems.models.yes_or_no import is_one_word, takes_back

__all__ = ["ANSWER_LINE", "answer_line", "answers_in"]

ANSWER_LINE: Final = re.compile(
    r"[\s>|*•·#_(\[`-]*+(?i:(?:the\s++)?(?:answer\s++(?:to|for)|for)\s++)?"
    r"(?i:(?:question|requirement|item)\s++)?(?P<id>.+[?？]|(?:[^\W\d_]{1,12}[\s_#.-]?)?\d+)"
    r"(?i:\s*\((?:object|count|attribute|colou?r|position|verb|action|text|style|other)\))?(?i:\s+is(?=\s))?"
    r"[\s*_`\"'|:;=.,)\]>→–—-]+(?P<answer>(?<![-–—])\d.*|[^\d\s].*)",
    re.DOTALL,
)
"""Matches an id, or a question, and its answer in words."""
_NEXT_ANSWER: Final = re.compile(
    r"[,;]\s*(?=[^\W\d_]{1,12}\s?\d+\s*(?:[:=]|\s(?i:yes|no)\b))|(?<!\s)\s+(?=[^\W\d_]\d+\s*[:=]\s*\w)"
)
_ANSWER_FIRST: Final = re.compile(
    r"(?P<bullet>[\s>*•·-]*+)\[?(?P<answer>[✅✓✔☑👍❌✗✘✖👎]|(?i:yes|no)(?=\W))\ufe0f?[\]*_]*[\s:–—-]++"
    r"(?P<id>[*_(\[]*(?:[^\W\d_]{1,12}[\s_#.-]?)?\d+[*_)\]]*(?![\w%])(?!\s+\w)|[^?？]{8,}[?？])(?P<rest>.*)",
    re.DOTALL,
)
"""Matches an answer before the id that it belongs to."""
_ID_ALONE: Final = re.compile(
    r"[\s>|*•·#_(\[`-]*+(?i:(?:question_id|question|requirement|item|id|q)\s*+[:=]?\s*+)?"
    r"(?P<id>[\"'*_]*[^\W\d_]{1,2}[_-]?\d+(?:\s*+[:.]\s*+[^?？\n]{8,}[?？])?|[^?？\n]{8,}[?？])[\s*_:.)\]`\"']*"
)
"""Matches a line with an id, or a question, whose answer follows in the next one."""
_ELEMENT: Final = re.compile(
    r"<(?P<name>[^\W\d]\w{0,20})(?:\s+id=[\"']?(?P<id>[\w-]{1,20})[\"']?)?\s*>(?P<answer>[^<>]*)</(?P=name)>"
)
_CELL_ENDS: Final = re.compile(r"</t[dh]>\s*+<t[dh]\b[^<>]*>\s*", re.IGNORECASE)
_HTML: Final = re.compile(r"</?(?:table|thead|tbody|t[rdh]|[ou]l|li|p|div|br|html|body)\b[^<>]*>", re.IGNORECASE)
_TAG: Final = re.compile(r"</?[^\W\d][\w-]{0,20}/?>")
_ID_LIST: Final = r"[^\W\d_]{0,2}\d+(?:(?:\s*[,;/&]\s*(?:and\s+)?|\s+and\s+)[^\W\d_]{0,2}\d+)+"
_GROUP: Final = re.compile(
    rf"[\s>*•·_-]*+(?P<answer>[^\W\d_](?:[^\W_]| (?=[^\W_])){{0,15}}+)[\s*_]*+[:—–-]++[\s*_]*+"
    rf"(?P<ids>{_ID_LIST}|[^\W\d_]{{1,2}}\d+)[\s.*_]*+"
)
"""Matches one answer to several questions."""
_OF_IMAGE: Final = re.compile(
    r"[\W_]*+(?:(?:image|overall)[\s_])?(?:quality|flaws?|defects?)\b[\W_]*[:=].*", re.IGNORECASE
)
"""Matches what is said of the whole image, which belongs to no answer."""
_OTHER_ID: Final = re.compile(r"\W*[^\W\d_]{1,2}[_-]?\d+\W*")
_FRAME: Final = re.compile(r"\\boxed\{([^{}]*)\}")
_IS_QUESTION: Final = re.compile(r"[?？][\s*_:`\"']*\Z")
_RULE: Final = re.compile(r"(?=[^-]*-)[\s:|-]+")
"""Matches the line under the head of a table."""


def answers_in(text: str) -> list[Any]:
    """The lines that may be answers, and the rows of tables as objects with the names of their columns.

    What follows an answer belongs to it: the lines up to an empty one, and words after that which take it back.
    """
    items: list[Any] = []
    head: list[str] = []
    is_open, open_id = False, ""
    text = _FRAME.sub(r"\1", unicodedata.normalize("NFKC", text).replace("\ufe0f", "").replace("\u20e3", ""))
    text = _HTML.sub("\n", _CELL_ENDS.sub(" | ", text))
    text = _ELEMENT.sub(lambda element: f"\n{element['id'] or element['name']}: {element['answer']}\n", text)
    text = _TAG.sub("\n", text)
    lines = [part for line in text.splitlines() for part in _answers_in_line(line)]
    for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
        words = answer_line(line.strip())
        if open_id and words:
            words, open_id = words if _names_a_question(words) else f"{open_id}: {words}", ""
        if not words or words.startswith("```"):
            head, is_open = [], False
        elif "|" in words and "|" in next_line and _RULE.fullmatch(next_line.strip()):
            head = _cells(words)
        elif head:
            if not _RULE.fullmatch(words):
                items.append(dict(zip(head, _cells(words), strict=False)))
        elif _OF_IMAGE.fullmatch(words):
            is_open = False
        elif (match := _ID_ALONE.fullmatch(words)) and (_IS_QUESTION.search(words) or not ANSWER_LINE.fullmatch(words)):
            open_id, is_open = match["id"].strip("\"'*_ "), False
        elif ANSWER_LINE.fullmatch(words):
            items.append(words)
            is_open = True
        elif items and isinstance(items[-1], str) and (is_open or takes_back(words)):
            items[-1] = f"{items[-1]}\n{words}"
    return items


def _names_a_question(line: str) -> bool:
    """Whether a line says by itself what it is about."""
    match = ANSWER_LINE.fullmatch(line)
    return bool(_ID_ALONE.fullmatch(line) or (match and _OTHER_ID.fullmatch(match["id"])))


def answer_line(line: str) -> str:
    """The line, with the id first if it has the answer first."""
    line = unicodedata.normalize("NFKC", line)
    if match := _ANSWER_FIRST.fullmatch(line):
        rest = match["rest"].lstrip(" \t:*_)]–—-")
        return f"{match['bullet']}{match['id'].strip('*_()[]')}: {match['answer']} {rest}".rstrip()
    return line


def _answers_in_line(line: str) -> list[str]:
    if (match := _GROUP.fullmatch(line)) and is_one_word(match["answer"]):
        return [f"{name}: {match['answer']}" for name in re.findall(r"[^\W\d_]*\d+", match["ids"])]
    parts = _NEXT_ANSWER.split(line)
    return parts if all(map(ANSWER_LINE.fullmatch, parts)) else [line]


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
