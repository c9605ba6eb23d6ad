from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Budget, Usage, Verdict, score_verdicts
from gems.memory.trajectory import namespace


def test_only_known_fields_of_a_parents_context_are_used() -> None:
    assert GemsContext.resolve(None) == GemsContext()
    own = GemsContext(seed=3)
    assert GemsContext.resolve(own) is own
    assert GemsContext.resolve({"seed": 3, "theirs": object()}) == own
    assert GemsContext.resolve(SimpleNamespace(seed=3, model="x")) == own


def test_a_bad_value_is_named() -> None:
    with pytest.raises(InputError, match="max_rounds is 0"):
        GemsContext.resolve({"max_rounds": 0})
    with pytest.raises(InputError, match=r"budget\.images is 0"):
        GemsContext.resolve({"budget": {"images": 0}})


def test_budgets_say_which_limit_would_break() -> None:
    usage = Usage(chat_calls=3, images=2, prompt_tokens=50, completion_tokens=50, seconds=9)
    assert Budget().exhausted(usage, chat_calls=100, images=100) is None
    assert Budget(chat_calls=4).exhausted(usage, chat_calls=1) is None
    assert Budget(chat_calls=4).exhausted(usage, chat_calls=2) == "chat calls"
    assert Budget(images=2).exhausted(usage, images=1) == "images"
    assert Budget(tokens=100).exhausted(usage) == "tokens"
    assert Budget(seconds=9).exhausted(usage) == "seconds"


def test_one_missing_requirement_drags_the_score_down() -> None:
    def verdict(answer: str, confidence: float) -> Verdict:
        return Verdict.model_validate({"requirement_id": "r", "answer": answer, "confidence": confidence})

    sure = verdict("yes", 1.0)
    assert score_verdicts([]) == 0
    assert score_verdicts([sure, sure]) == pytest.approx(1)
    assert score_verdicts([sure, verdict("unsure", 0)]) == pytest.approx(0.5**0.5)
    assert score_verdicts([sure, sure, sure, verdict("no", 1.0)]) < 0.2


@pytest.mark.parametrize("slip", ["max_round", "candidate", "generater"])
def test_a_misspelt_setting_is_refused_and_a_parents_own_is_not(slip: str) -> None:
    with pytest.raises(ValidationError, match=f"unknown setting '{slip}': did you mean"):
        GemsContext.model_validate({slip: 1})
    assert GemsContext.model_validate({"tenant": "x", "model": "y", "temperature": 1}) == GemsContext()


def test_a_user_may_have_any_name_without_spaces() -> None:
    assert GemsContext(user="alice@example.com").user == "alice@example.com"
    assert namespace("alice@example.com") != namespace("alice@example%2Ecom")
    assert not any("." in label for label in namespace("alice@example.com"))
    with pytest.raises(ValidationError):
        GemsContext(user="a b")
