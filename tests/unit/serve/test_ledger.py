"""The ledger: each run once, each user's own runs, and the rest of the daily budget."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsState, ImageRef, Prices, Usage
from gems.runs.record import ModelRecord, run_record
from gems.serve.deleted_runs import DeletedRuns
from gems.serve.keys import Client, DayLimits
from gems.serve.ledger import DayUsage, Ledger, NewRun, Run
from gems.serve.quotas import max_usage, reserve
from gems.serve.refusals import SpentError
from gems.serve.settings import AcceptedSettings, RunSettings

FIGURES = ("images", "chat_calls", "tokens", "cost")
IMAGE = ImageRef(uri="file:///images/a.png", sha256="a" * 64, width=8, height=8)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "serve" / "runs.sqlite")
    yield ledger
    ledger.close()


def accept(ledger: Ledger, user: str = "ann", key: str | None = None, **reserved: float) -> Run:
    settings = AcceptedSettings(requested=RunSettings.model_validate({"seed": 3}), budget=Budget(images=2))
    [run] = ledger.accept([NewRun(user, "two cats", settings, reserved)], idempotency_key=key, request="hash")
    return run


def test_an_accepted_run_is_kept_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    run = accept(ledger)
    assert (run.status, run.thread, run.prompt) == ("queued", run.id, "two cats")
    reopened = Ledger(tmp_path / "serve" / "runs.sqlite")
    assert reopened.get("ann", run.id) == run
    assert run.settings.requested.model_dump(exclude_none=True) == {"seed": 3}
    assert run.settings.budget == Budget(images=2)
    assert reopened.get("bob", run.id) is None
    reopened.close()


def test_a_record_is_read_back_typed_and_without_its_attempts_in_pages(ledger: Ledger) -> None:
    run = accept(ledger)
    models = {"generator": ModelRecord("pocket", "f" * 64)}
    values = GemsState(prompt="two cats", outcome="solved", usage=Usage(images=2, prompt_tokens=7))
    record = run_record(values, GemsContext(), models, run.id, datetime.now(UTC)).model_copy(update={"score": 0.75})
    ledger.begin(run.id)
    ledger.end(run.id, "done", record=record, usage=record.usage)
    assert ledger.run(run.id).record == record
    assert ledger.run(run.id).has_ended
    waiting = accept(ledger)
    listed = [(e.id, e.record and e.record.usage, e.outcome, e.score) for e in ledger.page("ann", before=None, limit=5)]
    assert listed == [(waiting.id, None, None, 0.0), (run.id, record.usage, "solved", 0.75)]
    for text in ("{", '{"schema_version": 1}'):  # of a damaged file, or an older version
        ledger.file.update("UPDATE runs SET record = ? WHERE id = ?", (text, run.id))
        listed = [(e.id, e.record, e.outcome, e.score) for e in ledger.page("ann", before=None, limit=5)]
        assert listed == [(waiting.id, None, None, 0.0), (run.id, None, "solved", 0.75)]


def test_a_run_waits_for_one_answer(ledger: Ledger) -> None:
    run = accept(ledger)
    ledger.begin(run.id)
    ledger.ask(run.id, {"question": "right?"})
    assert ledger.run(run.id).review == {"question": "right?"}
    assert ledger.unfinished() == []
    assert ledger.answer(run.id, {"action": "accept"})
    assert not ledger.answer(run.id, {"action": "reject"})
    assert ledger.run(run.id).answer == {"action": "accept"}
    assert ledger.unfinished() == [("ann", run.id)]


def test_a_cancel_is_written_down_and_a_run_ends_once(ledger: Ledger) -> None:
    run = accept(ledger, images=2)
    assert not run.cancel_requested
    ledger.begin(run.id)
    ledger.request_cancel(run.id)
    ledger.park(run.id)
    assert ledger.run(run.id).cancel_requested
    assert ledger.end(run.id, "cancelled", usage=Usage(images=1))
    assert not ledger.end(run.id, "done", usage=Usage(images=2)), "it has ended"
    assert ledger.begin(run.id) is None
    assert ledger.run(run.id).status == "cancelled"
    assert ledger.used_today("ann") == DayUsage(
        {"images": 1, "chat_calls": 0, "tokens": 0, "cost": 0}, dict.fromkeys(FIGURES, 0.0), 0
    )


def test_runs_are_found_by_key_and_thread(ledger: Ledger) -> None:
    run = accept(ledger, key="k")
    assert ledger.by_key("ann", "k") == [run]
    assert ledger.by_key("bob", "k") == []
    assert ledger.by_key("ann", "k/0") == []
    assert ledger.latest_of("ann", run.thread) == run
    assert ledger.latest_of("bob", run.thread) is None


def test_the_runs_of_a_request_are_accepted_together_or_not_at_all(ledger: Ledger) -> None:
    settings = AcceptedSettings()
    runs = ledger.accept([NewRun("ann", f"{n} cats", settings, {}) for n in range(3)], idempotency_key="k")
    assert [run.prompt for run in ledger.by_key("ann", "k")] == ["0 cats", "1 cats", "2 cats"]
    half_possible = [NewRun("bob", "a dog", settings, {}), NewRun("ann", "a dog", settings, {})]
    with pytest.raises(sqlite3.IntegrityError):
        ledger.accept(half_possible, idempotency_key="k")
    assert ledger.page("bob", before=None, limit=9) == []
    assert len(ledger.page("ann", before=None, limit=9)) == len(runs)


def test_a_ledger_of_the_first_version_is_brought_up_to_date(tmp_path: Path) -> None:
    """What ended runs used today still counts, and their images are known."""
    ledger = Ledger(tmp_path / "runs.sqlite")
    run = accept(ledger)
    end(ledger, run, images=3)
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as db:
        attempts = [{"image": IMAGE.model_dump(mode="json")}]
        record = json.dumps({"outcome": "best_effort", "score": 0.5, "attempts": attempts})
        db.executescript("DROP TABLE spending; DROP TABLE images; ALTER TABLE runs DROP COLUMN request")
        for column in ("cost", "cancel_requested", "deleted_at", "outcome", "score"):
            db.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        db.execute("UPDATE runs SET record = ?", (record,))
        db.commit()
    ledger = Ledger(tmp_path / "runs.sqlite")
    assert ledger.used_today("ann").settled["images"] == 3
    assert DeletedRuns(ledger.file).own_images(run.id) == [IMAGE]
    [entry] = ledger.page("ann", before=None, limit=5)
    assert (entry.outcome, entry.score) == ("best_effort", 0.5)
    ledger.close()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "serve").write_text("a file")
    with pytest.raises(InputError, match="cannot store runs"):
        Ledger(tmp_path / "serve" / "runs.sqlite")


# --- deletion ---------------------------------------------------------------------------------------------------------


def test_a_deleted_run_is_seen_by_nobody_and_stays_charged(ledger: Ledger) -> None:
    runs, deleted = DeletedRuns(ledger.file), accept(ledger, key="k")
    runs.mark(deleted.id)
    assert ledger.get("ann", deleted.id) is not None, "it has not ended"
    end(ledger, deleted, images=2)
    runs.mark(deleted.id)
    for _ in range(2):  # before and after it is dropped
        assert ledger.get("ann", deleted.id) is None
        assert ledger.page("ann", before=None, limit=5) == []
        assert ledger.by_key("ann", "k") == []
        assert ledger.latest_of("ann", deleted.thread) is None
        assert ledger.used_today("ann").settled["images"] == 2
        runs.drop(deleted.id)
    assert runs.marked() == []


def test_an_image_belongs_to_all_runs_that_refer_to_it(ledger: Ledger) -> None:
    runs, (first, second, other) = DeletedRuns(ledger.file), [accept(ledger), accept(ledger), accept(ledger, "bob")]
    for run in (first, second, other):
        ledger.end(run.id, "done", images=[IMAGE])
    assert runs.own_images(first.id) == []
    runs.mark(second.id)
    runs.drop(second.id)
    assert runs.own_images(first.id) == [IMAGE], "another user's run has another file"


def test_only_runs_that_ended_long_ago_expire(ledger: Ledger) -> None:
    runs, old, current = DeletedRuns(ledger.file), accept(ledger), accept(ledger)
    end(ledger, old)
    runs.mark_older(time.time() - 60)
    assert runs.marked() == []
    runs.mark_older(time.time() + 60)
    assert runs.marked() == [("ann", old.id)]
    assert runs.unfinished_of("ann") == [current.id]


@pytest.mark.parametrize("ended", [0, 1])
def test_a_request_of_which_a_run_has_expired_is_no_answer_to_a_second_one(ledger: Ledger, ended: int) -> None:
    new = NewRun("ann", "a cat", AcceptedSettings(), {})
    runs = ledger.accept([new] * 3, idempotency_key="k", request="hash")
    other = ledger.accept([new], idempotency_key="kk", request="hash")
    end(ledger, runs[ended])
    DeletedRuns(ledger.file).mark_older(time.time() + 60)
    assert ledger.by_key("ann", "k") == [], "not a part of its runs"
    assert len(ledger.accept([new] * 3, idempotency_key="k", request="hash")) == 3
    assert ledger.by_key("ann", "kk") == other


# --- daily limits -----------------------------------------------------------------------------------------------------


def end(ledger: Ledger, run: Run, **usage: Any) -> None:
    ledger.begin(run.id)
    ledger.end(run.id, "done", usage=Usage(**usage))


def client(**daily: float) -> Client:
    return Client("ann", DayLimits.model_validate(daily))


def day(settled: dict[str, float], reserved: dict[str, float] | None = None) -> DayUsage:
    zeros = dict.fromkeys(FIGURES, 0.0)
    return DayUsage(zeros | settled, zeros | (reserved or {}), len(reserved or {}))


def test_what_runs_used_and_reserve_counts(ledger: Ledger) -> None:
    end(ledger, accept(ledger, images=9, chat_calls=9), images=3, chat_calls=6)
    accept(ledger, images=2, chat_calls=9, tokens=100, cost=0.5)
    end(ledger, accept(ledger, user="bob"), images=10)
    usage = ledger.used_today("ann")
    assert usage.settled == {"images": 3, "chat_calls": 6, "tokens": 0, "cost": 0}
    assert usage.reserved == {"images": 2, "chat_calls": 9, "tokens": 100, "cost": 0.5}
    assert usage.unfinished == 1


def test_a_run_reserves_what_bounds_it_and_gets_no_more() -> None:
    context = GemsContext(max_rounds=3, candidates=2, budget=Budget(tokens=500))
    budget, reserved = reserve(context, client(images=10, chat_calls=40), day({"images": 3}, {"images": 2}))
    assert reserved == {"images": 5, "chat_calls": 15, "tokens": 500, "cost": 0}
    assert (budget.images, budget.chat_calls, budget.tokens) == (5, 15, 500)
    free_budget, _ = reserve(context, client(), day({}))
    assert free_budget == Budget(tokens=500), "without limits of the day, nothing lowers the budget"


def test_a_run_without_a_bound_reserves_all_that_the_day_leaves() -> None:
    budget, reserved = reserve(GemsContext(), client(tokens=1000), day({"tokens": 300}, {"tokens": 100}))
    assert (budget.tokens, reserved["tokens"]) == (600, 600)
    with pytest.raises(SpentError, match=r"reserve the rest of this key's 1,000 tokens") as caught:
        reserve(GemsContext(), client(tokens=1000), day({"tokens": 300}, {"tokens": 700}))
    assert caught.value.retry_after < 100, "not until midnight: the reservation may be too large"


def test_runs_of_one_request_share_what_the_day_leaves() -> None:
    _, reserved = reserve(GemsContext(), client(tokens=1000, cost=1.0), day({}), share=4)
    assert reserved["tokens"] == 250


def test_a_request_with_too_little_left_for_all_its_runs_is_told_how_much_is_left() -> None:
    with pytest.raises(
        SpentError, match=r"^2 of this key's 20 images of the day are left, too few for all runs of this"
    ):
        reserve(GemsContext(), client(images=20), day({"images": 18}), share=3, even=True)
    context = GemsContext(budget=Budget(prices=Prices(image=9e6)))
    with pytest.raises(SpentError, match=r"^10,500,000\.5 of this key's 15,000,000\.0 units of cost"):
        reserve(context, client(cost=1.5e7), day({"cost": 4_499_999.5}), share=2, even=True)


@pytest.mark.parametrize(
    ("budget", "cost"),
    [
        (Budget(prices=Prices(image=0.04)), 5 * 0.04),
        (Budget(prices=Prices(image=0.04), images=2), 2 * 0.04),
        (Budget(prices=Prices(image=0.04, prompt=1.0, completion=10.0), tokens=1000), 5 * 0.04 + 1000 * 10 / 1e6),
        (Budget(prices=Prices(completion=10.0)), 3.0),
        (Budget(prices=Prices(completion=10.0), cost=0.5), 0.5),
    ],
)
def test_money_is_reserved_by_the_operators_prices(budget: Budget, cost: float) -> None:
    context = GemsContext(max_rounds=5, budget=budget)
    lowered, reserved = reserve(context, client(cost=10.0), day({"cost": 7.0}) if cost == 3 else day({}))
    assert reserved["cost"] == pytest.approx(cost)
    assert lowered.cost == pytest.approx(cost)


@pytest.mark.parametrize(
    ("limits", "usage", "message"),
    [
        ({"images": 3}, {"images": 3}, "^this key has used its 3 images of the day$"),
        ({"chat_calls": 9}, {"chat_calls": 9}, "^this key has used its 9 chat calls of the day$"),
        (
            {"chat_calls": 14},
            {"chat_calls": 11},
            "^this key has used 11 of its 14 chat calls of the day; the 3 that are left are too few .* at least 4$",
        ),
        ({"tokens": 20}, {"tokens": 23}, "^this key has used its 20 tokens of the day$"),
    ],
)
def test_a_key_that_reached_its_daily_limit_is_refused_until_midnight(
    limits: dict[str, float], usage: dict[str, float], message: str
) -> None:
    with pytest.raises(SpentError, match=message) as caught:
        reserve(GemsContext(), client(**limits), day(usage))
    assert 0 < caught.value.retry_after <= 86_400


def test_a_day_that_leaves_less_than_an_image_costs_is_spent() -> None:
    context = GemsContext(budget=Budget(prices=Prices(image=9.0)))
    assert reserve(GemsContext(), client(cost=10.0), day({"cost": 10.0}))[1]["cost"] == 0, "nothing has a price"
    says = r"^this key has used 7\.1 of its 10\.0 units of cost of the day; the 2\.9 that are left .* at least 9\.0$"
    with pytest.raises(SpentError, match=says):
        reserve(context, client(cost=10.0), day({"cost": 7.1}))


def test_what_a_run_may_use_at_most() -> None:
    context = GemsContext(max_rounds=3, candidates=2)
    assert max_usage(context) == {"images": 6, "chat_calls": 17, "tokens": None, "cost": 0}
    budget = Budget(images=1, chat_calls=4)
    lowered_usage = max_usage(context.model_copy(update={"budget": budget}))
    assert lowered_usage == {"images": 1, "chat_calls": 4, "tokens": None, "cost": 0}
