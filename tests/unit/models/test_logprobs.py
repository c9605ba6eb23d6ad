"""A chat model's confidence, computed from the log-probabilities of its tokens."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from gems.models.logprobs import answer_probabilities

CHANCES = {"yes": 0.7, "no": 0.2, "unsure": 0.1}


def token(text: str, **alternatives: float) -> dict[str, Any]:
    """A token with its alternatives as keyword arguments; an underscore in a name stands for a quote."""
    choices = [{"token": name.replace("_", '"'), "logprob": math.log(p)} for name, p in alternatives.items()]
    return {"token": text, "logprob": choices[0]["logprob"] if choices else -0.1, "top_logprobs": choices}


def probabilities(*tokens: str | dict[str, Any]) -> dict[str, Any]:
    content = [token(t) if isinstance(t, str) else t for t in tokens]
    message = AIMessage("".join(t["token"] for t in content), response_metadata={"logprobs": {"content": content}})
    return {name: {w: pytest.approx(p) for w, p in shares.items()} for name, shares in _shares(message).items()}


def _shares(message: AIMessage) -> dict[str, dict[Any, float]]:
    shares_by_id = answer_probabilities(message)
    assert all(math.isclose(sum(shares.values()), 1) for shares in shares_by_id.values())
    return shares_by_id


def answered(name: str, *tokens: dict[str, Any] | str) -> list[dict[str, Any] | str]:
    return [f'{{"id": "{name}", "answer": "', *tokens, '", "confidence": 1.0}']


def test_the_alternatives_at_the_answer_are_its_probabilities() -> None:
    assert probabilities(*answered("r1", token("yes", **CHANCES))) == {"r1": CHANCES}


def test_the_first_token_of_an_answer_counts() -> None:
    first = token("un", un=0.1, yes=0.7, no=0.2)
    assert probabilities(*answered("r1", first, "su", "re")) == {"r1": CHANCES}


def test_letters_of_the_same_word_add_up_and_others_do_not_count() -> None:
    first = token("yes", yes=0.3, Yes=0.2, y=0.1, no=0.1, not_a_word=0.2, maybe=0.1)
    [shares] = probabilities(*answered("r1", first)).values()
    assert shares["yes"] == pytest.approx(6 / 7)
    assert shares["no"] == pytest.approx(1 / 7)


def test_a_quote_inside_the_token_is_not_part_of_the_word() -> None:
    answer_token = token('"yes', _yes=0.7, _no=0.2, _unsure=0.1, yes=0.9)
    assert probabilities('{"id": "r1", "answer": ', answer_token, '", "confidence": 1}') == {"r1": CHANCES}


def test_text_after_the_word_in_its_token_is_not_part_of_it() -> None:
    answer_token = token('yes",', **{'yes",': 0.7, 'no",': 0.2, "uns": 0.1})
    assert probabilities('{"id": "r1", "answer": "', answer_token, ' "confidence": 1}') == {"r1": CHANCES}


def test_each_question_has_its_own_probabilities_and_a_repeated_one_has_none() -> None:
    tokens = [
        part
        for name, chances in [("r1", CHANCES), ("r2", {"no": 1.0}), ("r3", CHANCES), ("r2", {"yes": 1.0})]
        for part in (*answered(name, token(next(iter(chances)), **chances)), ", ")
    ]
    assert probabilities("[", *tokens) == {"r1": CHANCES, "r3": CHANCES}


@pytest.mark.parametrize("alternatives", [None, [], "no", {"no": -3.0}, [{"token": "no", "logprob": -3.0}]])
def test_without_alternatives_nothing_is_measured(alternatives: Any) -> None:
    """A share of the token alone would always be one."""
    assert probabilities(*answered("r1", {"token": "no", "logprob": -3.0, "top_logprobs": alternatives})) == {}


@pytest.mark.parametrize("logprob", [None, "high", "-0.5", math.nan, math.inf, 800.0, True])
def test_invalid_log_probabilities_of_an_answer_measure_nothing(logprob: Any) -> None:
    odd = {"token": "yes", "logprob": logprob}
    sound, other = {"token": "no", "logprob": -0.5}, {"token": "?", "logprob": logprob}
    assert probabilities(*answered("r1", {**odd, "top_logprobs": [odd]})) == {}
    assert probabilities(*answered("r1", {**odd, "top_logprobs": [odd, sound, {}]})) == {}
    assert probabilities(*answered("r1", {**sound, "top_logprobs": [sound, other]}))["r1"]["no"] == pytest.approx(1.0)


def test_a_nearly_impossible_alternative_has_no_share() -> None:
    choices = [{"token": "yes", "logprob": 0.0}, {"token": "no", "logprob": -9999.0}]
    answer_token = {"token": "yes", "logprob": 0.0, "top_logprobs": choices}
    assert probabilities(*answered("r1", answer_token)) == {"r1": {"yes": 1.0, "no": 0.0, "unsure": 0.0}}


@pytest.mark.parametrize("metadata", [{}, {"logprobs": None}, {"logprobs": {"content": None}}, {"logprobs": []}])
def test_a_model_without_log_probabilities_has_none(metadata: dict[str, Any]) -> None:
    text = json.dumps({"verdicts": [{"id": "r1", "answer": "yes"}]})
    assert answer_probabilities(AIMessage(text, response_metadata=metadata)) == {}
