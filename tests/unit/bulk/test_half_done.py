"""What a killed prompt has spent is counted once, at whatever moment it was killed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import light_models
import pytest
from fakes import PaintGenerator
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Overwrite

from gems.bulk.account import AccountStart
from gems.bulk.batch import Worker, run_within
from gems.bulk.half_done import HalfDone
from gems.bulk.jobs import Job
from gems.bulk.journal import Journal
from gems.bulk.limits import Limits
from gems.bulk.results import Claim
from gems.errors import BackendError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import Budget, GemsInput, Usage
from gems.memory.image_store import ImageStore
from gems.models.generators import ASKS, ImageRequest, StepCallback
from gems.nodes.retry import RETRY


@pytest.mark.parametrize(
    ("next_steps", "ended", "written", "more"),
    [
        (["decomposer", "retrieve_memory"], "decomposer", Usage(chat_calls=1, prompt_tokens=70), Usage(chat_calls=1)),
        (["generator"], "generator", Usage(images=2), Usage(images=2)),
        (["intake"], "intake", Overwrite(Usage()), Usage()),
    ],
)
def test_a_step_that_has_ended_before_a_kill_counts_once(
    next_steps: list[str], ended: str, written: Usage | Overwrite, more: Usage
) -> None:
    """What the step has written is on disk, and no checkpoint has it yet, since another step was killed beside it."""
    saver = InMemorySaver()
    graph = build_graph(checkpointer=saver)
    half_done = HalfDone(graph, "batch", 1)
    config: RunnableConfig = {"configurable": {"thread_id": half_done.thread("key")}}
    context = GemsContext(memory=False, plan="retrieve_memory" in next_steps, seed=1)
    graph.invoke(GemsInput(prompt="a red car"), config, context=context, interrupt_before=next_steps)
    before = half_done.state("key")
    tasks = {task.name: task.id for task in before.tasks}
    assert sorted(tasks) == next_steps
    saver.put_writes(before.config, [("usage", written), ("run_id", "r")], tasks[ended])
    run = half_done.spent("key")
    assert run is not None
    spent = run.usage.since(before.values["usage"])
    assert (spent.images, spent.chat_calls) == (more.images, more.chat_calls)


@pytest.mark.parametrize(("channel", "lost_images"), [(None, 2), ("__error__", 2), ("usage", 0)])
def test_the_images_of_a_step_that_was_killed_may_be_lost_until_a_checkpoint_counts_them(
    channel: str | None, lost_images: int, tmp_path: Path
) -> None:
    saver, journal = InMemorySaver(), Journal(tmp_path / "begun.jsonl")
    half_done = HalfDone(build_graph(checkpointer=saver), "batch", 2)
    config: RunnableConfig = {"configurable": {"thread_id": half_done.thread("key")}}
    context = GemsContext(memory=False, plan=False, seed=1, candidates=2)
    journal.begin("key")
    half_done.graph.invoke(GemsInput(prompt="a red car"), config, context=context, interrupt_before=["generator"])
    [task], before = half_done.state("key").tasks, half_done.state("key")
    if channel:
        written = Usage(images=2) if channel == "usage" else "BackendError('no answer, three times')"
        saver.put_writes(before.config, [(channel, written)], task.id)
    [killed] = half_done.killed(journal)
    assert killed.lost_images == lost_images


class _GoneAtImages(InMemorySaver):
    """A database that has gone when the first images are to be written down, and is back afterwards."""

    state = "there"

    def put_writes(self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], *place: Any) -> None:
        if self.state == "there" and any(name == "branch:to:verifier" for name, _ in writes):
            self.state = "gone"
        self._fail_if_gone()
        super().put_writes(config, writes, *place)

    def put(self, *checkpoint: Any) -> RunnableConfig:
        self._fail_if_gone()
        return super().put(*checkpoint)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        self.state = "back" if self.state == "gone" else self.state
        return super().get_tuple(config)

    def _fail_if_gone(self) -> None:
        if self.state == "gone":
            raise ArithmeticError("couldn't get a connection")


def test_images_that_no_checkpoint_holds_since_the_database_failed_are_told_and_limited(tmp_path: Path) -> None:
    saver, generator, images = _GoneAtImages(), PaintGenerator(), ImageStore(tmp_path / "images")
    context = GemsContext(memory=False, plan=False, skills=False, seed=1, max_rounds=1, candidates=2)
    graph = build_graph(mllm=light_models.make_chat(None), generator=generator, checkpointer=saver, images=images)
    worker = Worker(Claim("batch", "settings"), graph, saver, context, {}, images)
    job = Job(0, "two cats", 7)
    start = AccountStart(tmp_path / "begun.jsonl", Limits(Budget(images=9)), Usage(), Usage(), {"images": 2}, 2, 1)
    account = start.open()
    row = run_within(account, worker, job)
    assert row is not None
    assert row["error"] == "ArithmeticError: couldn't get a connection"
    assert (account.usage.images, account.lost_images, len(generator.requests)) == (0, 2, 2)
    assert Journal(start.path).lost_images == 2
    again = worker.run(job)
    assert again is not None
    assert (again["usage"]["images"], len(generator.requests)) == (2, 4)


class _Loses:
    """A server's client that loses each image, so that the graph's retry policy has the step done again."""

    name, fingerprint, edits, draws_for_many = "loses", "1", False, True

    def __init__(self, path: Path, key: str) -> None:
        self._path, self._key = path, key
        self.asked, self.known = 0, list[int]()

    def generate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> list[Any]:
        assert ASKS.get()(True)
        self.asked += len(requests)
        self.known.append(Journal(self._path).lost_with(self._key, 1, Usage()))
        ASKS.get()(None)
        raise BackendError("the connection was lost", retryable=True)


def test_what_the_retry_policy_asks_for_again_is_written_down_before(tmp_path: Path) -> None:
    path, images = tmp_path / "begun.jsonl", ImageStore(tmp_path / "images")
    saver, job = InMemorySaver(), Job(0, "two cats", 7)
    generator = _Loses(path, job.key)
    context = GemsContext(memory=False, plan=False, skills=False, seed=1, max_rounds=1)
    graph = build_graph(
        mllm=light_models.make_chat(None),
        generator=generator,
        checkpointer=saver,
        images=images,
        retry=RETRY._replace(initial_interval=0.001, max_interval=0.001),
    )
    worker = Worker(Claim("batch", "settings"), graph, saver, context, {}, images)
    account = AccountStart(path, Limits(), Usage(), Usage(), {}, 1, 1).open()
    row = run_within(account, worker, job)
    assert row is not None
    assert row["usage"]["images"] == generator.asked == 3
    assert (generator.known, account.lost_images) == ([1, 2, 3], 0)
