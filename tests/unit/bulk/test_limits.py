"""Limits for a whole batch, prices, and the forecast of a dry run."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from gems.bulk.limits import Allowance, Estimate, Limits, estimate, forecast
from gems.errors import InputError
from gems.graph.state import Budget, Prices, Usage


def test_cost_follows_the_prices() -> None:
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
def test_a_limit_is_exceeded_by_less_than_one_prompt(limit: int, cost: int) -> None:
    """This holds for any number of prompts in flight."""
    allowance, in_flight, next_index = Allowance(Limits(Budget(images=limit))), list[int](), 0
    rng = random.Random(limit)
    while allowance.limit_reached is None:
        # No cost is known before the first prompt has finished, so it runs alone.
        concurrency = 64 if allowance.usage.images else 1
        decision = allowance.begin(next_index) if len(in_flight) < concurrency else "wait"
        if decision == "go":
            in_flight.append(next_index)
            next_index += 1
        elif decision == "wait":
            allowance.finish(in_flight.pop(rng.randrange(len(in_flight))), Usage(images=cost))
    while in_flight:
        allowance.finish(in_flight.pop(), Usage(images=cost))
    assert limit <= allowance.usage.images < limit + cost
    assert allowance.limit_reached == "images"


def test_a_prompt_in_flight_may_begin_again_and_counts_once() -> None:
    """This happens when a worker of a cluster dies."""
    allowance = Allowance(Limits(Budget(images=4)))
    allowance.begin(0)
    allowance.finish(0, Usage(images=2))
    assert [allowance.begin(1), allowance.begin(1), allowance.begin(1)] == ["go", "go", "go"]
    assert allowance.begin(2) == "wait"
    allowance.finish(1, Usage(images=1))
    allowance.finish(1, Usage(images=1))
    assert allowance.usage.images == 3


def test_earlier_usage_counts() -> None:
    allowance = Allowance(Limits(Budget(tokens=100)), Usage(prompt_tokens=100), Usage(prompt_tokens=10))
    assert allowance.begin(0) == "stop"
    assert allowance.limit_reached == "tokens"


def test_hours_end_a_batch() -> None:
    now = [0.0]
    allowance = Allowance(Limits(hours=1), clock=lambda: now[0])
    assert allowance.begin(0) == "go"
    now[0] = 3601
    assert allowance.begin(1) == "stop"
    assert allowance.limit_reached == "hours"


def test_the_interval_covers_95_percent() -> None:
    """The costs are skewed; the interval comes from a sample of 50 prompts of 600."""
    rng = random.Random(1)
    hits, batches = 0, 400
    for _ in range(batches):
        costs = [min(5, 1 + int(rng.expovariate(1.1))) for _ in range(600)]
        interval = estimate(rng.sample(costs, 50), 600)
        hits += interval.low <= sum(costs) <= interval.high
    assert 0.91 <= hits / batches <= 0.985


def test_a_sample_of_all_prompts_is_certain() -> None:
    assert estimate([1.0, 2.0, 3.0, 4.0, 5.0], 5) == Estimate(15.0, 15.0, 15.0)


def test_the_interval_of_a_small_sample_is_students() -> None:
    """The tabulated t for 9 degrees of freedom is 2.262."""
    sample = [float(x) for x in (1, 2, 2, 3, 1, 4, 2, 5, 1, 3)]
    interval = estimate(sample, 110)
    margin = 2.262 * statistics.stdev(sample) * math.sqrt(100 * (1 + 100 / 10))
    assert interval.high - interval.expected == pytest.approx(margin, rel=2e-3)


def test_a_forecast_needs_five_results() -> None:
    row = {"usage": Usage(images=1).model_dump(), "seconds": 1.0, "at": "2026-01-01"}
    estimates = forecast([row] * 6, 3600, 2, Prices(image=0.5))
    assert estimates["images"].expected == 3600
    assert estimates["cost"].expected == 1800
    assert estimates["hours"].expected == pytest.approx(0.5)
    with pytest.raises(InputError, match="needs 5"):
        forecast([row] * 4, 10, 2, Prices())
