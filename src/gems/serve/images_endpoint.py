"""OpenAI's images endpoint over the whole agent: every tool that takes an image model can use it as one.

The wire format is that of https://platform.openai.com/docs/api-reference/images, streaming included. ``seed`` is an
addition that vLLM-Omni and SGLang have too. What an image model has and an agent has not (quality, style, background)
is accepted and without effect.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Final, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from gems.graph.context import MAX_SEED
from gems.memory.image_store import open_images
from gems.serve.http_errors import RequestError
from gems.serve.ledger import Run
from gems.serve.links import Format, Links, as_asked, stored
from gems.serve.middleware import CLIENT
from gems.serve.run_routes import ERRORS, IdempotencyKey, server_sent
from gems.serve.service import ConflictError, Service, StoppingError
from gems.serve.settings import RunSettings, images_of

__all__ = ["router_of"]

_SIZE: Final = re.compile(r"(\d{2,4})x(\d{2,4})")
_SHORTEST, _LONGEST = 16, 4096


class ImagesRequest(BaseModel):
    """What to draw."""

    # Other image models' own fields come along: they are not ours to refuse.
    model_config = ConfigDict(extra="ignore")

    prompt: str = Field(min_length=1, max_length=4000, description="What the image should show.")
    model: str = Field(default="", max_length=200, description="See /v1/models; empty for the first.")
    n: int = Field(default=1, ge=1, le=10, description="Images, each by a run of its own.")
    size: str = Field(default="auto", description="auto, or WIDTHxHEIGHT: the image is scaled to fit in.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Of the first image's run.")
    response_format: Literal["b64_json", "url"] = "b64_json"
    output_format: Format = "png"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3, description="With stream: attempts to show on the way, at most.")

    @field_validator("size")
    @classmethod
    def _size(cls, size: str) -> str:
        found = _SIZE.fullmatch(size)
        if size != "auto" and not (found and all(_SHORTEST <= int(side) <= _LONGEST for side in found.groups())):
            raise ValueError(f"auto, or WIDTHxHEIGHT with sides from {_SHORTEST} to {_LONGEST}")
        return size

    @property
    def pixels(self) -> tuple[int, int] | None:
        """Width and height, if they are asked for."""
        found = _SIZE.fullmatch(self.size)
        return (int(found[1]), int(found[2])) if found else None


class RunSummary(BaseModel):
    """What became of the run: this is not OpenAI's."""

    run: str
    outcome: str
    score: float
    rounds: int
    images: int


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str
    gems: RunSummary


class ImagesUsage(BaseModel):
    """Tokens of the chat models."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]


class ImagesResponse(BaseModel):
    """The images."""

    created: int
    data: list[ImageData]
    size: str
    output_format: Format
    usage: ImagesUsage


class Model(BaseModel):
    """What may be given as model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: Literal["gems"] = "gems"


class ModelList(BaseModel):
    """All of them."""

    object: Literal["list"] = "list"
    data: list[Model]


