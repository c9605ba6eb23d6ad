"""Finds answers to questions in a text without JSON: the lines of a list, or the rows of a table."""

from __future__ import annotations

import re
from typing import Any, Final

from gems.models.yes_or_no import takes_back

__all__ = ["ANSWER_LINE", "answers_in"]

ANSWER_LINE: Final = re.compile(
    r"[\s>|*•·#_(\[`-]*+(?i:(?:question|requirement|item)\s+)?(?P<id>.+[?？]|(?:[^\W\d_]{1,12}[\s_#.-]?)?\d+)"
    r"[\s*_`\"'|:=.,)\]>→–—-]+(?P<answer>(?<![-–—])\d.*|[^\d\s].*)",
    re.DOTALL,
)
"""Matches an id, or a question, and its answer in words."""
_NEXT_ANSWER: Final = re.compile(r"[,;]\s+(?=[^\W\d_]{1,12}\s?\d+\s*[:=])")
_RULE: Final = re.compile(r"(?=[^-]*-)[\s:|-]+")
"""Matches the line under the head of a table."""


def answers_in(text: str) -> list[Any]:
    """The lines that may be answers, and the rows of tables as objects with the names of their columns.

    What follows an answer belongs to it: the lines up to an empty one, and words after that which take it back.
    """
    items: list[Any] = []
    head: list[str] = []
    is_open = False
    lines = [part for line in text.splitlines() for part in _answers_in_line(line)]
    for line, next_line in zip(lines, [*lines[1:], ""], strict=True):
        words = line.strip()
        if not words or words.startswith("```"):
            head, is_open = [], False
        elif "|" in words and "|" in next_line and _RULE.fullmatch(next_line.strip()):
            head = _cells(words)
        elif head:
            if not _RULE.fullmatch(words):
                items.append(dict(zip(head, _cells(words), strict=False)))
        elif ANSWER_LINE.fullmatch(words):
            items.append(words)
            is_open = True
        elif items and isinstance(items[-1], str) and (is_open or takes_back(words)):
            items[-1] = f"{items[-1]}\n{words}"
    return items


def _answers_in_line(line: str) -> list[str]:
    parts = _NEXT_ANSWER.split(line)
    return parts if all(map(ANSWER_LINE.fullmatch, parts)) else [line]


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().strip("|").split("|")]
