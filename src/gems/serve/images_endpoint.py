"""OpenAI's images endpoint: any program that takes an image model can use the whole agent as one."""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from gems.models.registry import LIMITS
from gems.runs.record import AttemptRecord, RunRecord
from gems.seeds import seed_of_request_image
from gems.serve.admission import Submission
from gems.serve.converting import convert, fitted_size, read_png, size_of
from gems.serve.hanging_up import ending_with_client
from gems.serve.http_errors import ERRORS, IN_VAIN, RequestError, as_http, fault_of
from gems.serve.ledger import Run
from gems.serve.links import Links
from gems.serve.middleware import CLIENT
from gems.serve.openai_forms import (
    ImageData,
    ImagesRequest,
    ImagesResponse,
    ImagesUsage,
    Model,
    ModelList,
    RunSummary,
)
from gems.serve.refusals import ConflictError
from gems.serve.run_routes import IdempotencyKey
from gems.serve.service import Service
from gems.serve.settings import RunSettings
from gems.serve.sse import server_sent
from gems.serve.views import without_options

__all__ = ["images_router"]

_EVENT_STREAM: Final[dict[int | str, dict[str, Any]]] = {200: {"content": {"text/event-stream": {}}}}


def images_router(service: Service, links: Links) -> APIRouter:
    """The routes."""
    routes, router = _ImagesRoutes(service, links), APIRouter(tags=["images"])
    router.get("/v1/models", responses={401: ERRORS[401]})(routes.models)
    router.get("/v1/models/{model:path}", responses={401: ERRORS[401], 404: ERRORS[404]})(routes.model)
    router.post("/v1/images/generations", responses={**ERRORS, **_EVENT_STREAM}, response_model=ImagesResponse)(
        routes.generations
    )
    return router


@dataclass(frozen=True)
class _Result:
    """A run that ended with an image."""

    run: Run
    record: RunRecord
    best: AttemptRecord


@dataclass(frozen=True)
class _ImagesRoutes:
    """Their names and docstrings are the operations' names and descriptions in the service's schema."""

    service: Service
    links: Links

    async def models(self) -> ModelList:
        """The names that a request may give as its model. All of them are this agent."""
        return ModelList(data=list(map(self._model, self.service.settings.served_names)))

    async def model(self, model: str) -> Model:
        """One of these names."""
        self._check_model(model)
        return self._model(model)

    def _model(self, name: str) -> Model:
        return Model(id=name, description=LIMITS.get(self.service.settings.context.generator, ""))

    async def generations(
        self, form: ImagesRequest, request: Request, idempotency_key: IdempotencyKey = None
    ) -> ImagesResponse | StreamingResponse:
        """Draw, check and draw again; the best image is returned. With `stream`: as server-sent events."""
        if form.model:
            self._check_model(form.model)
        if form.stream and form.n > 1:
            raise RequestError(400, "stream gives one image only: leave out n")
        runs = await run_in_threadpool(self._submit_all, form, idempotency_key)
        awaited_runs = [] if idempotency_key else runs  # with a key, the client will come back for its images
        if form.stream:
            events = self._stream(form, runs[0])
            return StreamingResponse(self._while_heard(events, awaited_runs), media_type="text/event-stream")
        base_url = str(request.base_url).rstrip("/")
        async with ending_with_client(self.service, request, awaited_runs):
            ended_runs = [await self.service.wait(run.id) for run in runs]
        results = [_result_of(run) for run in ended_runs]
        images = [await run_in_threadpool(self._image_data, form, result, base_url) for result in results]
        return ImagesResponse(
            created=int(time.time()),
            data=images,
            size=_size_of(form, results[0]),
            output_format=form.output_format,
            usage=_usage(results),
        )

    def _check_model(self, name: str) -> None:
        names = self.service.settings.served_names
        if name not in names:
            message = f"unknown model {name!r}; choose from: {', '.join(names)}"
            raise RequestError(404, message, code="model_not_found")

    def _submit_all(self, form: ImagesRequest, key: str | None) -> list[Run]:
        """Submit a run for each image: all of them or none."""
        seeds = [None if form.seed is None else seed_of_request_image(form.seed, k) for k in range(form.n)]
        submissions = [Submission(form.prompt, RunSettings.model_validate({"seed": seed})) for seed in seeds]
        request = form.model_dump_json(exclude_none=True)
        return self.service.submit_all(CLIENT.get(), submissions, idempotency_key=key, request=request)

    async def _while_heard(self, events: AsyncIterator[str], runs: list[Run]) -> AsyncIterator[str]:
        async with ending_with_client(self.service, None, runs):
            async for event in events:
                yield event

    async def _stream(self, form: ImagesRequest, run: Run) -> AsyncIterator[str]:
        partial_images, latest = 0, ""
        async for event in self.service.follow(run.id):
            # An attempt is partial once the next prompt comes. The last one is sent as the completed image.
            if event["event"] == "prompt" and latest and partial_images < form.partial_images:
                partial, size = await run_in_threadpool(self._encoded, form, run, latest)
                yield _stream_event(
                    form, "partial_image", b64_json=partial, partial_image_index=partial_images, size=size
                )
                partial_images, latest = partial_images + 1, ""
            elif event["event"] == "image":
                latest = event["sha256"]
        try:
            result = _result_of(await run_in_threadpool(self.service.ledger.run, run.id))
        except (RequestError, ConflictError) as caught:
            error = caught if isinstance(caught, RequestError) else as_http(caught)
            yield server_sent("error", {"type": "error", "error": fault_of(error).model_dump()})
            return
        image, size = await run_in_threadpool(self._encoded, form, run, result.best.image.sha256)
        yield _stream_event(
            form,
            "completed",
            b64_json=image,
            revised_prompt=result.best.prompt,
            gems=_summary_of(result).model_dump(),
            usage=_usage([result]).model_dump(),
            size=size,
        )

    def _encoded(self, form: ImagesRequest, run: Run, sha256: str) -> tuple[str, str]:
        """The image in base64, and its size, as they are sent."""
        png = read_png(self.service.images(run.user), sha256)
        if png is None:
            raise RequestError(502, "the image is missing from the image store", headers=IN_VAIN)
        image = convert(png, size=form.pixels, image_format=form.output_format)
        return base64.b64encode(image).decode("ascii"), size_of(image)

    def _path(self, form: ImagesRequest, run: Run, sha256: str) -> str:
        size = "" if form.pixels is None else form.size
        return self.links.image(run.user, sha256, size=size, image_format=form.output_format)

    def _image_data(self, form: ImagesRequest, result: _Result, base_url: str) -> ImageData:
        run, sha256 = result.run, result.best.image.sha256
        by_url = form.response_format == "url"
        return ImageData(
            b64_json=None if by_url else self._encoded(form, run, sha256)[0],
            url=f"{base_url}{self._path(form, run, sha256)}" if by_url else None,
            revised_prompt=result.best.prompt,
            gems=_summary_of(result),
        )


