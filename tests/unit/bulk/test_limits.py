"""Limits of a whole bulk run, prices, and what a dry run foretells."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from gems.bulk.limits import Allowance, Estimate, Limits, estimate, forecast
from gems.errors import InputError
from gems.graph.state import Budget, Prices, Usage


def test_cost_is_by_the_price_list() -> None:
    prices = Prices(image=0.04, prompt=1.25, completion=10)
    usage = Usage(images=3, prompt_tokens=2_000_000, completion_tokens=100_000, chat_calls=7)
    assert prices.cost(usage) == pytest.approx(0.12 + 2.5 + 1.0)
    assert Prices().cost(usage) == 0


def test_a_budget_in_money_is_checked_before_an_image_is_made() -> None:
    budget = Budget(cost=0.10, prices=Prices(image=0.05))
    assert budget.exhausted(Usage(images=1), images=1) is None
    assert budget.exhausted(Usage(images=1), images=2) == "cost"
    assert budget.exhausted(Usage(images=2)) == "cost"


@pytest.mark.parametrize(("limit", "cost"), [(100, 3), (97, 3), (10, 1), (1, 5)])
def test_a_total_is_overstepped_by_less_than_one_prompt(limit: int, cost: int) -> None:
    """However many may be in flight."""
    allowance, flying, begun = Allowance(Limits(Budget(images=limit))), list[int](), 0
    rng = random.Random(limit)
    while allowance.reached is None:
        # Of the first, nothing is known yet: it flies alone here.
        word = allowance.begin(begun) if len(flying) < (64 if allowance.spent.images else 1) else "wait"
        if word == "go":
            flying.append(begun)
            begun += 1
        elif word == "wait":
            allowance.done(flying.pop(rng.randrange(len(flying))), Usage(images=cost))
    while flying:
        allowance.done(flying.pop(), Usage(images=cost))
    assert limit <= allowance.spent.images < limit + cost
    assert allowance.reached == "images"


def test_one_in_flight_may_be_begun_again_and_counts_once() -> None:
    """As when a worker of a cluster dies over it."""
    allowance = Allowance(Limits(Budget(images=4)))
    allowance.begin(0)
    allowance.done(0, Usage(images=2))
    assert [allowance.begin(1), allowance.begin(1), allowance.begin(1)] == ["go", "go", "go"]
    assert allowance.begin(2) == "wait"
    allowance.done(1, Usage(images=1))
    allowance.done(1, Usage(images=1))
    assert allowance.spent.images == 3


def test_what_was_spent_before_counts() -> None:
    allowance = Allowance(Limits(Budget(tokens=100)), Usage(prompt_tokens=100), Usage(prompt_tokens=10))
    assert allowance.begin(0) == "stop"
    assert allowance.reached == "tokens"


def test_hours_end_a_run() -> None:
    now = [0.0]
    allowance = Allowance(Limits(hours=1), clock=lambda: now[0])
    assert allowance.begin(0) == "go"
    now[0] = 3601
    assert allowance.begin(1) == "stop"
    assert allowance.reached == "hours"


def test_the_interval_holds_what_it_says() -> None:
    """Of many runs of skewed costs, about 95 in a hundred cost what the sample's interval said."""
    rng = random.Random(1)
    hits, runs = 0, 400
    for _ in range(runs):
        costs = [min(5, 1 + int(rng.expovariate(1.1))) for _ in range(600)]
        told = estimate(rng.sample(costs, 50), 600)
        hits += told.low <= sum(costs) <= told.high
    assert 0.91 <= hits / runs <= 0.985


def test_a_sample_of_everything_is_certain() -> None:
    assert estimate([1.0, 2.0, 3.0, 4.0, 5.0], 5) == Estimate(15.0, 15.0, 15.0)


def test_the_interval_of_a_small_sample_is_students() -> None:
    """Against the formula with the tabled t of 9 degrees of freedom, 2.262."""
    sample = [float(x) for x in (1, 2, 2, 3, 1, 4, 2, 5, 1, 3)]
    told = estimate(sample, 110)
    margin = 2.262 * statistics.stdev(sample) * math.sqrt(100 * (1 + 100 / 10))
    assert told.high - told.expected == pytest.approx(margin, rel=2e-3)


def test_a_forecast_needs_five_results() -> None:
    row = {"usage": Usage(images=1).model_dump(), "seconds": 1.0, "at": "2026-01-01"}
    told = forecast([row] * 6, 3600, 2, Prices(image=0.5))
    assert told["images"].expected == 3600
    assert told["cost"].expected == 1800
    assert told["hours"].expected == pytest.approx(0.5)
    with pytest.raises(InputError, match="needs 5"):
        forecast([row] * 4, 10, 2, Prices())
