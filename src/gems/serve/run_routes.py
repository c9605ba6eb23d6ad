"""``/v1/runs``: begin a run, follow it, review it, cancel it, look it up. The page uses these routes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from gems.graph.state import Review
from gems.serve.http_errors import ERRORS, RequestError
from gems.serve.ledger import Run
from gems.serve.links import Links
from gems.serve.middleware import CLIENT
from gems.serve.service import Service
from gems.serve.sse import KEEP_ALIVE, server_sent
from gems.serve.subscriptions import RunEvent
from gems.serve.views import RunList, RunRequest, RunView, run_view

__all__ = ["IdempotencyKey", "run_router"]

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        description="The same request with the same key begins no second run; another request with it gets 409.",
    ),
]

_EVENT_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}
}

_KEEP_ALIVE_SECONDS: Final = 15


def run_router(service: Service, links: Links) -> APIRouter:
    """The routes."""
    routes, router = _RunRoutes(service, links), APIRouter(responses=ERRORS, tags=["runs"])
    router.post("/v1/runs", status_code=202)(routes.begin)
    router.get("/v1/runs")(routes.list_)
    router.get("/v1/runs/{run}")(routes.show)
    router.get("/v1/runs/{run}/events", responses=_EVENT_STREAM, response_class=StreamingResponse)(routes.events)
    router.delete("/v1/runs/{run}", status_code=204)(routes.delete)
    router.post("/v1/runs/{run}/review")(routes.review)
    router.post("/v1/runs/{run}/cancel")(routes.cancel)
    return router


@dataclass(frozen=True)
class _RunRoutes:
    """Their names and docstrings are the operations' names and descriptions in the service's schema."""

    service: Service
    links: Links

    async def begin(self, request: RunRequest, idempotency_key: IdempotencyKey = None) -> RunView:
        """Begin a run. Once accepted it is kept: follow it, or come back later."""
        submit = partial(self.service.submit, thread=request.thread, idempotency_key=idempotency_key)
        client = CLIENT.get()
        return await run_in_threadpool(lambda: self._view(submit(client, request.prompt, request.settings)))

    async def list_(
        self,
        before: Annotated[int | None, Query(ge=0, le=2**62, description="`next` of the previous page.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> RunList:
        """Your runs, the latest first. Only a run's own page has its attempts, and its usage before it ends."""
        runs = await run_in_threadpool(self.service.ledger.page, CLIENT.get().name, before=before, limit=limit)
        return RunList(
            data=[run_view(run, self.links) for run in runs],
            next=runs[-1].sequence if len(runs) == limit else None,
        )

    async def show(self, run: str) -> RunView:
        """A run as it stands."""
        return await run_in_threadpool(self._view, await self._find(run))

    async def events(self, run: str) -> StreamingResponse:
        """Follow a run: first `run`, as it stands; then each event; at the end `run` again."""
        stream = self._stream(await self._find(run))
        return StreamingResponse(stream, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def review(self, run: str, answer: Review) -> RunView:
        """Answer a run that waits for your review."""
        waiting = await self._find(run)
        return await run_in_threadpool(lambda: self._view(self.service.answer(waiting.id, answer)))

    async def cancel(self, run: str) -> RunView:
        """Stop a run at its next step. The best image so far is kept."""
        current = await self._find(run)
        return await run_in_threadpool(lambda: self._view(self.service.cancel(current)))

    async def delete(self, run: str) -> None:
        """Delete a run that has ended, with its images that neither another run nor your memory refers to."""
        await run_in_threadpool(self.service.delete, await self._find(run))

    async def _find(self, run: str) -> Run:
        current = await run_in_threadpool(self.service.ledger.get, CLIENT.get().name, run)
        if current is None:
            raise RequestError(404, "there is no such run")
        return current

    def _view(self, run: Run) -> RunView:
        has_state = run.started_at is not None and not run.has_ended
        return run_view(run, self.links, self.service.values(run) if has_state else None)

    async def _run_events(self, run: str) -> AsyncIterator[str]:
        """The run as it stands; nothing if it was deleted, which is too late for an error's status."""
        with suppress(RequestError):
            view = await run_in_threadpool(self._view, await self._find(run))
            yield server_sent("run", view.model_dump(mode="json"))

    async def _stream(self, run: Run) -> AsyncIterator[str]:
        events: asyncio.Queue[RunEvent | None] = asyncio.Queue()

        async def listen() -> None:
            async for event in self.service.follow(run.id):
                events.put_nowait(event)
            events.put_nowait(None)

        # The listener starts before the state is read, so that no event between the two is missed.
        listener = asyncio.create_task(listen())
        try:
            await asyncio.sleep(0)
            async for text in self._run_events(run.id):
                yield text
            while True:
                try:
                    event = await asyncio.wait_for(events.get(), _KEEP_ALIVE_SECONDS)
                except TimeoutError:
                    yield KEEP_ALIVE
                    continue
                if event is None:
                    break
                if event["event"] == "image":
                    yield server_sent("image", {**event, "url": self.links.image(run.user, event["sha256"])})
                else:
                    yield server_sent(event["event"], event)
            async for text in self._run_events(run.id):
                yield text
        finally:
            listener.cancel()
