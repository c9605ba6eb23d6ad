"""Callback handlers that are coroutines, for code in threads: they run on the event loop of the run that they watch.

LangChain runs them on a new loop of its own wherever it is called without one. What such a handler has of its
application, such as a queue or a connection, belongs to the application's loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextvars import Context
from functools import lru_cache, partial
from typing import Any, Final

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables.config import RunnableConfig, var_child_runnable_config

from gems.stopping import POLL_SECONDS, is_cancelled

__all__ = ["handled_on", "use_loop_for_handlers"]

_ITS_OWN: Final = ("on_", "ignore_", "raise_error", "run_inline")
"""How the members begin that LangChain asks a handler for."""


class _OnLoop(BaseCallbackHandler):
    """A handler for threads, which wait while its coroutines run on an event loop."""

    def __init__(self, handler: BaseCallbackHandler, loop: asyncio.AbstractEventLoop) -> None:
        self.handler, self.loop = handler, loop

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith(_ITS_OWN):
            return super().__getattribute__(name)
        member = getattr(self.handler, name)
        return partial(_run, self.loop, member) if inspect.iscoroutinefunction(member) else member


def _run(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if loop.is_closed() or is_cancelled():  # nobody listens any more
        return None
    future = asyncio.run_coroutine_threadsafe(function(*args, **kwargs), loop)
    while True:
        try:
            return future.result(POLL_SECONDS)
        except TimeoutError:
            if future.done():  # the handler's own error
                raise
            if loop.is_closed() or is_cancelled():
                future.cancel()
                return None


def handled_on(config: RunnableConfig, loop: asyncio.AbstractEventLoop) -> RunnableConfig:
    """A configuration for calls from other threads, whose handlers that are coroutines run on this loop."""
    callbacks = config.get("callbacks")
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or []
    if not any(_needs_loop(handler) for handler in handlers):
        return config
    wrapped = {id(handler): _OnLoop(handler, loop) for handler in handlers if _needs_loop(handler)}

    def replaced(some: list[BaseCallbackHandler]) -> list[BaseCallbackHandler]:
        return [wrapped.get(id(handler), handler) for handler in some]

    if not isinstance(callbacks, BaseCallbackManager):
        return {**config, "callbacks": replaced(handlers)}
    manager = callbacks.copy()
    manager.handlers = replaced(manager.handlers)
    manager.inheritable_handlers = replaced(manager.inheritable_handlers)
    return {**config, "callbacks": manager}


def use_loop_for_handlers(context: Context, loop: asyncio.AbstractEventLoop) -> None:
    """Let the handlers of a context, in which a thread is to work, run on this loop where they are coroutines."""
    config = context.get(var_child_runnable_config)
    if config is not None and (handled := handled_on(config, loop)) is not config:
        context.run(var_child_runnable_config.set, handled)


def _needs_loop(handler: BaseCallbackHandler) -> bool:
    kind: Any = type(handler)  # mypy does not see that classes can be hashed
    return _has_coroutines(kind)


@lru_cache(maxsize=256)
def _has_coroutines(kind: type) -> bool:
    # LangChain's own for ``astream_events`` may be called from anywhere, and has to be seen as what it is.
    if issubclass(kind, _OnLoop) or hasattr(kind, "tap_output_aiter"):
        return False
    names = (name for name in dir(BaseCallbackHandler) if name.startswith("on_"))
    return any(inspect.iscoroutinefunction(getattr(kind, name, None)) for name in names)
