"""The three objects that ``langgraph.json`` loads: the graph, the memory store, and an app with a guard and images.

The graph has no checkpointer, since the Agent Server brings its own. It puts small pictures into ``messages`` for
Studio. Clients set what ``gems.graph.client_rules`` lets them; the operator sets the rest, by environment variables.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from langgraph.store.base import BaseStore
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gems.errors import BackendError
from gems.graph.builder import compile_graph
from gems.graph.client_rules import rules_from_environment
from gems.graph.server_guard import ServerGuard
from gems.memory import opening
from gems.memory.embedder import init_embedder
from gems.memory.image_store import open_images
from gems.memory.store import FaissStore
from gems.nodes.resources import Resources

__all__ = ["app", "graph", "open_store"]

_RULES = rules_from_environment()
_SETTINGS = _RULES.settings

graph = compile_graph(Resources(settings=_SETTINGS, thumbnails=128), context_schema=_RULES.schema)


@asynccontextmanager
async def open_store() -> AsyncIterator[BaseStore]:
    """The user's own memory, the same that the ``gems`` command uses, while the server runs.

    It is the place that the operator's settings or ``GEMS_MEMORY`` name, or ``$GEMS_HOME/memory``. It is opened and
    closed in a thread, because ``langgraph dev`` refuses calls that block its event loop.

    Raises:
        InputError: The folder cannot be used, or was written with another embedder.
    """
    location = opening.memory_location(_SETTINGS)
    store = await asyncio.to_thread(lambda: opening.open_store(location, init_embedder(_SETTINGS.embedder)))
    try:
        yield store
    finally:
        if isinstance(store, FaissStore):  # a database's connections are closed at the process's end
            await asyncio.to_thread(store.close)


async def _artifact(request: Request) -> Response:
    """``GET /artifacts/SHA256.png``: an image of the store, and no other file of this machine."""
    png = await run_in_threadpool(_read, request.path_params["sha256"])
    return Response(png, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})


def _read(sha256: str) -> bytes:
    images = open_images(_SETTINGS.images_url)
    ref = images.find(sha256)
    if ref is None:
        raise HTTPException(404, "there is no such image")
    try:
        return images.read(ref)
    except BackendError as error:
        raise HTTPException(404, str(error)) from error


app = Starlette(
    routes=[Route("/artifacts/{sha256:str}.png", _artifact, include_in_schema=False)],
    middleware=[Middleware(ServerGuard, rules=_RULES)],
)
