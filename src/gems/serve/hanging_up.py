"""Clients that hang up while they wait for an image: nobody will get it, so it is not drawn."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import Request

from gems.errors import GemsError
from gems.serve.ledger import Run
from gems.serve.refusals import ConflictError, RefusedError
from gems.serve.service import Service

__all__ = ["begun_for_client", "ending_with_client"]

_TASKS: Final[set[asyncio.Task[None]]] = set()
"""An event loop itself keeps no task alive."""


@asynccontextmanager
async def ending_with_client(service: Service, request: Request | None, runs: Sequence[Run]) -> AsyncIterator[None]:
    """Cancel runs whose client hangs up inside the block, or whose block is left before they have ended.

    Args:
        service: Executes the runs.
        request: The client's request; None if a server-sent stream tells by itself that the client has gone.
        runs: What the client waits for.
    """
    watcher = asyncio.create_task(_watch(service, request, runs)) if request is not None else None
    try:
        yield
    except (asyncio.CancelledError, GeneratorExit):
        _in_background(lambda: _cancel(service, runs))
        raise
    finally:
        if watcher is not None:
            watcher.cancel()


async def begun_for_client(service: Service, begin: Callable[[], list[Run]]) -> list[Run]:
    """Begin runs in a thread. If the client hangs up meanwhile, they are cancelled as soon as they have begun."""
    beginning = asyncio.ensure_future(asyncio.to_thread(begin))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:
        _keep(asyncio.create_task(_cancel_once_begun(service, beginning)))
        raise


async def _cancel_once_begun(service: Service, beginning: asyncio.Future[list[Run]]) -> None:
    with contextlib.suppress(Exception):  # they were refused
        await asyncio.to_thread(_cancel, service, await beginning)


async def _watch(service: Service, request: Request, runs: Sequence[Run]) -> None:
    while (await request.receive())["type"] != "http.disconnect":  # its body was read before
        continue
    await asyncio.to_thread(_cancel, service, runs)


def _cancel(service: Service, runs: Sequence[Run]) -> None:
    for run in runs:
        # One that waits for a person's review is answered by another request.
        with contextlib.suppress(GemsError, ConflictError, RefusedError):
            if (current := service.ledger.run(run.id)).status in ("queued", "running"):
                service.cancel(current)


def _in_background(call: Callable[[], None]) -> None:
    _keep(asyncio.create_task(asyncio.to_thread(call)))


def _keep(task: asyncio.Task[None]) -> None:
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)
