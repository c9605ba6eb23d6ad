"""Limits for a whole batch, prices, and the forecast of a dry run."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import pytest

from gems.bulk.limits import Allowance, Estimate, Limits, Share, estimate, forecast, most_of_a_run
from gems.errors import InputError
from gems.graph.context import GemsContext
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
    assert budget.exhausted(Usage(images=2), images=1) == "cost"
    assert budget.exhausted(Usage(images=2), chat_calls=2) is None, "calls that cost nothing judge the last image"
    paid_calls = Budget(cost=0.10, prices=Prices(image=0.05, prompt=1))
    assert paid_calls.exhausted(Usage(images=2), chat_calls=2) == "cost"


def spend(
    allowance: Allowance, figure: str, costs: Callable[[], int], *, concurrency: int, prices: Prices | None = None
) -> tuple[int, int]:
    """Let prompts begin, spend at most their share and finish, until none may begin.

    Returns:
        What all have spent, and the most that were in flight.
    """
    in_flight: dict[str, Share] = {}
    rng, total, begun, most_in_flight = random.Random(1), 0, 0, 0
    own = Budget(prices=prices or Prices())

    def finish(key: str) -> int:
        share = in_flight.pop(key)
        used = min(costs(), getattr(share.budget(own), figure))
        allowance.finish(key, Usage(**{figure: used}))
        return used

    while allowance.limit_reached is None:
        share = allowance.begin(str(begun)) if len(in_flight) < concurrency else "wait"
        if isinstance(share, Share):
            in_flight[str(begun)] = share
            begun += 1
            most_in_flight = max(most_in_flight, len(in_flight))
        elif share == "wait":
            total += finish(rng.choice(list(in_flight)))
    return total + sum(map(finish, list(in_flight))), most_in_flight


@pytest.mark.parametrize("concurrency", [1, 3, 64])
@pytest.mark.parametrize(("limit", "most"), [(100, 3), (97, 3), (10, 1), (1, 5), (3, 5), (151, 5)])
def test_images_never_exceed_a_limit(limit: int, most: int, concurrency: int) -> None:
    """This holds from the first prompt on, and for any number of prompts in flight."""
    rng = random.Random(limit)
    allowance = Allowance(Limits(Budget(images=limit)), most={"images": most}, concurrency=concurrency)
    total, _ = spend(allowance, "images", lambda: rng.randint(1, most), concurrency=concurrency)
    assert total == allowance.usage.images == limit
    assert allowance.limit_reached == "images"


@pytest.mark.parametrize("concurrency", [1, 3, 64])
def test_calls_that_nothing_bounds_never_exceed_a_limit(concurrency: int) -> None:
    rng = random.Random(concurrency)
    most = most_of_a_run(GemsContext())
    allowance = Allowance(Limits(Budget(chat_calls=500)), most=most, concurrency=concurrency)
    total, _ = spend(allowance, "chat_calls", lambda: rng.randint(3, 40), concurrency=concurrency)
    assert 498 <= total <= 500


def test_far_from_a_limit_no_prompt_waits() -> None:
    allowance = Allowance(Limits(Budget(images=10_000)), most={"images": 5}, concurrency=64)
    _, in_flight = spend(allowance, "images", lambda: 5, concurrency=64)
    assert in_flight == 64


def test_few_calls_go_to_as_many_prompts_as_get_somewhere_with_them() -> None:
    """A share below one call each would be exceeded; one below a first round would do without the plan."""
    allowance = Allowance(Limits(Budget(chat_calls=7)), most={"images": 5}, concurrency=8)
    share = allowance.begin("a")
    assert isinstance(share, Share)
    assert share.more == {"chat_calls": 7}
    assert allowance.begin("b") == "wait"


def test_a_share_pays_for_the_images_that_a_prompt_may_draw() -> None:
    """Tokens bound no share of the money: an equal part of it may be less than an image costs."""
    prices = Prices(image=0.01, prompt=10, completion=50)
    allowance = Allowance(Limits(Budget(cost=0.1, prices=prices)), most={"images": 5}, concurrency=32)
    share = allowance.begin("a")
    assert isinstance(share, Share)
    assert share.more["cost"] >= 5 * 0.01


@pytest.mark.parametrize("figure", ["chat_calls", "tokens", "cost"])
def test_a_prompt_that_a_share_was_too_small_for_gets_more_each_time(figure: str) -> None:
    """It spends nothing with too small a share: the same share would be too small for ever."""
    budget = Budget(prices=Prices(prompt=1.0, completion=1.0), **{figure: 4096})
    allowance = Allowance(Limits(budget), most={"images": 1}, concurrency=1024)
    begun = [allowance.begin(key) for key in "ab"]
    assert all(isinstance(share, Share) for share in begun)
    for _ in range(12):
        allowance.finish("a", Usage(), is_over=False)
        if allowance.begin("a") == "wait":
            break
    allowance.finish("b", Usage())
    share = allowance.begin("a")
    assert isinstance(share, Share)
    assert share.more == {figure: 4096}


def test_a_run_costs_at_most_what_its_settings_allow() -> None:
    prices = Prices(image=0.5)
    context = GemsContext(max_rounds=4, candidates=3, budget=Budget(prices=prices))
    assert most_of_a_run(context) == {"images": 12, "cost": 6.0}
    budget = Budget(images=5, cost=2.0, prices=prices)
    assert most_of_a_run(context.model_copy(update={"budget": budget})) == {"images": 5, "cost": 2.0}
    tokens = Budget(prices=Prices(image=0.5, prompt=1.0, completion=10.0))
    assert most_of_a_run(context.model_copy(update={"budget": tokens})) == {"images": 12}
    bounded = tokens.model_copy(update={"tokens": 1_000_000})
    assert most_of_a_run(context.model_copy(update={"budget": bounded})) == {
        "images": 12,
        "tokens": 1_000_000,
        "cost": 16.0,
    }


def test_a_share_narrows_a_budget_and_says_that_it_did() -> None:
    share = Share(Usage(images=2), {"images": 3})
    assert share.budget(Budget()).images == 5
    assert share.budget(Budget(images=4)).images == 4
    assert share.cuts_short(Budget(), Usage(images=5)) == "images"
    assert share.cuts_short(Budget(images=5), Usage(images=5)) is None  # its own budget has ended it
    assert share.cuts_short(Budget(), Usage(images=4)) is None


def test_a_prompt_in_flight_may_begin_again_and_counts_once() -> None:
    """This happens when a worker of a cluster dies."""
    allowance = Allowance(Limits(Budget(images=4)), most={"images": 3})
    share = allowance.begin("a")
    assert allowance.begin("a") == share
    assert allowance.begin("b") == "wait"
    allowance.finish("a", Usage(images=1))
    allowance.finish("a", Usage(images=1))
    assert allowance.usage.images == 1
    assert isinstance(allowance.begin("b"), Share)


def test_a_prompt_that_goes_on_counts_what_it_adds() -> None:
    allowance = Allowance(Limits(Budget(images=6)), Usage(images=4), most={"images": 5})
    share = allowance.begin("a", Usage(images=3))
    assert isinstance(share, Share)
    assert share.budget(Budget()).images == 5
    allowance.finish("a", Usage(images=5), is_over=False)
    assert (allowance.usage.images, allowance.begin("a", Usage(images=5))) == (6, "stop")


def test_earlier_usage_counts() -> None:
    allowance = Allowance(Limits(Budget(tokens=100)), Usage(prompt_tokens=100), Usage(prompt_tokens=10))
    assert allowance.begin("a") == "stop"
    assert allowance.limit_reached == "tokens"


def test_images_that_may_have_been_paid_for_count() -> None:
    allowance = Allowance(Limits(Budget(images=2)), most={"images": 1})
    allowance.lose(2)
    assert allowance.begin("a") == "stop"


def test_hours_end_a_batch() -> None:
    now = [0.0]
    allowance = Allowance(Limits(hours=1), clock=lambda: now[0])
    assert isinstance(allowance.begin("a"), Share)
    now[0] = 3601
    assert allowance.begin("b") == "stop"
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
