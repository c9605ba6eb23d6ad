"""``/artifacts`` and ``/reports``: images and reports by signed addresses, which need no key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, get_args

from fastapi import APIRouter, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse

from gems.errors import BackendError
from gems.runs.record import RunRecord
from gems.runs.report import render_report
from gems.serve.converting import ImageFormat, convert, read_png, size_in_pixels
from gems.serve.http_errors import ERRORS, RequestError
from gems.serve.links import Links
from gems.serve.service import Service

__all__ = ["artifact_router"]

_IMAGE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"image/png": {}, "image/jpeg": {}, "image/webp": {}}, "description": "The image."},
    404: ERRORS[404],
}
_PAGE: Final[dict[int | str, dict[str, Any]]] = {
    200: {"content": {"text/html": {}}, "description": "The page."},
    404: ERRORS[404],
}
_REPORT_POLICY: Final = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; frame-ancestors 'none'"


def artifact_router(service: Service, links: Links) -> APIRouter:
    """The routes."""
    routes, router = _ArtifactRoutes(service, links), APIRouter()
    router.get("/artifacts/{token}.{image_format}", responses=_IMAGE, tags=["images"])(routes.artifact)
    router.get("/reports/{token}.html", responses=_PAGE, response_class=Response, tags=["runs"])(routes.report)
    return router


@dataclass(frozen=True)
class _ArtifactRoutes:
    """Their names and docstrings are the operations' names and descriptions in the service's schema."""

    service: Service
    links: Links

    async def artifact(
        self,
        token: str,
        image_format: str,
        size: Annotated[int | None, Query(ge=16, le=1024, description="Pixels of the longer side, as WebP.")] = None,
    ) -> Response:
        """An image, by its address in a run."""
        address = self.links.read("artifacts", token)
        address_format = next((option for option in get_args(ImageFormat) if option == image_format), None)
        png = await run_in_threadpool(self._png, *address[:2]) if address and address_format else None
        if address is None or address_format is None or png is None:
            raise _unknown_address()
        box = size_in_pixels("".join(address[2:])) if size is None else (size, size)
        new_format: ImageFormat = address_format if size is None else "webp"
        image = await run_in_threadpool(convert, png, size=box, image_format=new_format)
        headers = {"cache-control": "private, max-age=86400, immutable"}
        return Response(image, media_type=f"image/{new_format}", headers=headers)

    async def report(self, token: str) -> HTMLResponse:
        """A run's report, by its address in the run: one page with everything in it."""
        address = self.links.read("reports", token)
        run = await run_in_threadpool(self.service.ledger.get, *address) if address else None
        if run is None or run.record is None:
            raise _unknown_address()
        page = await run_in_threadpool(self._page, run.user, run.record)
        return HTMLResponse(page, headers={"content-security-policy": _REPORT_POLICY, "cache-control": "private"})

    def _png(self, user: str, sha256: str) -> bytes | None:
        return read_png(self.service.images(user), sha256)

    def _page(self, user: str, record: RunRecord) -> str:
        images = self.service.images(user)
        try:
            return render_report(record, [images.read(attempt.image, check_exists=True) for attempt in record.attempts])
        except BackendError as error:
            raise RequestError(404, str(error)) from error


def _unknown_address() -> RequestError:
    return RequestError(404, "this address is not valid, or has expired; look the run up again for a new one")