def _summary_of(result: _Result) -> RunSummary:
    record = result.record
    return RunSummary(
        run=result.run.id,
        outcome=record.outcome,
        score=record.score,
        rounds=record.attempts[-1].round,
        images=record.usage.images,
    )


def _size_of(form: ImagesRequest, result: _Result) -> str:
    """The size of the result's image as it is sent."""
    image = result.best.image
    width, height = fitted_size((image.width, image.height), form.pixels or (image.width, image.height))
    return f"{width}x{height}"


def _stream_event(form: ImagesRequest, kind: str, **fields: Any) -> str:
    name = f"image_generation.{kind}"
    common = {
        "created_at": int(time.time()),
        "quality": "auto",
        "background": "opaque",
        "output_format": form.output_format,
    }
    return server_sent(name, {"type": name, **fields, **common})


def _result_of(run: Run) -> _Result:
    """The run's result.

    Raises:
        RequestError: The run has no image; the message says why.
    """
    if run.record is None or run.record.best_attempt is None:
        _raise_without_image(run)
    return _Result(run, run.record, run.record.best_attempt)


def _raise_without_image(run: Run) -> NoReturn:
    if run.status in ("queued", "running"):
        message = f"the service is being stopped; {run.id} is resumed when it is started again"
        raise RequestError(503, message, code="stopping", headers={"retry-after": "10"})
    if run.status == "waiting":
        message = f"{run.id} waits for a person's review: POST /v1/runs/{run.id}/review"
        raise RequestError(409, message, headers=IN_VAIN)
    if run.status == "cancelled":
        raise RequestError(409, f"{run.id} was cancelled before there was an image", headers=IN_VAIN)
    status = 502 if run.error_kind == "backend" else 400
    code = "content_policy_violation" if run.error_kind == "refused" else run.error_kind
    raise RequestError(status, without_options(run.error or "no image could be made"), code=code, headers=IN_VAIN)


def _usage(results: Sequence[_Result]) -> ImagesUsage:
    usages = [result.record.usage for result in results]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return ImagesUsage(
        input_tokens=prompt_tokens,
        output_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        input_tokens_details={"text_tokens": prompt_tokens, "image_tokens": 0},
    )
