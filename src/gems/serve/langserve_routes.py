"""The agent as a LangServe runnable: runs, reviews and streams, with a thread id and settings.

LangServe over the graph itself would lose the context and the thread id, and could not take a review.
"""

from __future__ import annotations

import asyncio
import json
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.requests import Request

from gems.errors import BackendError, InputError
from gems.graph.state import Review
from gems.serve.http_errors import as_http
from gems.serve.ledger import Run
from gems.serve.links import Links
from gems.serve.middleware import CLIENT
from gems.serve.refusals import ConflictError, RefusedError
from gems.serve.service import Service
from gems.serve.settings import RunSettings
from gems.serve.views import run_view, without_options
from gems.wording import MAX_PROMPT_LENGTH

if TYPE_CHECKING:  # at run time, pydantic warns about LangServe's own models
    from langserve.server import EndpointName

__all__ = ["AgentRequest", "add_langserve"]

_PATH: Final = "/gems"
_ENDPOINTS: Final[tuple[EndpointName, ...]] = (
    *("invoke", "batch", "stream", "stream_log", "stream_events", "playground"),
    *("input_schema", "output_schema", "config_schema", "config_hashes"),
)
"""All of LangServe's but those that send feedback to LangSmith."""


class AgentRequest(BaseModel):
    """A prompt, or an answer to a run that waits for a review."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(default="", max_length=MAX_PROMPT_LENGTH, description="What the image should show.")
    thread_id: str = Field(
        default="",
        pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$",
        description="Your name for related runs; needed to resume one.",
    )
    context: RunSettings = Field(
        default_factory=RunSettings, description="Settings that differ from the service's own."
    )
    resume: Review | None = Field(
        default=None, description="Instead of a prompt: the answer to the thread's run, which waits for it."
    )

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """A schema that LangServe's playground can turn into a form: nothing is null, and every field is optional."""
        schema: dict[str, Any] = _without_null(super().model_json_schema(*args, **kwargs))
        schema["$defs"]["Review"].pop("required")
        return schema

    @field_validator("resume", mode="before")
    @classmethod
    def _ignore_empty_form(cls, resume: Any) -> Any:
        """The playground sends the review's form even if nobody filled it in."""
        return None if isinstance(resume, dict) and not any(resume.values()) else resume

    @model_validator(mode="after")
    def _check_either(self) -> Self:
        if bool(self.prompt) == (self.resume is not None):
            raise ValueError("give either a prompt, or a thread_id and the answer to resume with")
        if self.resume is not None and not self.thread_id:
            raise ValueError("resume needs the thread_id of the run that waits")
        return self


def _without_null(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_null(part) for part in schema if part != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _without_null(part) for name, part in schema.items() if not (name == "default" and part is None)}
    kinds = plain.get("anyOf", ())
    return {**kinds[0], **{k: v for k, v in plain.items() if k != "anyOf"}} if len(kinds) == 1 else plain


def add_langserve(app: FastAPI, service: Service, links: Links) -> None:
    """Add LangServe's routes for the agent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic warns about LangServe's own models
        from langserve import add_routes

        add_routes(
            app,
            _runnable(service, links),
            path=_PATH,
            dependencies=[Depends(_check_body)],
            enable_feedback_endpoint=False,
            enabled_endpoints=_ENDPOINTS,
        )


class _Call(BaseModel):
    """The body of LangServe's routes for one input. LangServe itself trusts that fields have these types."""

    input: AgentRequest
    config: dict[str, Any] = {}
    include_names: list[str] = []
    include_types: list[str] = []
    include_tags: list[str] = []
    exclude_names: list[str] = []
    exclude_types: list[str] = []
    exclude_tags: list[str] = []


class _BatchCall(BaseModel):
    """The body of LangServe's route for several inputs."""

    inputs: list[AgentRequest]
    config: dict[str, Any] | list[dict[str, Any]] = {}


async def _check_body(request: Request) -> None:
    """Check a body before LangServe reads it."""
    if request.method != "POST":
        return
    try:
        body = await request.json()
    except json.JSONDecodeError:  # no body
        body = None
    try:
        (_BatchCall if request.url.path.endswith("/batch") else _Call).model_validate(body)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def _runnable(service: Service, links: Links) -> Runnable[Any, Any]:
    """The runnable. Invoked, it gives the run as it stands at its end; streamed, the events before that too."""
    agent = _Agent(service, links)
    return RunnableLambda(agent.draw, name="gems").with_types(input_type=AgentRequest, output_type=dict[str, Any])


@dataclass(frozen=True)
class _Agent:
    service: Service
    links: Links

    async def draw(self, fields: AgentRequest | dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        request = AgentRequest.model_validate(fields)  # LangServe gives a dict
        try:
            run = await asyncio.to_thread(self._begin, request)
        except (InputError, BackendError, ConflictError, RefusedError) as error:
            raise as_http(error) from error
        async for event in self.service.follow(run.id):
            yield dict(event)
        run = await asyncio.to_thread(self.service.ledger.run, run.id)
        if run.status == "failed" and run.record is None:
            kind = InputError if run.error_kind == "input" else BackendError
            raise as_http(kind(without_options(run.error or "the run failed")))
        state = None if run.has_ended else await asyncio.to_thread(self.service.values, run)
        yield {"event": "run", **run_view(run, self.links, state).model_dump(mode="json")}

    def _begin(self, request: AgentRequest) -> Run:
        client = CLIENT.get()
        if request.resume is None:
            return self.service.submit(client, request.prompt, request.context, thread=request.thread_id)
        waiting = self.service.ledger.latest_of(client.name, request.thread_id)
        if waiting is None:
            raise InputError(f"there is no thread {request.thread_id!r}")
        return self.service.answer(waiting.id, request.resume)
