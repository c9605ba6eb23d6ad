"""Images for LangGraph Studio: a route that ``langgraph.json`` adds to the Agent Server."""

from __future__ import annotations

from functools import cache

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gems.graph.errors import BackendError
from gems.memory.images import ImageStore

__all__ = ["app"]


async def artifact(request: Request) -> Response:
    """``GET /artifacts/SHA256.png``: an image of the store, and nothing else that lies on this machine."""
    png = await run_in_threadpool(_read, request.path_params["sha256"])
    return Response(png, media_type="image/png", headers={"cache-control": "private, max-age=86400, immutable"})


def _read(sha256: str) -> bytes:
    images = _images()
    ref = images.find(sha256)
    if ref is None:
        raise HTTPException(404, "there is no such image")
    try:
        return images.read(ref)
    except BackendError as error:
        raise HTTPException(404, str(error)) from error


@cache
def _images() -> ImageStore:
    return ImageStore()


app = Starlette(routes=[Route("/artifacts/{sha256:str}.png", artifact, include_in_schema=False)])
