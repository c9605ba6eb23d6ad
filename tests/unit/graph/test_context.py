from __future__ import annotations

from dataclasses import dataclass, make_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from pydantic import ValidationError

from gems import build_graph
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


SLIPS = ["max_round", "candidate", "generater", "Seed", "maxRounds", "MAX_ROUNDS"]
NEAR_NAMES = ["users", "seeds", "image_url", "images_urls", "plans", "budgets", "skill", "reviews", "memorys", "Seed"]


@pytest.mark.parametrize("slip", SLIPS)
def test_a_misspelt_setting_is_refused_where_all_names_are_ours(slip: str) -> None:
    expected = f"unknown setting '{slip}': did you mean"
    with pytest.raises(InputError, match=expected):
        GemsContext.exactly({slip: 1})
    with pytest.raises(InputError, match=expected):
        GemsContext(**{slip: 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=expected):
        GemsContext.resolve({"gems": {slip: 1}})
    for context in ({slip: 1}, {"gems": {slip: 1}}):
        with pytest.raises(InputError, match=expected):
            build_graph().invoke({"prompt": "two red cars"}, context=context)  # type: ignore[arg-type]


def test_settings_under_gems_count_in_a_run_of_its_own(tmp_path: Path) -> None:
    own = GemsContext(seed=3, images_url=str(tmp_path)).as_operator()
    settings: Any = {"memory": False, "plan": False, "skills": False, "budget": {"images": 1}}
    result = build_graph(settings=settings).invoke({"prompt": "two red cars"}, context={"seed": "mine", "gems": own})  # type: ignore[arg-type]
    assert result["attempts"][0].seed == 3
    assert result["image"]
    assert result["image"].uri.startswith(tmp_path.as_uri())


@dataclass(slots=True)
class Slots:
    seed: int = 3
    users: int = 5


class Row(NamedTuple):
    seed: int = 3
    users: int = 5


@pytest.mark.parametrize("name", NEAR_NAMES)
def test_a_parents_own_names_may_resemble_ours(name: str) -> None:
    values = {"seed": 3, name: [object()]}
    parents_own: list[Any] = [values, SimpleNamespace(**values), make_dataclass("Own", values)(**values)]
    for context in parents_own:
        assert GemsContext.resolve(context) == GemsContext(seed=3)
    assert GemsContext.model_validate({"tenant": "x", "model": "y", **values}) == GemsContext(seed=3)


def test_any_object_can_be_a_parents_context() -> None:
    for context in (Slots(), Row(), SimpleNamespace(seed=3, gems={"seed": 3}), {"gems": Slots()}):
        assert GemsContext.resolve(context) == GemsContext(seed=3)
    for context in ("tenant-1", 7, object(), ["x"], {}, {"gems": None}):
        assert GemsContext.resolve(context) == GemsContext()
    with pytest.raises(InputError, match="the context's gems is int; give settings by name"):
        GemsContext.resolve({"gems": 5})


def test_a_fault_in_a_context_is_one_line_without_the_secret() -> None:
    with pytest.raises(InputError) as caught:
        build_graph().invoke({"prompt": "two red cars"}, context={"max_rounds": 0})  # type: ignore[arg-type]
    assert str(caught.value) == "the context's max_rounds is 0: Input should be greater than or equal to 1"
    for options in ({"api_key": ["sk-123456"]}, {"api_keys": "sk-123456"}):
        with pytest.raises(InputError) as caught:
            GemsContext.resolve({"chat_options": options})
        assert "sk-123456" not in str(caught.value)


def test_a_user_may_have_any_name_without_spaces() -> None:
    assert GemsContext(user="alice@example.com").user == "alice@example.com"
    assert namespace("alice@example.com") != namespace("alice@example%2Ecom")
    assert not any("." in label for label in namespace("alice@example.com"))
    with pytest.raises(ValidationError):
        GemsContext(user="a b")


@pytest.mark.parametrize("number", ["inf", "-inf", "nan"])
@pytest.mark.parametrize("path", ["memory_days", "chat_options.timeout", "generator_options.timeout", "budget.seconds"])
def test_a_number_that_json_does_not_have_is_refused(path: str, number: str) -> None:
    group, _, name = path.rpartition(".")
    with pytest.raises(InputError, match=name):
        GemsContext.exactly({group: {name: float(number)}} if group else {name: float(number)})
