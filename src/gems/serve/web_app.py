"""The service's web application: all routes, the page, and the middleware."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from fastapi import FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from pydantic import BaseModel
from starlette.responses import FileResponse, JSONResponse

from gems import __version__
from gems.errors import InputError
from gems.graph.state import Prices
from gems.serve.artifact_routes import artifact_router
from gems.serve.gate import GateMiddleware
from gems.serve.http_errors import ERRORS, RequestError, add_handlers
from gems.serve.images_endpoint import images_router
from gems.serve.keys import Keys
from gems.serve.langserve_routes import add_langserve
from gems.serve.links import Links
from gems.serve.metrics import CONTENT_TYPE
from gems.serve.middleware import CLIENT, RequestMiddleware
from gems.serve.run_routes import run_router
from gems.serve.service import Service
from gems.serve.settings import ServiceSettings, is_loopback

__all__ = ["make_app"]

_PAGE: Final = Path(__file__).parent / "page"
_PAGE_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Health(BaseModel):
    """Whether the process is alive."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """Whether the service accepts runs."""

    status: Literal["ready", "stopping"]


def make_app(settings: ServiceSettings) -> FastAPI:
    """The service as an ASGI application. ``app.state.service`` is its ``Service``.

    Raises:
        InputError: The keys cannot be read, they limit the cost and there are no prices, or the service would listen
            beyond this machine without a key.
    """
    settings.check_address()
    keys = Keys(settings.keys) if settings.keys else None
    _check_prices(settings, keys)
    links = Links(settings.home / "secret", settings.link_seconds)
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with service:
            yield

    app = FastAPI(
        title="GEMS",
        version=__version__,
        description="An agent graph around a text-to-image model, as a service.",
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from other sites
        redoc_url=None,
    )
    app.state.service = service
    add_handlers(app)
    app.include_router(run_router(service, links))
    app.include_router(artifact_router(service, links))
    app.include_router(images_router(service, links))
    add_langserve(app, service, links)
    _add_operations(app, service)
    _add_page(app)
    _add_middleware(app, service, keys)
    return app


def _check_prices(settings: ServiceSettings, keys: Keys | None) -> None:
    if keys is not None and (limited_users := keys.limiting_cost()) and settings.context.budget.prices == Prices():
        raise InputError(
            f"{settings.keys} limits the cost of a day for {', '.join(limited_users)}, and there are no prices: give "
            "--price image=0.04, --price prompt=1.25, --price completion=10"
        )


def _add_middleware(app: FastAPI, service: Service, keys: Keys | None) -> None:
    """Add the middleware, the innermost first. CORS surrounds the gate, so that a page can read why it is refused."""
    settings = service.settings
    app.add_middleware(
        GateMiddleware,
        keys=keys,
        max_body=settings.max_body,
        origins=settings.cors_origins,
        local_only=keys is None and not settings.open and is_loopback(settings.host),
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],  # a key is a header of its own, and there are no cookies
            expose_headers=["retry-after", "x-request-id"],
        )
    app.add_middleware(RequestMiddleware, metrics=service.metrics)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operations"])
    async def health() -> Health:
        """Whether the process is alive."""
        return Health()

    @app.get("/readyz", tags=["operations"], response_model=Readiness, responses={503: {"model": Readiness}})
    async def ready() -> Response:
        """Whether the service accepts runs: 503 while it is being stopped."""
        readiness = Readiness(status="stopping" if service.stopping else "ready")
        return JSONResponse(readiness.model_dump(), 503 if service.stopping else 200)

    @app.get(
        "/metrics",
        tags=["operations"],
        response_class=Response,
        responses={
            200: {"content": {"text/plain": {}}, "description": "Prometheus's text format."},
            403: ERRORS[403],
        },
    )
    async def metrics() -> Response:
        """Metrics for Prometheus. They cover all users: with keys, only a key that is marked for it may read them."""
        if not CLIENT.get().metrics:
            raise RequestError(
                403, "this key may not read the metrics; the operator adds 'metrics = true' to the key's entry"
            )
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    for path, name in (
        ("/", "page.html"),
        ("/page.js", "page.js"),
        ("/page.css", "page.css"),
        ("/favicon.svg", "favicon.svg"),
    ):
        app.add_api_route(path, _file_route(name), include_in_schema=False)


def _file_route(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        headers = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-cache"}
        return FileResponse(_PAGE / name, headers=headers)

    return page
