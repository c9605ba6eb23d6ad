"""Checkpointers without asynchronous methods of their own, such as SQLite's, for ``ainvoke`` too."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any

from langgraph.checkpoint.base import BaseCheckpointSaver, CheckpointTuple
from langgraph.types import Checkpointer

from gems.faces import Workers, in_thread

__all__ = ["for_both_faces"]


def for_both_faces(checkpointer: Checkpointer, workers: Workers) -> Checkpointer:
    """A checkpointer that goes with ``ainvoke`` as well as with ``invoke``: the one given, or a copy that shares all.

    Args:
        checkpointer: A checkpointer, or what LangGraph takes in its place.
        workers: The threads in which the methods of a synchronous one are called.
    """
    if not isinstance(checkpointer, BaseCheckpointSaver) or not _is_synchronous(type(checkpointer)):
        return checkpointer
    kind = type(checkpointer)
    threaded = copy.copy(checkpointer)
    threaded.__class__ = type(kind.__name__, (_InThreads, kind), {"__module__": kind.__module__, "workers": workers})
    return threaded


def _is_synchronous(kind: type[BaseCheckpointSaver[Any]]) -> bool:
    """Whether the asynchronous methods only raise ``NotImplementedError``: the base's own, and those of SqliteSaver."""
    origin = next(base for base in kind.__mro__ if "aget_tuple" in vars(base))
    return origin is BaseCheckpointSaver or (origin.__module__, origin.__name__) == (
        "langgraph.checkpoint.sqlite",
        "SqliteSaver",
    )


class _InThreads(BaseCheckpointSaver[Any]):
    """The asynchronous methods that LangGraph calls, which call the synchronous ones in threads."""

    workers: Workers

    async def aget_tuple(self, *args: Any, **kwargs: Any) -> CheckpointTuple | None:
        with self.workers.at_work():
            return await in_thread(self.get_tuple, *args, **kwargs)

    async def alist(self, *args: Any, **kwargs: Any) -> AsyncIterator[CheckpointTuple]:
        with self.workers.at_work():
            checkpoints = await in_thread(lambda: list(self.list(*args, **kwargs)))
        for checkpoint in checkpoints:
            yield checkpoint

    async def aput(self, *args: Any, **kwargs: Any) -> Any:
        with self.workers.at_work():
            return await in_thread(self.put, *args, **kwargs)

    async def aput_writes(self, *args: Any, **kwargs: Any) -> None:
        with self.workers.at_work():
            await in_thread(self.put_writes, *args, **kwargs)

    async def adelete_thread(self, *args: Any, **kwargs: Any) -> None:
        with self.workers.at_work():
            await in_thread(self.delete_thread, *args, **kwargs)
