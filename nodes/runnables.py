"""Nodes, error handlers and conditions as LangGraph runs them: with an event loop, and without one.

LangGraph runs a plain function on an event loop in asyncio's default pool, whose few threads belong to the application;
an ``async def`` alone cannot be invoked without a loop. ``RunnableCallable`` takes both. It is LangGraph's own, not
public: this is the only module that knows it, and ``tests/integration/test_faces.py`` fails if it changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, cast

from langgraph._internal._runnable import RunnableCallable
from langgraph.runtime import RunControl

from gems.faces import in_line, in_thread, run_here
from gems.graph.state import GemsState, check_schema
from gems.nodes.resources import Resources
from gems.stopping import CANCELLED, cancelled_if, stopping

__all__ = ["heard_by", "node_of", "resources_of_node", "without_waits"]

F = TypeVar("F", bound=Callable[..., Any])

_LISTENER: ContextVar[Callable[[Any], None] | None] = ContextVar("gems_listener", default=None)


def node_of(body: Callable[..., Any], resources: Resources) -> Any:
    """A node: a coroutine function, or a plain function, which works in a thread where there is an event loop.

    It checks first that this version can read the state, which may come from another version's checkpoint.
    """
    is_plain = not inspect.iscoroutinefunction(body)

    async def begin(state: GemsState, injected: dict[str, Any]) -> GemsState:
        check_schema(state)
        try:
            result: GemsState = await (in_thread(body, state, **injected) if is_plain else body(state, **injected))
        except StopAsyncIteration as error:  # of a model of the user's; LangGraph would take it for the end of a stream
            raise RuntimeError("coroutine raised StopAsyncIteration") from error  # as for StopIteration
        return result

    @wraps(body)  # LangGraph reads the signature, to know what to pass
    def node(state: GemsState, **injected: Any) -> GemsState:
        if listener := _LISTENER.get():
            injected["runtime"] = injected["runtime"].override(stream_writer=listener)
        with _heeding(injected["runtime"].control):
            return run_here(begin(state, injected))

    async def anode(state: GemsState, **injected: Any) -> GemsState:
        with resources.workers.at_work(), _heeding(injected["runtime"].control):
            await in_line()
            return await begin(state, injected)

    runnable = RunnableCallable(node, anode, name=body.__name__, trace=False)
    runnable.gems_resources = resources  # type: ignore[attr-defined]
    return runnable


@contextmanager
def heard_by(listener: Callable[[Any], None] | None) -> Iterator[None]:
    """Have nodes call a listener, which is safe for threads, in place of LangGraph's stream.

    LangGraph hands each event, and with it each step, from one thread to another.
    """
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextmanager
def _heeding(control: RunControl | None) -> Iterator[None]:
    """Let the block see that its run is to stop, or is cancelled."""
    if control is None:
        yield
        return
    with stopping(lambda: control.drain_requested), cancelled_if(lambda: control.drain_reason == CANCELLED):
        yield


def without_waits(function: F) -> F:
    """An error handler or a condition, which computes so little that it does so on the event loop."""

    async def same(*args: Any, **injected: Any) -> Any:
        return function(*args, **injected)

    return cast(F, RunnableCallable(function, same, name=function.__name__, trace=False))


def resources_of_node(runnable: Any) -> Resources | None:
    """The resources of a node that ``node_of`` has made; None for any other."""
    resources: Resources | None = getattr(runnable, "gems_resources", None)
    return resources
