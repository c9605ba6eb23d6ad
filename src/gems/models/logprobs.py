"""How sure a chat model is, measured: the probabilities that it gave to the words it could have answered with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, get_args

from langchain_core.messages import AIMessage

from gems.graph.state import Answer

__all__ = ["answer_probabilities"]

_ANSWER: Final = re.compile(r'"id"\s*:\s*"(?P<id>[^"]*)"[^{}]*?"answer"\s*:\s*"(?P<answer>[a-z]+)"')
"""One answered question in the JSON of a verifier's answer."""

_LETTERS: Final = re.compile(r"[a-z]*")
"""What a token holds of the word; the quote and the comma after it may be part of the token."""

_ROUNDING: Final = 1e-3
"""A logarithm of a probability may be so much above zero."""

_WORDS: Final[tuple[Answer, ...]] = get_args(Answer)


def answer_probabilities(message: AIMessage) -> dict[str, dict[Answer, float]]:
    """For each question's id, the probabilities of yes, no and unsure, summing to one.

    They are read where the answer's first token was chosen, from the alternatives that the server tells (OpenAI's
    ``logprobs`` with ``top_logprobs``). Empty where it tells none; a question that occurs twice is left out.
    """
    tokens = _tokens(message)
    text = "".join(token["token"] for token in tokens)
    ends = list(accumulate(len(token["token"]) for token in tokens))
    found: dict[str, dict[Answer, float]] = {}
    matches = list(_ANSWER.finditer(text))
    ids = [match["id"].strip() for match in matches]
    for match, name in zip(matches, ids, strict=True):
        at = match.start("answer")
        index = next(i for i, end in enumerate(ends) if end > at)
        before = text[ends[index] - len(tokens[index]["token"]) : at]
        shares = _shares(tokens[index], before)
        if shares and ids.count(name) == 1:
            found[name] = shares
    return found


def _tokens(message: AIMessage) -> list[dict[str, Any]]:
    logprobs = message.response_metadata.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    return [t for t in content if isinstance(t, Mapping) and isinstance(t.get("token"), str)] if content else []  # type: ignore[misc]


def _shares(token: Mapping[str, Any], before: str) -> dict[Answer, float]:
    """How the probability of one token is shared out among the words; ``before`` is what it holds ahead of the word."""
    alternatives: Sequence[Mapping[str, Any]] = token.get("top_logprobs") or [token]
    mass = dict.fromkeys(_WORDS, 0.0)
    for alternative in alternatives:
        word, logprob = str(alternative.get("token", "")), alternative.get("logprob")
        # Whatever is no logarithm of a probability says nothing; OpenAI tells -9999 for "next to nothing".
        if not word.startswith(before) or not isinstance(logprob, (int, float)) or not logprob <= _ROUNDING:
            continue
        start = _LETTERS.match(word[len(before) :].lstrip('"').lower())[0]  # type: ignore[index]
        fitting = [w for w in _WORDS if start and w.startswith(start)]
        if len(fitting) == 1:
            mass[fitting[0]] += math.exp(logprob)
    total = sum(mass.values())
    return {word: m / total for word, m in mass.items()} if total > 0 else {}
