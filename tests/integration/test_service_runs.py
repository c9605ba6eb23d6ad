"""The service's runs in this process: faults, cancels, limits of a day, whole requests and deletion."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from servers.waiting import wait_until

from gems.errors import BackendError, InputError
from gems.graph.context import GemsContext
from gems.graph.state import Budget, Prices
from gems.serve.admission import Submission
from gems.serve.deletion import Deletion
from gems.serve.keys import Client, DayLimits
from gems.serve.ledger import Run
from gems.serve.refusals import BusyError, ConflictError, RefusedError, SpentError
from gems.serve.service import Service
from gems.serve.settings import RunSettings, ServiceSettings

EASY, HARD = "two red cars", "seven wooden koalas chasing a sparkling giraffe"


@contextmanager
def service(home: Path, *, memory: bool = False, budget: Budget | None = None, **options: Any) -> Iterator[Service]:
    context = GemsContext(memory=memory, memory_url=str(home / "memory"), budget=budget or Budget())
    with Service(ServiceSettings(home=home, context=context, **options)) as running:
        yield running


def test_two_services_never_work_on_the_same_runs(tmp_path: Path) -> None:
    """Each of them would draw and pay for all: a second one is refused as long as the first one lives."""
    with service(tmp_path):
        with pytest.raises(InputError, match="another service works in"), service(tmp_path):
            pass
        with service(tmp_path / "other"):
            pass
    with service(tmp_path) as again:
        assert ended(again, again.submit(client(), EASY, settings())).status == "done"


def client(name: str = "ann", **daily: float) -> Client:
    return Client(name, DayLimits.model_validate(daily))


def settings(**values: Any) -> Any:
    return RunSettings.model_validate({"seed": 3, **values})


def ended(running: Service, run: Run, seconds: float = 60) -> Run:
    def run_if_ended() -> Run | None:
        current = running.ledger.run(run.id)
        return current if current.has_ended else None

    return wait_until(run_if_ended, lambda: running.ledger.run(run.id), seconds=seconds)


def image_files(home: Path, user: str = "ann") -> list[Path]:
    return sorted((home / "images" / user).rglob("*.png"))


@contextmanager
def unusable_checkpoints(home: Path) -> Iterator[None]:
    """A fault that passes: for the duration of the block, every use of the checkpoint file fails."""
    with closing(sqlite3.connect(home / "checkpoints.sqlite")) as db:
        db.execute("ALTER TABLE checkpoints RENAME TO hidden")
        try:
            yield
        finally:
            db.execute("ALTER TABLE hidden RENAME TO checkpoints")


# --- faults and cancels -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_survives_a_fault_that_passes(tmp_path: Path) -> None:
    with service(tmp_path, concurrency=1) as running:
        with unusable_checkpoints(tmp_path):
            run = running.submit(client(), EASY, settings())
            begun = wait_until(lambda: running.ledger.run(run.id).started_at, lambda: "it has not begun")
            assert begun
            wait_until(lambda: running.load == (0, 1), lambda: running.load)
            assert running.ledger.run(run.id).status == "queued", "it is not running"
        assert ended(running, run).status == "done"
        used = running.ledger.used_today("ann")
    assert used.settled["images"] == len(image_files(tmp_path))
    assert used.reserved["images"] == 0


def test_a_run_whose_checkpoints_stay_unusable_fails_and_frees_its_reservation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gems.serve.workers._MAX_TRIES", 2)
    with service(tmp_path, concurrency=1) as running, unusable_checkpoints(tmp_path):
        run = ended(running, running.submit(client(), EASY, settings()))
        assert (run.status, run.error_kind) == ("failed", "backend")
        assert "no such table" in str(run.error)
        assert running.ledger.used_today("ann").reserved["images"] == 0
        running.delete(run)
        assert running.ledger.page("ann", before=None, limit=9) == []


@pytest.mark.slow
@pytest.mark.parametrize("restarted", [False, True])
def test_a_cancel_during_a_fault_is_kept(tmp_path: Path, *, restarted: bool) -> None:
    with service(tmp_path, concurrency=1) as running:
        with unusable_checkpoints(tmp_path):
            run = running.submit(client(), EASY, settings())
            wait_until(lambda: running.ledger.run(run.id).started_at, lambda: "it has not begun")
            wait_until(lambda: running.load == (0, 1), lambda: running.load)
            running.cancel(running.ledger.run(run.id))
            if restarted:
                running.stop(0)
        if not restarted:
            assert ended(running, run).status == "cancelled"
    with service(tmp_path) as running:
        assert ended(running, run).status == "cancelled"
        assert running.ledger.used_today("ann").reserved["images"] == 0
    assert image_files(tmp_path) == []


def test_a_run_that_was_stopped_and_then_cancelled_keeps_its_images_and_makes_no_other(tmp_path: Path) -> None:
    with service(tmp_path, concurrency=1) as running:
        run = running.submit(client(), HARD, settings(max_rounds=9, patience=9))
        wait_until(lambda: image_files(tmp_path), lambda: "there is no image")
        running.stop(0)
        count = len(image_files(tmp_path))
        parked = running.ledger.run(run.id)
        assert (parked.status, parked.has_ended) == ("queued", False)
        cancelled = running.cancel(parked)
    assert cancelled.status == "cancelled"
    assert cancelled.record is not None
    assert len(cancelled.record.attempts) == count
    with service(tmp_path) as running:
        assert running.load == (0, 0)
    assert len(image_files(tmp_path)) == count


def test_a_killed_services_checkpoints_of_ended_runs_are_deleted_at_the_start(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        run = running.submit(client(), HARD, settings(max_rounds=9, patience=9))
        wait_until(lambda: image_files(tmp_path), lambda: "there is no image")
        running.stop(0)
        assert running.ledger.end(run.id, "done"), "the process is killed right after this"
    with service(tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "checkpoints.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM checkpoints").fetchone() == (0,)


# --- limits of a day --------------------------------------------------------------------------------------------------


def test_a_daily_limit_of_tokens_holds_when_runs_are_sent_at_once(tmp_path: Path) -> None:
    ann, refusals = client(tokens=400), list[str]()
    with service(tmp_path, concurrency=4) as running:
        barrier = threading.Barrier(8)

        def ask(n: int) -> Run | None:
            barrier.wait()
            try:
                return running.submit(ann, HARD, settings(seed=n))
            except SpentError as error:
                refusals.append(str(error))
                return None

        with ThreadPoolExecutor(8) as pool:
            runs = [run for run in pool.map(ask, range(8)) if run]
        assert len(runs) == 1, "the first one has reserved all tokens"
        record = ended(running, runs[0]).record
        assert record is not None
        used = running.ledger.used_today("ann")
    assert len(refusals) == 7
    assert "reserve the rest of this key's 400 tokens" in refusals[0]
    assert record.outcome == "budget"
    assert used.settled["tokens"] == record.usage.tokens
    with service(tmp_path) as running, pytest.raises(SpentError, match="has used its 400 tokens of the day"):
        running.submit(ann, EASY, settings())


@pytest.mark.parametrize("limits", [{"tokens": 400}, {"cost": 0.004}])
def test_budgets_smaller_than_a_call_do_not_multiply_what_a_day_allows(
    tmp_path: Path, limits: dict[str, float]
) -> None:
    """A run may exceed a tiny budget by what its first calls take, but no run begins on a day that is over."""
    ann, budget = client(**limits), Budget(prices=Prices(prompt=10, completion=10))
    [(name, limit)] = limits.items()
    with service(tmp_path, budget=budget, concurrency=2) as running:
        tiny = {"tokens": 1, "cost": 1e-6}
        runs = running.submit_all(ann, [Submission(HARD, settings(seed=n, budget=tiny)) for n in range(12)])
        ends = [ended(running, run) for run in runs]
        used = running.ledger.used_today("ann").settled
        failures = [end.error for end in ends if end.status == "failed"]
        costs = sorted(end.record.usage.tokens * (1 if name == "tokens" else 1e-5) for end in ends if end.record)
    assert limit <= used[name] <= limit + sum(costs[-2:])  # two runs at a time
    assert len(failures) == 12 - len(costs) >= 6
    assert all(f"this key has used its {limit:,}" in str(failure) for failure in failures)


def test_the_runs_of_one_request_share_the_last_images_of_the_day(tmp_path: Path) -> None:
    """The first of them may draw all that is left by itself."""
    ann = client(images=3)
    with service(tmp_path) as running:
        submissions = [Submission(HARD, settings(max_rounds=3, seed=n)) for n in range(2)]
        runs = running.submit_all(ann, submissions)
        images = [record.usage.images for run in runs if (record := ended(running, run).record)]
        assert len(images) == 2
        assert min(images) >= 1
        assert running.ledger.used_today("ann").settled["images"] == sum(images) <= 3


def test_a_daily_limit_of_money_holds_across_a_restart(tmp_path: Path) -> None:
    ann, budget = client(cost=0.25), Budget(prices=Prices(image=0.1))
    with service(tmp_path, budget=budget, concurrency=1) as running:
        first = running.submit(ann, HARD, settings(max_rounds=2, patience=9))
        running.stop(0)
    with service(tmp_path, budget=budget) as running:
        with pytest.raises(SpentError, match=r"0\.25 units of cost of the day"):
            running.submit(ann, HARD, settings())
        running.submit(client("bob", cost=0.25), EASY, settings(max_rounds=1))
        record = ended(running, first).record
        assert record is not None
        used = running.ledger.used_today("ann").settled["cost"]
    assert used == pytest.approx(0.1 * record.usage.images)
    assert used <= 0.25


def test_a_request_cannot_lower_the_prices(tmp_path: Path) -> None:
    ann, own = client(cost=0.25), Budget(prices=Prices(image=0.1))
    with service(tmp_path, budget=own) as running:
        cheap = settings(max_rounds=9, patience=9, budget={"prices": {"image": 1e-9}, "cost": 99})
        record = ended(running, running.submit(ann, HARD, cheap)).record
    assert record is not None
    assert record.usage.images <= 2


# --- whole requests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("daily", "options"), [({"images": 2}, {}), ({}, {"queue": 1})])
def test_a_request_for_several_runs_is_accepted_whole_or_not_at_all(
    tmp_path: Path, daily: dict[str, float], options: dict[str, Any]
) -> None:
    with service(tmp_path, concurrency=1, **options) as running:
        several = [Submission(HARD, settings(seed=n)) for n in range(3)]
        with pytest.raises(RefusedError) as caught:
            running.submit_all(client(**daily), several)
        assert isinstance(caught.value, SpentError if daily else BusyError)
        assert running.ledger.page("ann", before=None, limit=9) == []
        assert running.load == (0, 0)
        assert image_files(tmp_path) == []


def test_one_key_stands_for_one_request(tmp_path: Path) -> None:
    def send(*submissions: Submission, request: str = "") -> list[str]:
        return [r.id for r in running.submit_all(client(), submissions, idempotency_key="k", request=request)]

    with service(tmp_path, concurrency=1) as running:
        ids = send(Submission(EASY, settings()), Submission(EASY, settings(seed=4)))
        assert send(Submission(EASY, settings()), Submission(EASY, settings(seed=4))) == ids
        assert send(Submission(f"  {EASY} ", settings()), Submission(EASY, settings(seed=4))) == ids
        for other in (
            [Submission(EASY, settings())],
            [Submission(EASY, settings()), Submission(EASY, settings(seed=5))],
            [Submission(EASY, settings()), Submission(EASY, settings(seed=4), "thread")],
            [Submission(EASY, settings()), Submission(EASY, settings(seed=4)), Submission(EASY, settings(seed=6))],
        ):
            with pytest.raises(ConflictError, match="another request"):
                send(*other)
        with pytest.raises(ConflictError, match="another request"):
            send(Submission(EASY, settings()), Submission(EASY, settings(seed=4)), request='{"size": "64x64"}')
        assert len(running.ledger.page("ann", before=None, limit=9)) == 2


@pytest.mark.slow
def test_a_key_with_many_runs_does_not_hold_up_the_others(tmp_path: Path) -> None:
    with service(tmp_path, concurrency=1, queue=99, queue_per_key=20) as running:
        greedy = running.submit_all(client("greedy"), [Submission(HARD, settings(seed=n)) for n in range(20)])
        with pytest.raises(BusyError, match="of this key"):
            running.submit_all(client("greedy"), [Submission(HARD, settings())] * 5)
        others = [running.submit(client(name), EASY, settings(max_rounds=1)) for name in ("ann", "bob", "eve")]
        for run in others:
            ended(running, run)
        done = [run for run in greedy if running.ledger.run(run.id).has_ended]
        assert len(done) <= 5, "each of the others waits for about one run of the greedy key"


# --- deletion ---------------------------------------------------------------------------------------------------------


def test_a_deleted_run_takes_its_images_with_it_unless_another_run_has_them(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        first, second = (ended(running, running.submit(client(), EASY, settings())) for _ in range(2))
        other = ended(running, running.submit(client(), "four green dogs", settings(), idempotency_key="k"))
        assert first.record is not None
        assert other.record is not None
        shared_images = {attempt.image.sha256 for attempt in first.record.attempts}
        own_images = {attempt.image.sha256 for attempt in other.record.attempts}
        running.delete(first)
        assert {path.stem for path in image_files(tmp_path)} == shared_images | own_images
        running.delete(other)
        assert {path.stem for path in image_files(tmp_path)} == shared_images
        running.delete(second)
        assert image_files(tmp_path) == []
        assert running.ledger.page("ann", before=None, limit=9) == []
        assert running.ledger.used_today("ann").settled["images"] >= 3, "what it used stays charged"
        again = running.submit(client(), EASY, settings(), idempotency_key="k")
        assert again.id != other.id, "the key is free"


def test_a_deleted_run_takes_its_images_with_it_after_the_home_folder_has_moved(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    with service(old) as running:
        run = ended(running, running.submit(client(), EASY, settings()))
    assert image_files(old)
    old.rename(new)
    with service(new) as running:
        running.delete(running.ledger.run(run.id))
    assert image_files(new) == []


def test_whoever_waits_for_a_run_that_is_deleted_is_told(tmp_path: Path) -> None:
    with service(tmp_path, concurrency=1) as running:
        busy = running.submit(client(), HARD, settings(max_rounds=9, patience=9))
        first, second = running.submit_all(client(), [Submission(EASY, settings(seed=n)) for n in range(2)])
        running.cancel(running.ledger.run(second.id))
        running.delete(ended(running, second))
        running.cancel(running.ledger.run(busy.id))

        async def follow() -> list[Any]:
            return [event async for event in running.follow(second.id)]

        assert asyncio.run(follow()) == []
        with pytest.raises(ConflictError, match=f"{second.id} was deleted"):
            asyncio.run(running.wait(second.id))
        assert ended(running, first).status == "done"


def test_a_run_that_has_not_ended_is_not_deleted(tmp_path: Path) -> None:
    with service(tmp_path, concurrency=1) as running:
        runs = [running.submit(client(), HARD, settings(max_rounds=9, patience=9, seed=n)) for n in range(2)]
        for run in runs:
            with pytest.raises(ConflictError, match="cancel it first"):
                running.delete(running.ledger.run(run.id))
            running.cancel(running.ledger.run(run.id))
            running.delete(ended(running, run))
        assert image_files(tmp_path) == []


def test_images_that_memory_refers_to_stay(tmp_path: Path) -> None:
    with service(tmp_path, memory=True) as running:
        run = ended(running, running.submit(client(), EASY, settings()))
        count = len(image_files(tmp_path))
        running.delete(run)
        assert len(image_files(tmp_path)) == count > 0
        assert running.ledger.page("ann", before=None, limit=9) == []


def test_an_image_that_memory_begins_to_refer_to_during_a_deletion_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[set[str]] = []
    with service(tmp_path) as running:
        run = ended(running, running.submit(client(), EASY, settings()))
        assert run.record is not None
        images = {attempt.image.sha256 for attempt in run.record.attempts}

        def remembered(deletion: Deletion, user: str) -> set[str]:
            """The first look finds nothing; then another process, such as an import, stores a memory."""
            looks.append(images if looks else set())
            return looks[-1]

        monkeypatch.setattr(Deletion, "_remembered_hashes", remembered)
        running.delete(run)
        assert len(looks) == 1 + len(images)
        assert {path.stem for path in image_files(tmp_path)} == images


def test_images_of_a_run_that_waits_stay(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        run = ended(running, running.submit(client(), EASY, settings()))
        waiting = running.submit(client(), EASY, settings(review="end"))
        wait_until(lambda: running.ledger.run(waiting.id).status == "waiting", lambda: running.ledger.run(waiting.id))
        running.delete(run)
        assert image_files(tmp_path)
        running.cancel(running.ledger.run(waiting.id))
        record = ended(running, waiting).record
        assert record is not None
        assert running.images("ann").read(record.attempts[0].image)


@pytest.mark.slow
def test_an_image_that_a_run_in_progress_may_make_again_is_removed_when_that_run_has_ended(tmp_path: Path) -> None:
    with service(tmp_path, concurrency=1) as running:
        first = ended(running, running.submit(client(), HARD, settings(max_rounds=1)))
        again = running.submit(client(), HARD, settings(max_rounds=9, patience=9, seed=4))
        wait_until(lambda: running.ledger.run(again.id).status == "running", lambda: "it has not begun")
        running.delete(first)
        assert running.ledger.get("ann", first.id) is None
        assert running.images("ann").read(first.record.attempts[0].image, check_exists=True)  # type: ignore[union-attr]
        running.cancel(running.ledger.run(again.id))
        record = ended(running, again).record
        wait_until(lambda: _count(tmp_path) == 1, lambda: "the first one is still there", seconds=30)
        assert len(image_files(tmp_path)) == len(record.attempts if record else ())


def test_an_interrupted_deletion_is_completed_at_the_next_start(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        run = ended(running, running.submit(client(), EASY, settings()))
        with closing(
            sqlite3.connect(tmp_path / "runs.sqlite")
        ) as db:  # a process that was killed after it marked the run
            db.execute("UPDATE runs SET deleted_at = ?", (time.time(),))
            db.commit()
        assert running.ledger.get("ann", run.id) is None
        assert image_files(tmp_path)
    with service(tmp_path):
        wait_until(lambda: not image_files(tmp_path), lambda: image_files(tmp_path))
        wait_until(lambda: _count(tmp_path) == 0, lambda: "the row is still there")


def test_old_runs_are_deleted_at_the_start(tmp_path: Path) -> None:
    with service(tmp_path) as running:
        old, young = (ended(running, running.submit(client(), EASY, settings(seed=n))) for n in range(2))
        with closing(sqlite3.connect(tmp_path / "runs.sqlite")) as db:
            db.execute("UPDATE runs SET ended_at = ended_at - 3 * 86400 WHERE id = ?", (old.id,))
            db.commit()
    with service(tmp_path, keep_days=2) as running:
        wait_until(lambda: _count(tmp_path) == 1, lambda: "both are still there")
        assert young.record is not None
        assert running.images("ann").read(young.record.attempts[0].image, check_exists=True)
        assert old.record is not None
        with pytest.raises(BackendError):
            running.images("ann").read(old.record.attempts[0].image, check_exists=True)


def _count(home: Path) -> int:
    with closing(sqlite3.connect(home / "runs.sqlite")) as db:
        return int(db.execute("SELECT count(*) FROM runs").fetchone()[0])
