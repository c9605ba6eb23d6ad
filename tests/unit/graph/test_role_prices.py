"""Prices of single roles: what their tokens cost more or less than those of all roles."""

from __future__ import annotations

import pytest
from chatting import PROMPT
from fakes import PaintGenerator

from gems.cli.arguments import make_context
from gems.errors import InputError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsInput, Prices, TokenPrices, Usage
from gems.nodes.meter import Meter

PRICES = Prices(image=0.5, prompt=2.0, completion=4.0, roles={"verifier": TokenPrices(prompt=10.0, completion=1.0)})
SPENT = Usage(chat_calls=1, prompt_tokens=1_000_000, completion_tokens=2_000_000)


def test_the_tokens_of_a_role_cost_what_its_model_costs() -> None:
    cheap = SPENT + Usage(extra_cost=PRICES.extra_cost("planner", SPENT))
    own = SPENT + Usage(extra_cost=PRICES.extra_cost("verifier", SPENT))
    assert PRICES.cost(cheap) == pytest.approx(2.0 + 8.0)
    assert PRICES.cost(own) == pytest.approx(10.0 + 2.0)
    assert PRICES.cost(cheap + own + Usage(images=1)) == pytest.approx(22.5)
    assert PRICES.dearest_token == 10.0
    assert Prices(prompt=2.0, completion=4.0).dearest_token == 4.0


def test_a_price_that_a_role_does_not_have_is_that_of_all() -> None:
    prices = Prices(prompt=2.0, completion=4.0, roles={"verifier": TokenPrices(completion=5.0)})
    assert prices.cost(SPENT + Usage(extra_cost=prices.extra_cost("verifier", SPENT))) == pytest.approx(2.0 + 10.0)


def test_what_was_spent_since_is_exact_even_where_a_role_is_cheaper() -> None:
    before = Usage(prompt_tokens=5, extra_cost=-0.25)
    assert (before + Usage(prompt_tokens=2, extra_cost=-0.5)).since(before) == Usage(prompt_tokens=2, extra_cost=-0.5)


def test_a_run_without_prices_by_role_writes_nothing_new() -> None:
    assert "extra_cost" not in Usage().model_dump()
    assert "roles" not in Prices().model_dump()
    assert Usage.model_validate(Usage(extra_cost=-1.0).model_dump()).extra_cost == -1.0


def test_a_meter_counts_by_the_prices_of_its_role() -> None:
    context = GemsContext(budget=Budget(prices=PRICES))
    graph = build_graph(generator=PaintGenerator())
    dear = context.model_copy(update={"memory": False, "skills": False, "max_rounds": 1, "seed": 1})
    usage = graph.invoke(GemsInput(prompt=PROMPT), context=dear)["usage"]
    plain = usage.model_copy(update={"extra_cost": 0.0})
    assert usage.extra_cost != 0.0
    assert PRICES.cost(usage) == pytest.approx(PRICES.cost(plain) + usage.extra_cost)
    assert Meter(Usage(), context, "verifier").usage.extra_cost == 0.0


def test_the_command_line_prices_a_role() -> None:
    context = make_context({"price": ["image=0.5", "prompt=2", "verifier.prompt=10"], "budget_cost": 3.0})
    assert context.budget.prices == Prices(image=0.5, prompt=2, roles={"verifier": TokenPrices(prompt=10)})
    with pytest.raises(InputError, match="--price judge"):
        make_context({"price": ["judge.prompt=10"]})
    with pytest.raises(InputError, match="--price"):
        make_context({"price": ["verifier.prompt=-1"]})
