"""Measures how sure a chat model is, by the probabilities of the words that it could have answered with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, get_args

from langchain_core.messages import AIMessage

from gems.graph.state import Answer

__all__ = ["answer_probabilities"]

_ANSWER: Final = re.compile(
    r'"id"\s*:\s*"?(?P<id>(?<=")[^"]*(?=")|\d+)"?[^{}]*?"answer"\s*:\s*"(?P<answer>[a-z]+)[.!]?"', re.IGNORECASE
)
"""Matches one answered question in the JSON of a verifier's answer."""

_LETTERS: Final = re.compile(r"[a-z]*")
"""Matches the part of a token that belongs to the word; a quote and a comma may follow in the token."""

_ROUNDING: Final = 1e-3
"""How far above zero the logarithm of a probability may be."""

_WORDS: Final[tuple[Answer, ...]] = get_args(Answer)


def answer_probabilities(message: AIMessage) -> dict[str, dict[Answer, float]]:
    """For each question's id, the probabilities of yes, no and unsure, which sum to one.

    They come from the alternatives to the answer's first token, if the server returns them (OpenAI's ``logprobs`` with
    ``top_logprobs``). Without alternatives the result is empty. A question that occurs twice is left out.
    """
    tokens = _tokens(message)
    text = "".join(token["token"] for token in tokens)
    ends = list(accumulate(len(token["token"]) for token in tokens))
    probabilities: dict[str, dict[Answer, float]] = {}
    matches = list(_ANSWER.finditer(text))
    ids = [match["id"].strip() for match in matches]
    for match, name in zip(matches, ids, strict=True):
        start = match.start("answer")
        index = next(i for i, end in enumerate(ends) if end > start)
        before = text[ends[index] - len(tokens[index]["token"]) : start]
        shares = _shares(tokens[index], before)
        if shares and ids.count(name) == 1:
            probabilities[name] = shares
    return probabilities


def _tokens(message: AIMessage) -> list[dict[str, Any]]:
    logprobs = message.response_metadata.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    tokens = content if isinstance(content, Sequence) else []
    return [t for t in tokens if isinstance(t, dict) and isinstance(t.get("token"), str)]


def _shares(token: Mapping[str, Any], before: str) -> dict[Answer, float]:
    """The shares of the answers in the probability of one token; ``before`` is the token's text before the word."""
    listed = token.get("top_logprobs")
    alternatives = [a for a in listed if isinstance(a, Mapping)] if isinstance(listed, Sequence) else []
    mass = dict.fromkeys(_WORDS, 0.0)
    for alternative in alternatives:
        word, logprob = str(alternative.get("token", "")), alternative.get("logprob")
        start = _LETTERS.match(word[len(before) :].lstrip('"').lower())[0]  # type: ignore[index]
        candidates = [w for w in _WORDS if start and w.startswith(start)]
        if not word.startswith(before) or len(candidates) != 1:
            continue
        # OpenAI returns -9999 for a probability of almost 0.
        if isinstance(logprob, bool) or not isinstance(logprob, (int, float)) or not logprob <= _ROUNDING:
            return {}
        mass[candidates[0]] += math.exp(logprob)
    total = sum(mass.values())
    return {word: m / total for word, m in mass.items()} if total > 0 and len(alternatives) > 1 else {}
