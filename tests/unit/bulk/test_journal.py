"""What a batch has begun is on disk, whatever happens to its process."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from gems.bulk.account import AccountStart
from gems.bulk.journal import Journal, PartialRun
from gems.bulk.limits import Limits, Share
from gems.errors import InputError
from gems.graph.state import Budget, Usage


def test_what_has_begun_and_not_ended_is_open(tmp_path: Path) -> None:
    path = tmp_path / "begun.jsonl"
    journal = Journal(path)
    for key in ("a", "b", "c"):
        journal.begin(key)
    run = PartialRun(key="b", run_id="r", usage=Usage(images=2))
    journal.end("b", run)
    journal.end("c", lost_images=3)
    for again in (journal, Journal(path)):
        assert (again.open, again.lost_images) == ({"a": 1}, 3)
    assert Journal(path).runs == {"r": run}
    again = Journal(path)
    again.compact(lambda _: True)
    assert (Journal(path).open, Journal(path).lost_images, Journal(path).runs) == ({"a": 1}, 3, {})


def test_half_a_line_at_the_end_is_no_entry_and_half_a_line_elsewhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "begun.jsonl"
    Journal(path).begin("a")
    path.write_bytes(path.read_bytes() + b'{"beg')
    assert Journal(path).open == {"a": 1}
    path.write_bytes(b'{"beg\n' + path.read_bytes())
    with pytest.raises(InputError, match=r"begun\.jsonl, line 1 cannot be read"):
        Journal(path)


def test_a_whole_last_line_counts_without_its_line_feed_and_another_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "begun.jsonl"
    Journal(path).begin("a")
    Journal(path).end("a", lost_images=3)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert (Journal(path).open, Journal(path).lost_images) == ({}, 3)
    path.write_bytes(path.read_bytes() + b'\n{"lost_images": -1}')
    with pytest.raises(InputError, match=r"begun\.jsonl, line 3 cannot be read"):
        Journal(path)


def test_nothing_is_written_behind_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "begun.jsonl"
    Journal(path).begin("a")
    path.write_bytes(path.read_bytes() + b'{"beg')
    journal = Journal(path)
    journal.compact(lambda _: False)
    journal.end("a", lost_images=1)
    assert (Journal(path).open, Journal(path).lost_images) == ({}, 1)


@pytest.mark.parametrize(
    "entry",
    [
        {"run": {"key": "a", "run_id": "r", "usage": {"prompt_tokens": 10**300}}},
        {"run": {"key": "a", "run_id": "r", "usage": {"extra_cost": -1e300}}},
        {"interrupted": {"chat_calls": 2**60}},
        {"lost_images": 10**300},
        {"lost_images": -1},
    ],
)
def test_figures_that_nobody_can_have_spent_are_named(entry: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "begun.jsonl"
    path.write_text(json.dumps(entry) + "\n")
    with pytest.raises(InputError, match=r"begun\.jsonl, line 1 cannot be read"):
        Journal(path)


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path: Path) -> None:
    """Prompts that end after the disk was full for a moment are written down behind a whole line."""
    path = tmp_path / "begun.jsonl"
    journal = Journal(path)
    journal.begin("a")
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            journal.begin("b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.end("a", lost_images=2)
    assert (Journal(path).open, Journal(path).lost_images) == ({}, 2)


def test_a_worker_that_dies_costs_the_images_that_it_had_asked_for(tmp_path: Path) -> None:
    limits = Limits(Budget(images=10))
    start = AccountStart(tmp_path / "begun.jsonl", limits, Usage(), Usage(), {"images": 4}, 2, concurrency=2)
    account = start.open()
    assert isinstance(account.begin("a", Usage()), Share)
    assert isinstance(account.begin("a", Usage()), Share)  # its worker has died, and another one takes over
    account.finish("a", PartialRun(key="a", run_id="r", usage=Usage(images=4)), None)
    assert (account.usage.images, account.lost_images) == (4, 2)
    assert isinstance(account.begin("b", Usage()), Share)
    assert account.begin("c", Usage()) == "wait"
    assert Journal(tmp_path / "begun.jsonl").open == {"b": 1}


def test_a_limit_holds_with_what_was_lost_with_a_worker(tmp_path: Path) -> None:
    """Two prompts share out all that is left; what one has lost with its worker comes out of its own share."""
    limits = Limits(Budget(images=6))
    start = AccountStart(tmp_path / "begun.jsonl", limits, Usage(), Usage(), {"images": 3}, 1, concurrency=2)
    account = start.open()
    for key in ("a", "b"):
        share = account.begin(key, Usage())
        assert isinstance(share, Share)
        assert share.more["images"] == 3
    # The first image is in its checkpoint, the second one was asked for when the worker died.
    assert account.begin("a", Usage(images=1)) == "wait"
    assert account.begin("a", Usage(images=1)) == "wait"
    assert (account.usage.images, account.lost_images) == (1, 1)
    # If it does not begin again, the next start counts it, as one that was killed.
    assert Journal(tmp_path / "begun.jsonl").open == {"a": 1, "b": 1}
    assert Journal(tmp_path / "begun.jsonl").lost_images == 0
    account.finish("b", PartialRun(key="b", run_id="s", usage=Usage(images=3)), None)
    share = account.begin("a", Usage(images=1))
    assert isinstance(share, Share)
    assert (share.before.images, share.more["images"]) == (1, 1)
    account.finish("a", PartialRun(key="a", run_id="r", usage=Usage(images=2)), None)
    assert (account.usage.images, account.lost_images) == (5, 1)
    assert account.begin("c", Usage()) == "stop"
    assert Journal(tmp_path / "begun.jsonl").open == {}
    assert Journal(tmp_path / "begun.jsonl").lost_images == 1


def test_images_that_a_worker_had_asked_for_again_are_lost_with_it(tmp_path: Path) -> None:
    path = tmp_path / "begun.jsonl"
    account = AccountStart(path, Limits(Budget(images=20)), Usage(), Usage(), {"images": 8}, 2, concurrency=2).open()
    assert isinstance(account.begin("a", Usage()), Share)
    account.ask("a", 6)  # of which the first two are in its checkpoint
    account.ask("a", 5)  # which another thread has begun to write earlier
    again = Journal(path)
    again.compact(lambda _: True)
    assert Journal(path).lost_with("a", 2, Usage(images=2)) == 4
    assert isinstance(account.begin("a", Usage(images=2)), Share)
    assert (account.usage.images, account.lost_images) == (2, 4)
    # Its next worker has asked for nothing twice.
    assert Journal(path).open == {"a": 1}
    assert Journal(path).lost_with("a", 2, Usage(images=2)) == 2
    account.finish("a", PartialRun(key="a", run_id="r", usage=Usage(images=8)), None)
    assert (account.usage.images, account.lost_images, Journal(path).open) == (8, 4, {})


def test_what_stops_have_interrupted_is_paid_and_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "begun.jsonl"
    start = AccountStart(path, Limits(Budget(tokens=900)), Usage(), Usage(), {}, 1, concurrency=1)
    spent, interrupted = Usage(chat_calls=1, prompt_tokens=100), Usage(chat_calls=2, prompt_tokens=200)
    for stops in (1, 2):
        account = start.open()
        assert isinstance(account.begin("a", Usage()), Share)
        account.finish("a", PartialRun(key="a", run_id="r", usage=spent, interrupted=interrupted), None)
        assert (account.usage.chat_calls, account.usage.tokens) == (3, 300)
        again = Journal(path)
        assert again.interrupted.chat_calls == 2 * stops
        assert again.runs == {"r": PartialRun(key="a", run_id="r", usage=spent)}
        again.compact(lambda _: True)
        assert Journal(path).interrupted.tokens == 200 * stops
