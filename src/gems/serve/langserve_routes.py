"""The agent behind LangServe: one runnable for runs, reviews and streams, with thread id and settings.

LangServe over the graph itself would lose the context and the thread id, and has no way to send a review.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Self

from langchain_core.runnables import Runnable, RunnableLambda
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gems.errors import BackendError, InputError
from gems.graph.state import Review
from gems.serve.http_errors import as_http
from gems.serve.ledger import Run
from gems.serve.links import Links
from gems.serve.middleware import CLIENT
from gems.serve.service import ConflictError, RefusedError, Service
from gems.serve.settings import RunSettings
from gems.serve.views import run_view

__all__ = ["AgentRequest", "agent_of"]


class AgentRequest(BaseModel):
    """A wish, or an answer to the question of a run that waits."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(default="", max_length=4000, description="What the image should show.")
    thread_id: str = Field(
        default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$", description="A name of yours; needed to resume."
    )
    context: RunSettings = Field(default_factory=RunSettings, description="What differs from the service's own.")
    resume: Review | None = Field(default=None, description="The answer to the thread's question, instead of a prompt.")

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As LangServe's playground can make a form of it: nothing is null, and all may be left out."""
        schema: dict[str, Any] = _without_null(super().model_json_schema(*args, **kwargs))
        schema["$defs"]["Review"].pop("required")
        return schema

    @field_validator("resume", mode="before")
    @classmethod
    def _left_empty(cls, resume: Any) -> Any:
        """A form that nobody has filled in."""
        return None if isinstance(resume, dict) and not any(resume.values()) else resume

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if bool(self.prompt) == (self.resume is not None):
            raise ValueError("give a prompt, or with a thread_id the answer to resume with")
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


def agent_of(service: Service, links: Links) -> Runnable[Any, Any]:
    """The runnable: invoked, it gives the run as it stands at its end; streamed, what happens before that too."""

    def begin(request: AgentRequest) -> Run:
        client = CLIENT.get()
        if request.resume is None:
            return service.submit(client, request.prompt, request.context, thread=request.thread_id)
        waiting = service.ledger.latest_of(client.name, request.thread_id)
        if waiting is None:
            raise InputError(f"there is no thread {request.thread_id!r}")
        return service.answer(client, waiting.id, request.resume)

    async def draw(given: AgentRequest | dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        request = AgentRequest.model_validate(given)  # LangServe hands over a dictionary of its fields
        try:
            run = await asyncio.to_thread(begin, request)
        except (InputError, BackendError, ConflictError, RefusedError) as error:
            raise as_http(error) from error
        async for event in service.follow(run.id):
            yield event
        ended = await asyncio.to_thread(service.ledger.run, run.id)
        if ended.status == "failed" and ended.record is None:
            kind = InputError if ended.error_kind == "input" else BackendError
            raise as_http(kind(ended.error or "the run failed"))
        state = None if ended.has_ended else await asyncio.to_thread(service.values, ended)
        yield {"event": "run", **run_view(ended, links, state).model_dump(mode="json")}

    return RunnableLambda(draw, name="gems").with_types(input_type=AgentRequest, output_type=dict[str, Any])
