"""The ledger: each run once, each user's own runs, and the rest of the daily budget."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsState, Usage
from gems.runs.record import ModelRecord, run_record
from gems.serve.keys import Client, DayLimits
from gems.serve.ledger import Ledger, Run
from gems.serve.quotas import max_usage, remaining_budget
from gems.serve.refusals import SpentError
from gems.serve.settings import AcceptedSettings, RunSettings


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "serve" / "runs.sqlite")
    yield ledger
    ledger.close()


def accept(ledger: Ledger, user: str = "ann", key: str | None = None, **reserved: int) -> Run:
    settings = AcceptedSettings(requested=RunSettings.model_validate({"seed": 3}), budget=Budget(images=2))
    return ledger.accept(user, "", "two cats", settings, reserved, key)


def test_an_accepted_run_is_kept_as_it_was(ledger: Ledger, tmp_path: Path) -> None:
    run = accept(ledger)
    assert (run.status, run.thread, run.prompt) == ("queued", run.id, "two cats")
    reopened = Ledger(tmp_path / "serve" / "runs.sqlite")
    assert reopened.get("ann", run.id) == run
    assert run.settings.requested.model_dump(exclude_none=True) == {"seed": 3}
    assert run.settings.budget == Budget(images=2)
    assert reopened.get("bob", run.id) is None
    reopened.close()


def test_a_record_is_read_back_typed_and_left_out_of_pages(ledger: Ledger) -> None:
    run = accept(ledger)
    models = {"generator": ModelRecord("pocket", "f" * 64)}
    values = GemsState(prompt="two cats", outcome="solved", usage=Usage(images=2, prompt_tokens=7))
    record = run_record(values, GemsContext(), models, run.id, datetime.now(UTC))
    ledger.begin(run.id)
    ledger.end(run.id, "done", record=record, usage=record.usage)
    assert ledger.run(run.id).record == record
    assert ledger.run(run.id).has_ended
    assert [entry.record for entry in ledger.page("ann", before=None, limit=5)] == [None]


def test_a_run_waits_for_one_answer(ledger: Ledger) -> None:
    run = accept(ledger)
    ledger.begin(run.id)
    ledger.ask(run.id, {"question": "right?"})
    assert ledger.run(run.id).review == {"question": "right?"}
    assert ledger.unfinished() == []
    assert ledger.answer(run.id, {"action": "accept"})
    assert not ledger.answer(run.id, {"action": "reject"})
    assert ledger.run(run.id).answer == {"action": "accept"}
    assert ledger.unfinished() == [run.id]


def test_only_a_run_that_has_not_begun_is_cancelled_in_the_queue(ledger: Ledger) -> None:
    first, second = accept(ledger, images=2), accept(ledger, images=2)
    ledger.begin(first.id)
    assert not ledger.cancel_queued(first.id)
    ledger.park(first.id)
    assert not ledger.cancel_queued(first.id)
    assert ledger.cancel_queued(second.id)
    assert ledger.used_today("ann")["images"] == 2, "the reservation of the second run is released"
    assert ledger.unfinished() == [first.id]


def test_runs_are_found_by_key_and_thread(ledger: Ledger) -> None:
    run = accept(ledger, key="k")
    assert ledger.by_key("ann", "k") == run
    assert ledger.by_key("bob", "k") is None
    assert ledger.latest_of("ann", run.thread) == run
    assert ledger.latest_of("bob", run.thread) is None


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "serve").write_text("a file")
    with pytest.raises(InputError, match="cannot store runs"):
        Ledger(tmp_path / "serve" / "runs.sqlite")


# --- daily budget -----------------------------------------------------------------------------------------------------


def end(ledger: Ledger, run: Run, **usage: Any) -> None:
    ledger.begin(run.id)
    ledger.end(run.id, "done", usage=Usage(**usage))


def test_what_runs_used_and_reserve_lowers_the_budget(ledger: Ledger) -> None:
    ann = Client("ann", DayLimits(images=10, chat_calls=40))
    assert remaining_budget(ledger, ann, Budget(tokens=500)) == Budget(images=10, chat_calls=40, tokens=500)
    end(ledger, accept(ledger, images=9, chat_calls=9), images=3, chat_calls=6)
    accept(ledger, images=2, chat_calls=9)
    end(ledger, accept(ledger, user="bob"), images=10)
    budget = remaining_budget(ledger, ann, Budget(images=4))
    assert (budget.images, budget.chat_calls) == (4, 25)
    assert remaining_budget(ledger, ann, Budget(images=9)).images == 5


@pytest.mark.parametrize(
    ("limits", "usage", "message"),
    [
        ({"images": 3}, {"images": 3}, "3 images of the day"),
        ({"chat_calls": 9}, {"chat_calls": 6}, "9 chat calls of the day"),
        ({"tokens": 20}, {"prompt_tokens": 15, "completion_tokens": 5}, "20 tokens of the day"),
    ],
)
def test_a_key_that_reached_its_daily_limit_is_refused_until_midnight(
    ledger: Ledger, limits: dict[str, int], usage: dict[str, int], message: str
) -> None:
    end(ledger, accept(ledger), **usage)
    with pytest.raises(SpentError, match=message) as caught:
        remaining_budget(ledger, Client("ann", DayLimits(**limits)), Budget())
    assert 0 < caught.value.retry_after <= 86_400


def test_what_a_run_may_use_at_most() -> None:
    context = GemsContext(max_rounds=3, candidates=2)
    assert max_usage(context) == {"images": 6, "chat_calls": 17}
    budget = Budget(images=1, chat_calls=4)
    assert max_usage(context.model_copy(update={"budget": budget})) == {"images": 1, "chat_calls": 4}
