"""Chat calls of a step that a stop or a bug interrupts: they are paid for, and another process does the step again.

What they cost is kept beside the run's last checkpoint. The process that does the step again begins with it, so that
the run's usage and budget count it, and the checkpoint behind the step holds it.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any, Final, cast

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.runtime import RunControl
from pydantic import TypeAdapter, ValidationError

from gems.errors import InputError
from gems.graph.builder import GemsGraph
from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Usage
from gems.nodes.meter import owe, settle_run, unsettled
from gems.runs.threads import run_thread

__all__ = ["run_counted", "with_interrupted"]

_CHANNEL: Final = "gems_interrupted"
"""The name under which the cost by node stands among a checkpoint's pending writes. No task of the graph reads it."""
_USAGE_BY_NODE: Final = TypeAdapter(dict[str, Usage])


def run_counted(
    graph: GemsGraph, thread: str, prompt: str, context: GemsContext, *, control: RunControl | None, **options: Any
) -> GemsState:
    """As ``run_thread``, and what is interrupted counts: in the state that is returned, and when the run goes on."""
    values = _values(graph, thread)
    for node, usage in _kept(graph, thread).items():
        owe(values["run_id"], node, usage)
    try:
        values = run_thread(graph, thread, prompt, context, control=control, **options)
    except Exception:
        with suppress(Exception):  # what has ended the run matters, even if the checkpoints have failed too
            _keep_unsettled(graph, thread, _values(graph, thread))
        raise
    if control is not None and control.drain_requested:
        _keep_unsettled(graph, thread, values)
    return with_interrupted(graph, thread, values)


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


def _values(graph: GemsGraph, thread: str) -> GemsState:
    return cast(GemsState, graph.get_state({"configurable": {"thread_id": thread}}).values)


def _keep(graph: GemsGraph, thread: str, usage_by_node: dict[str, Usage]) -> None:
    saved = _saver(graph).get_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ""}})
    if saved is not None and usage_by_node:
        content = _USAGE_BY_NODE.dump_python(usage_by_node, mode="json")
        _saver(graph).put_writes(saved.config, [(_CHANNEL, content)], uuid.uuid4().hex)


def _kept(graph: GemsGraph, thread: str) -> dict[str, Usage]:
    """What the interrupted steps behind the last checkpoint have cost, by node.

    Raises:
        InputError: Somebody else has written there.
    """
    saved = _saver(graph).get_tuple({"configurable": {"thread_id": thread, "checkpoint_ns": ""}})
    most: dict[str, Usage] = {}
    for _, channel, content in (saved.pending_writes or ()) if saved else ():
        if channel != _CHANNEL:
            continue
        try:
            usage_by_node = _USAGE_BY_NODE.validate_python(content)
        except ValidationError:
            raise InputError(f"the checkpoints of {thread!r} are damaged; start the run again") from None
        for node, usage in usage_by_node.items():  # each stop has written the sum of all so far
            most[node] = max(
                most.get(node, Usage()), usage, key=lambda cost: (cost.chat_calls, cost.images, cost.counted_tokens)
            )
    return most
