"""``/v1/runs``: begin a run, follow it, review it, stop it, look at it again. What the page uses."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, StreamingResponse

from gems.errors import BackendError
from gems.graph.state import Attempt, Review
from gems.memory.image_store import open_images
from gems.runs.report import render_report
from gems.serve.http_errors import ErrorBody, RequestError
from gems.serve.ledger import Run
from gems.serve.links import Links, as_asked, stored
from gems.serve.middleware import CLIENT
from gems.serve.service import Service
from gems.serve.settings import images_of
from gems.serve.views import RunList, RunRequest, RunView, run_view

__all__ = ["ERRORS", "IdempotencyKey", "router_of", "server_sent"]

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {"model": ErrorBody, "description": about}
    for status, about in {
        400: "The prompt or a setting cannot be used.",
        401: "No key, or a wrong one.",
        404: "There is no such thing, for this key.",
        409: "Not in this state.",
        413: "The body is too long.",
        422: "The request is not of the right form.",
        429: "The queue is full, or the key has spent what it may. See Retry-After.",
        502: "A model failed.",
        503: "The service is being stopped; what was accepted goes on when it is there again.",
    }.items()
}

IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=200, description="A request that is sent again with it begins no second run."),
]


def server_sent(name: str, data: dict[str, Any]) -> str:
    """A server-sent event (WHATWG HTML, 9.2)."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


def router_of(service: Service, links: Links) -> APIRouter:
    """The routes."""
    router = APIRouter()

    async def find(run: str) -> Run:
        found = await run_in_threadpool(service.ledger.get, CLIENT.get().name, run)
        if found is None:
            raise RequestError(404, "there is no such run")
        return found

    def view(run: Run) -> RunView:
        return run_view(run, links, None if run.has_ended else service.values(run))

    @router.post("/v1/runs", status_code=202, responses=ERRORS, tags=["runs"])
    async def begin(request: RunRequest, idempotency_key: IdempotencyKey = None) -> RunView:
        """Begin a run. It is kept from now on: follow it, or come back later."""
        run = await run_in_threadpool(
            service.submit,
            CLIENT.get(),
            request.prompt,
            request.settings,
            thread=request.thread,
            idempotency_key=idempotency_key,
        )
        return await run_in_threadpool(view, run)

    @router.get("/v1/runs", responses=ERRORS, tags=["runs"])
    async def list_(
        before: Annotated[int | None, Query(ge=0, le=2**62, description="From the page before: next.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> RunList:
        """Your runs, the latest first. What was seen in them is told by each run alone."""
        user = CLIENT.get().name
        runs = await run_in_threadpool(service.ledger.page, user, before=before, limit=limit)
        return RunList(
            data=[run_view(run, links) for run in runs],
            next=runs[-1].sequence if len(runs) == limit else None,
        )

    @router.get("/v1/runs/{run}", responses=ERRORS, tags=["runs"])
    async def show(run: str) -> RunView:
        """A run as it stands."""
        return await run_in_threadpool(view, await find(run))

    @router.get(
        "/v1/runs/{run}/events",
        responses={**ERRORS, 200: {"content": {"text/event-stream": {}}, "description": "Server-sent events."}},
        response_class=StreamingResponse,
        tags=["runs"],
    )
    async def events(run: str) -> StreamingResponse:
        """Follow a run: first ``run``, as it stands; then what happens; last ``run`` again."""
        found = await find(run)

        async def tell() -> AsyncIterator[str]:
            queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

            async def listen() -> None:
                async for event in service.follow(found.id):
                    queue.put_nowait(event)
                queue.put_nowait(None)

            # Listening begins before the state is read: nothing falls between the two.
            listener = asyncio.create_task(listen())
            try:
                await asyncio.sleep(0)
                yield server_sent("run", (await run_in_threadpool(view, await find(run))).model_dump(mode="json"))
                while True:
                    try:
                        event = await asyncio.wait_for(queue.get(), 15)
                    except TimeoutError:
                        yield ": still here\n\n"  # so that proxies do not hang up
                        continue
                    if event is None:
                        break
                    if event["event"] == "image":
                        event = {**event, "url": links.image(found.user, event["sha256"])}
                    yield server_sent(event["event"], event)
                yield server_sent("run", (await run_in_threadpool(view, await find(run))).model_dump(mode="json"))
            finally:
                listener.cancel()

        return StreamingResponse(tell(), media_type="text/event-stream", headers={"cache-control": "no-store"})

    @router.post("/v1/runs/{run}/review", responses=ERRORS, tags=["runs"])
    async def review(run: str, answer: Review) -> RunView:
        """Answer the question that a waiting run asks."""
        found = await find(run)
        return await run_in_threadpool(lambda: view(service.answer(CLIENT.get(), found.id, answer)))

    @router.post("/v1/runs/{run}/cancel", responses=ERRORS, tags=["runs"])
    async def cancel(run: str) -> RunView:
        """Stop a run at its next step. The best image so far is kept."""
        found = await find(run)
        return await run_in_threadpool(lambda: view(service.cancel(CLIENT.get(), found)))

    @router.get("/artifacts/{token}.png", responses={**_image(), 404: ERRORS[404]}, tags=["images"])
    async def artifact(
        token: str, size: Annotated[int | None, Query(ge=16, le=1024, description="Pixels; longer side.")] = None
    ) -> Response:
        """An image, by an address that a run told."""
        known = links.read("artifacts", token)
        png = await run_in_threadpool(_png, *known) if known else None
        if png is None:
            raise RequestError(404, "this address is not ours, or has expired; ask for the run again")
        headers = {"cache-control": "private, max-age=86400, immutable", "x-content-type-options": "nosniff"}
        if size is None:
            return Response(png, media_type="image/png", headers=headers)
        small = await run_in_threadpool(as_asked, png, size=(size, size), form="webp")
        return Response(small, media_type="image/webp", headers=headers)

    @router.get(
        "/reports/{token}.html", responses={**_page(), 404: ERRORS[404]}, response_class=Response, tags=["runs"]
    )
    async def report(token: str) -> HTMLResponse:
        """A run's report: everything in one page, by an address that the run told."""
        known = links.read("reports", token)
        found = await run_in_threadpool(service.ledger.get, *known) if known else None
        if found is None or found.record is None:
            raise RequestError(404, "this address is not ours, or has expired; ask for the run again")
        page = await run_in_threadpool(_report, found)
        policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        return HTMLResponse(page, headers={"content-security-policy": policy, "cache-control": "private"})

    def _png(user: str, sha256: str) -> bytes | None:
        return stored(open_images(images_of(service.settings, user)), sha256)

    def _report(run: Run) -> str:
        assert run.record is not None
        images = open_images(images_of(service.settings, run.user))
        attempts = [Attempt.model_validate({k: v for k, v in a.items() if k != "file"}) for a in run.record["attempts"]]
        try:
            return render_report(run.record, [images.read(a.image, check_exists=True) for a in attempts])
        except BackendError as error:
            raise RequestError(404, str(error)) from error

    return router


def _page() -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"text/html": {}}, "description": "The page."}}


def _image() -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"image/png": {}, "image/webp": {}}, "description": "The image."}}
