"""Calls of tools that a chat model writes into its text, in the forms that models are trained on."""

from __future__ import annotations

import ast
import itertools
import re
import uuid
from collections.abc import Collection, Iterator
from typing import Any, Final

from langchain_core.messages import AIMessage, ToolCall

from gems.models.lenient import json_values
from gems.models.thoughts import answer_text

__all__ = ["calls_in_words", "written_calls"]

_ELEMENT: Final = re.compile(
    r"<(?:function|invoke)(?:=| name=)[\"']?(?P<name>[\w.-]{1,64})[\"']?\s*>"
    r"(?P<body>(?:(?!<(?:function|invoke)(?:=| name=)).)*?)</(?:function|invoke)>",
    re.DOTALL,
)
_PARAMETER: Final = re.compile(
    r"<parameter(?:=| name=)[\"']?(?P<name>[\w.-]{1,64})[\"']?\s*>"
    r"\n?(?P<value>(?:(?!<parameter(?:=| name=)).)*?)\n?</parameter>",
    re.DOTALL,
)
_KEYED: Final = re.compile(
    r"<tool_call>\s*(?P<name>[\w.-]{1,64})\s*(?P<body><arg_key>(?:(?!<tool_call>).)*?)</tool_call>", re.DOTALL
)
"""A call as GLM writes it, with its arguments in pairs of elements."""
_PAIR: Final = re.compile(
    r"<arg_key>\s*(?P<name>[\w.-]{1,64})\s*</arg_key>\s*"
    r"<arg_value>\n?(?P<value>(?:(?!<arg_key>).)*?)\n?</arg_value>",
    re.DOTALL,
)
_LONGEST: Final = 20_000
"""Characters of a call."""
_MOST_CALLS: Final = 50
"""Beginnings of calls that are tried: a model that repeats itself writes thousands."""


def written_calls(message: AIMessage, names: Collection[str]) -> list[ToolCall]:
    """Calls of these tools that a weak model wrote as JSON in its text instead of making them."""
    text = answer_text(message)
    items = [item for value in json_values(text) for item in (value if isinstance(value, list) else [value])]
    calls: list[ToolCall] = []
    for item in items:
        inner = item.get("function", item) if isinstance(item, dict) else None
        if isinstance(inner, dict) and inner.get("name") in names:
            args = next(filter(None, map(inner.get, ("arguments", "parameters", "input", "args"))), None)
            args = next(iter(json_values(args)), {}) if isinstance(args, str) else args
            args = args if isinstance(args, dict) else {}
            calls.append(ToolCall(name=inner["name"], args=args, id=f"written_{uuid.uuid4().hex[:12]}"))
    by_name = {name.casefold().replace("-", "_"): name for name in names}
    for name, arguments in calls_in_words(text, {*by_name, *map(str.casefold, names)}):
        tool = by_name[name.casefold().replace("-", "_")]
        calls.append(ToolCall(name=tool, args=arguments, id=f"written_{uuid.uuid4().hex[:12]}"))
    return calls


def calls_in_words(text: str, names: Collection[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and arguments of each call of one of these tools: ``Plan(prompt="a car")``, or in elements as of XML.

    Args:
        text: The text of an answer.
        names: The names of the tools, in lower case.
    """
    for calls, arguments in ((_ELEMENT, _PARAMETER), (_KEYED, _PAIR)):
        for call in calls.finditer(text):
            if call["name"].casefold() in names:
                yield call["name"], {match["name"]: match["value"] for match in arguments.finditer(call["body"])}
    if not names:
        return
    beginnings = re.finditer(
        rf"(?<!\w)(?P<name>{'|'.join(map(re.escape, names))})\((?=\s*\w+\s*=)", text, re.IGNORECASE
    )
    for call in itertools.islice(beginnings, _MOST_CALLS):
        end = text.rfind(")", call.end(), call.end() + _LONGEST) + 1
        if end and (values := _arguments(text[call.start("name") : end])) is not None:
            yield call["name"], values


def _arguments(call: str) -> dict[str, Any] | None:
    """The arguments of a call in Python's words, all of them by name; None if it is no such call alone."""
    for bracket in itertools.islice(re.finditer(r"\)", call), _MOST_ENDS):
        end = bracket.end()
        try:
            tree = ast.parse(call[:end], mode="eval").body
            if isinstance(tree, ast.Call) and not tree.args:
                return {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords if word.arg}
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return None


_MOST_ENDS: Final = 20
"""Closing brackets that are tried as the end of a call."""
