"""The store that ``langgraph.json`` loads: the user's own memory, the same that the ``gems`` command uses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gems.memory.home import home
from gems.memory.store import FaissStore

__all__ = ["open_store"]


@asynccontextmanager
async def open_store() -> AsyncIterator[FaissStore]:
    """``$GEMS_HOME/memory`` with the default embedder, for as long as the server runs.

    Opened and closed in a thread: ``langgraph dev`` lets nobody block its event loop.

    Raises:
        InputError: The folder cannot be used, or was written with another embedder.
    """
    store = await asyncio.to_thread(lambda: FaissStore(home() / "memory"))
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)
