"""Settings that a request may change, and those that only the operator may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Budget, Prices
from gems.serve.settings import AcceptedSettings, RunSettings, ServiceSettings, context_of

OPEN = {
    *("max_rounds", "candidates", "verify_concurrency", "proposals", "seed", "patience", "budget", "plan"),
    *("skills", "memory", "memories", "reuse", "review"),
}


def accepted(**settings: Any) -> AcceptedSettings:
    return AcceptedSettings(requested=RunSettings.model_validate(settings))


def test_a_request_may_set_these_and_nothing_else() -> None:
    """Nothing that names a model, an address, a folder or another user: read this list before you add to it."""
    assert set(RunSettings.model_fields) == OPEN
    for name in GemsContext.model_fields.keys() - OPEN:
        with pytest.raises(ValidationError, match="Extra inputs"):
            RunSettings.model_validate({name: None})


def test_bounds_and_titles_are_those_of_the_context() -> None:
    for name, value in (("max_rounds", 0), ("candidates", 17), ("seed", -1), ("review", "always"), ("memories", 21)):
        with pytest.raises(ValidationError, match=name):
            RunSettings.model_validate({name: value})
    for name in OPEN:
        assert RunSettings.model_fields[name].title == GemsContext.model_fields[name].title
        assert RunSettings.model_fields[name].description == GemsContext.model_fields[name].description


def test_a_run_has_its_users_images_and_the_operators_limits(tmp_path: Path) -> None:
    settings = ServiceSettings(home=tmp_path, max_images=8, context=GemsContext(max_rounds=4, memory=False))
    context = context_of(settings, "ann", accepted(seed=7, memory=True, budget={"images": 50}))
    assert (context.user, context.images_url) == ("ann", f"{tmp_path}/images/ann")
    assert (context.seed, context.max_rounds, context.budget.images) == (7, 4, 8)
    assert not context.memory, "a request cannot turn on what the operator turned off"
    lowered = accepted(seed=7).model_copy(update={"budget": Budget(images=2)})
    assert context_of(settings, "ann", lowered).budget.images == 2


def test_a_request_lowers_the_operators_budget_and_never_raises_it(tmp_path: Path) -> None:
    prices = Prices(image=0.04)
    own = GemsContext(budget=Budget(chat_calls=10, cost=1.0, prices=prices))
    settings = ServiceSettings(home=tmp_path, context=own)
    context = context_of(settings, "ann", accepted(budget={"chat_calls": 99, "tokens": 7, "prices": {"image": 0}}))
    assert context.budget == Budget(chat_calls=10, tokens=7, images=20, cost=1.0, prices=prices)
    assert context_of(settings, "ann", accepted(budget={"cost": 0.1})).budget.cost == 0.1


def test_a_key_has_a_quarter_of_the_queue_unless_the_operator_says_otherwise(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    assert ServiceSettings(home=tmp_path, queue=10).max_queued_per_key == 10
    assert ServiceSettings(home=tmp_path, queue=10, keys=keys).max_queued_per_key == 3
    assert ServiceSettings(home=tmp_path, queue=10, keys=keys, queue_per_key=7).max_queued_per_key == 7


def test_a_service_is_open_to_others_only_on_purpose(tmp_path: Path) -> None:
    ServiceSettings(home=tmp_path, host="::1").check_address()
    ServiceSettings(home=tmp_path, host="0.0.0.0", open=True).check_address()
    ServiceSettings(home=tmp_path, host="0.0.0.0", keys=tmp_path / "keys.toml").check_address()
    with pytest.raises(InputError, match="there is no API key"):
        ServiceSettings(home=tmp_path, host="0.0.0.0").check_address()
