"""The store that ``langgraph.json`` loads: the user's own memory, the same that the ``gems`` command uses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph.store.base import BaseStore

from gems.memory import opening
from gems.memory.embedder import init_embedder
from gems.memory.store import FaissStore

__all__ = ["open_store"]


@asynccontextmanager
async def open_store() -> AsyncIterator[BaseStore]:
    """The place that ``GEMS_MEMORY`` names, or ``$GEMS_HOME/memory``, with the default embedder, while the server runs.

    Opened and closed in a thread: ``langgraph dev`` lets nobody block its event loop.

    Raises:
        InputError: The folder cannot be used, or was written with another embedder.
    """
    store = await asyncio.to_thread(lambda: opening.open_store(os.environ.get("GEMS_MEMORY"), init_embedder()))
    try:
        yield store
    finally:
        if isinstance(store, FaissStore):  # a database's connections are closed at the process's end
            await asyncio.to_thread(store.close)