def router_of(service: Service, links: Links) -> APIRouter:
    """The routes."""
    router, names = APIRouter(tags=["images"]), service.settings.served_names

    @router.get("/v1/models", responses={401: ERRORS[401]})
    async def models() -> ModelList:
        """Names that may be given as model: all of them are this agent."""
        return ModelList(data=[Model(id=name) for name in names])

    streamed: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}

    @router.post("/v1/images/generations", responses={**ERRORS, **streamed}, response_model=ImagesResponse)
    async def generations(
        asked: ImagesRequest, request: Request, idempotency_key: IdempotencyKey = None
    ) -> ImagesResponse | StreamingResponse:
        """Draw, check and draw again; what comes back is the best image. With ``stream``: server-sent events."""
        if asked.model and asked.model not in names:
            told = f"there is no model {asked.model!r}; there is {', '.join(names)}"
            raise RequestError(404, told, code="model_not_found")
        if asked.stream and asked.n > 1:
            raise RequestError(400, "stream takes one image: leave n away")
        runs = await run_in_threadpool(_submit_all, asked, idempotency_key)
        base = str(request.base_url).rstrip("/")
        if asked.stream:
            return StreamingResponse(_stream(asked, runs[0], base), media_type="text/event-stream")
        ended = [await service.wait(run.id) for run in runs]
        for run in ended:
            _insist_on_image(run)
        data = [await run_in_threadpool(_data, asked, run, base) for run in ended]
        return ImagesResponse(
            created=int(time.time()),
            data=data,
            size=asked.size,
            output_format=asked.output_format,
            usage=_usage(ended),
        )

    def _submit_all(asked: ImagesRequest, key: str | None) -> list[Run]:
        """All or none: what comes before one that is refused is taken back."""
        runs = list[Run]()
        try:
            for k in range(asked.n):
                runs.append(_submit(asked, k, key))
        except Exception:
            for run in runs:
                with suppress(ConflictError, StoppingError):
                    service.cancel(CLIENT.get(), run)
            raise
        return runs

    def _submit(asked: ImagesRequest, k: int, key: str | None) -> Run:
        # Seeds of one run's rounds follow each other: those of the next image begin further on.
        seed = None if asked.seed is None else (asked.seed + 1_000 * k) % (MAX_SEED + 1)
        settings = RunSettings.model_validate({} if seed is None else {"seed": seed})
        own_key = f"{key}/{k}" if key and asked.n > 1 else key
        return service.submit(CLIENT.get(), asked.prompt, settings, idempotency_key=own_key)

    async def _stream(asked: ImagesRequest, run: Run, base: str) -> AsyncIterator[str]:
        shown, latest = 0, ""
        async for event in service.follow(run.id):
            # An attempt that another one follows was not the last word; the last one comes whole.
            if event["event"] == "prompt" and latest and shown < asked.partial_images:
                png = await run_in_threadpool(_encoded, asked, run, latest)
                yield server_sent(
                    "image_generation.partial_image",
                    {
                        "type": "image_generation.partial_image",
                        "b64_json": png,
                        "partial_image_index": shown,
                        **_about(asked),
                    },
                )
                shown, latest = shown + 1, ""
            elif event["event"] == "image":
                latest = event["sha256"]
        ended = await run_in_threadpool(service.ledger.run, run.id)
        try:
            _insist_on_image(ended)
        except RequestError as error:
            fault = {"message": error.detail, "type": "server_error", "code": error.code, "param": None}
            yield server_sent("error", {"type": "error", "error": fault})
            return
        data = await run_in_threadpool(_data, asked, ended, base)
        whole = data.b64_json or await run_in_threadpool(_encoded, asked, ended, _best(ended)["image"]["sha256"])
        yield server_sent(
            "image_generation.completed",
            {
                "type": "image_generation.completed",
                "b64_json": whole,
                "revised_prompt": data.revised_prompt,
                "gems": data.gems.model_dump(),
                "usage": _usage([ended]).model_dump(),
                **_about(asked),
            },
        )

    def _about(asked: ImagesRequest) -> dict[str, Any]:
        return {
            "created_at": int(time.time()),
            "size": asked.size,
            "quality": "auto",
            "background": "opaque",
            "output_format": asked.output_format,
        }

    def _encoded(asked: ImagesRequest, run: Run, sha256: str) -> str:
        png = stored(open_images(images_of(service.settings, run.user)), sha256)
        if png is None:
            raise RequestError(502, "the image is gone from the store")
        return base64.b64encode(as_asked(png, size=asked.pixels, form=asked.output_format)).decode("ascii")

    def _data(asked: ImagesRequest, run: Run, base: str) -> ImageData:
        assert run.record is not None
        best, usage = _best(run), run.record["usage"]
        by_url = asked.response_format == "url"
        return ImageData(
            b64_json=None if by_url else _encoded(asked, run, best["image"]["sha256"]),
            url=f"{base}{links.image(run.user, best['image']['sha256'])}" if by_url else None,
            revised_prompt=best["prompt"],
            gems=RunSummary(
                run=run.id,
                outcome=run.record["outcome"],
                score=run.record["score"],
                rounds=run.record["attempts"][-1]["round"],
                images=usage["images"],
            ),
        )

    return router


def _best(run: Run) -> dict[str, Any]:
    assert run.record is not None
    best: dict[str, Any] = run.record["attempts"][run.record["best"]]
    return best


def _insist_on_image(run: Run) -> None:
    """Be sure that there is one to give.

    Raises:
        RequestError: There is none; why, is told.
    """
    if run.record is not None and run.record["best"] is not None:
        return
    if run.status in ("queued", "running"):
        told = f"the service is being stopped; {run.id} goes on when it is there again"
        raise RequestError(503, told, code="stopping", headers={"retry-after": "10"})
    if run.status == "waiting":
        raise RequestError(409, f"{run.id} waits for a person's review: POST /v1/runs/{run.id}/review")
    if run.status == "cancelled":
        raise RequestError(409, f"{run.id} was cancelled before there was an image")
    status = 400 if run.error_kind == "input" else 502
    raise RequestError(status, run.error or "no image could be made", code=run.error_kind)


def _usage(runs: list[Run]) -> ImagesUsage:
    usages = [run.record["usage"] for run in runs if run.record]
    read, written = (sum(u[name] for u in usages) for name in ("prompt_tokens", "completion_tokens"))
    return ImagesUsage(
        input_tokens=read,
        output_tokens=written,
        total_tokens=read + written,
        input_tokens_details={"text_tokens": read, "image_tokens": 0},
    )
