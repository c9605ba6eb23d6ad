"""What a killed prompt has spent is counted once, at whatever moment it was killed."""

from __future__ import annotations

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Overwrite

from gems.bulk.half_done import HalfDone
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import GemsInput, Usage


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
