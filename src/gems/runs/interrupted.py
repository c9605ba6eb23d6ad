"""What a step costs that a stop, a bug or a kill interrupts: it is paid for, and another process does the step again.

Its cost is kept beside the run's last checkpoint. The process that does the step again begins with it, so that the
run's usage and budget count it, and the checkpoint behind the step holds it. A stop and a bug leave time to write down
what they have interrupted; for a kill, the most that a step can have cost is written before each thing it asks for.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Final, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME
from langgraph.runtime import RunControl, get_runtime
from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from gems.errors import InputError
from gems.graph.builder import GemsGraph
from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Usage
from gems.nodes.meter import BEFORE_SPENDING, owe, settle_run, unsettled
from gems.runs.threads import run_thread

__all__ = ["run_counted", "with_interrupted"]

_CHANNEL: Final = "gems_interrupted"
"""The name under which the cost by node stands among a checkpoint's pending writes. No task of the graph reads it."""
_IN_FLIGHT: Final = "gems_in_flight"
"""The same for what a task is about to ask for: the task's id, and the most that its node has cost from then on."""
_NO_RESULTS: Final = frozenset({_CHANNEL, _IN_FLIGHT, ERROR, "__error_source_node__", INTERRUPT, RESUME})
"""The names of pending writes that do not say that a task has ended."""
_USAGE_BY_NODE: Final = TypeAdapter(dict[str, Usage])
_TASK_IN_FLIGHT: Final = TypeAdapter(tuple[str, dict[str, Usage]])


def run_counted(
    graph: GemsGraph,
    thread: str,
    prompt: str,
    context: GemsContext,
    *,
    control: RunControl | None,
    survives_kill: bool = False,
    **options: Any,
) -> GemsState:
    """As ``run_thread``, and what is interrupted counts: in the state that is returned, and when the run goes on.

    Args:
        graph: See ``run_thread``, as for all others.
        thread: The thread's id.
        prompt: The prompt.
        context: The run's settings.
        control: Stops the run.
        survives_kill: Whether what is in flight counts, too, when the process is killed. That costs a write each time
            that something is asked for.
        options: Others of ``run_thread``.
    """
    values = _values(graph, thread)
    for node, usage in _kept(graph, thread).items():
        owe(values["run_id"], node, usage)
    try:
        with _written_ahead(graph, thread) if survives_kill else nullcontext():
            values = run_thread(graph, thread, prompt, context, control=control, **options)
    except Exception:
        with suppress(Exception):  # what has ended the run matters, even if the checkpoints have failed too
            _keep_unsettled(graph, thread, _values(graph, thread))
        raise
    if control is not None and control.drain_requested:
        _keep_unsettled(graph, thread, values)
    return with_interrupted(graph, thread, values)


@contextmanager
def _written_ahead(graph: GemsGraph, thread: str) -> Iterator[None]:
    """Write down what each task in the block may have cost, before it asks for anything."""
    saver, one_at_a_time = _saver(graph), threading.Lock()

    def write(node: str, most: Callable[[], Usage]) -> None:
        task = get_runtime().execution_info
        if task is None:  # nothing that a graph does
            return
        config = _config(thread, checkpoint_id=task.checkpoint_id)
        with one_at_a_time:  # the last one counts
            content = _TASK_IN_FLIGHT.dump_python((task.task_id, {node: most()}), mode="json")
            saver.put_writes(config, [(_IN_FLIGHT, content)], _next_id())

    token = BEFORE_SPENDING.set(write)
    try:
        yield
    finally:
        BEFORE_SPENDING.reset(token)


def _next_id() -> str:
    """An id that comes after all earlier ones."""
    return f"~{time.time_ns():020}-{uuid.uuid4().hex}"


def _keep_unsettled(graph: GemsGraph, thread: str, values: GemsState) -> None:
    if run_id := values.get("run_id"):
        _keep(graph, thread, unsettled(run_id))
        settle_run(run_id)


def with_interrupted(graph: GemsGraph, thread: str, values: GemsState) -> GemsState:
    """A thread's state, whose usage includes the step that was interrupted last and has not been done again."""
    if "usage" not in values:
        return values
    usage = sum(_kept(graph, thread).values(), values["usage"])
    return cast(GemsState, {**values, "usage": usage})


def _saver(graph: GemsGraph) -> BaseCheckpointSaver[Any]:
    assert isinstance(graph.checkpointer, BaseCheckpointSaver)
    return graph.checkpointer


def _config(thread: str, **checkpoint: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": "", **checkpoint}}


def _values(graph: GemsGraph, thread: str) -> GemsState:
    return cast(GemsState, graph.get_state(_config(thread)).values)


def _keep(graph: GemsGraph, thread: str, usage_by_node: dict[str, Usage]) -> None:
    """Write down what a stop or a bug has interrupted: all of it, in place of what might have been."""
    saved = _saver(graph).get_tuple(_config(thread))
    if saved is not None and (usage_by_node or any(channel == _IN_FLIGHT for _, channel, _ in _writes(saved))):
        content = _USAGE_BY_NODE.dump_python(usage_by_node, mode="json")
        _saver(graph).put_writes(saved.config, [(_CHANNEL, content)], _next_id())


def _kept(graph: GemsGraph, thread: str) -> dict[str, Usage]:
    """What the interrupted steps behind the last checkpoint have cost, by node.

    Raises:
        InputError: Somebody else has written there.
    """
    saved = _saver(graph).get_tuple(_config(thread))
    writes = sorted(_writes(saved), key=lambda write: write[0])
    ended_tasks = {task for task, channel, _ in writes if channel not in _NO_RESULTS}
    usage_by_node: dict[str, Usage] = {}
    try:
        for _, channel, content in writes:
            if channel == _CHANNEL:
                usage_by_node = _USAGE_BY_NODE.validate_json(_plain(content))
            elif channel == _IN_FLIGHT:
                task, most = _TASK_IN_FLIGHT.validate_json(_plain(content))
                # What a task has cost that ended before the kill is in its result.
                usage_by_node |= {
                    node: Usage() if task in ended_tasks else _killed(usage) for node, usage in most.items()
                }
    except ValidationError:
        raise InputError(f"the checkpoints of {thread!r} are damaged; start the run again") from None
    return usage_by_node


def _plain(content: object) -> bytes:
    """What somebody has written, as JSON: of any values LangGraph builds a ``Usage``, which counts as checked."""
    return to_json(content, fallback=repr)


def _writes(saved: CheckpointTuple | None) -> Sequence[tuple[str, str, Any]]:
    return (saved.pending_writes if saved else None) or ()


def _killed(usage: Usage) -> Usage:
    """What a node has cost that a kill has interrupted: nobody knows how much of it there was."""
    return usage.model_copy(update={"killed_images": usage.images, "killed_calls": usage.chat_calls})
