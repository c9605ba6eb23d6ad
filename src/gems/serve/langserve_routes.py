"""The agent as a LangServe runnable: runs, reviews and streams, with a thread id and settings.

LangServe over the graph itself would lose the context and the thread id, and could not take a review.
"""

from __future__ import annotations

import asyncio
import json
import os
import warnings
from collections.abc import AsyncIterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self, TypeVar

from fastapi import Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from starlette.requests import Request

from gems.errors import BackendError, InputError
from gems.graph.state import Review
from gems.serve.admission import Submission
from gems.serve.hanging_up import begun_for_client, ending_with_client
from gems.serve.http_errors import RequestError, as_http
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


ThreadId = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,127})?$")]

_T = TypeVar("_T", bound=BaseModel)


class AgentRequest(BaseModel):
    """A prompt, or an answer to a run that waits for a review."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(default="", max_length=MAX_PROMPT_LENGTH, description="What the image should show.")
    thread_id: ThreadId = Field(default="", description="Your name for related runs; needed to resume one.")
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
        return self


def _without_null(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_null(part) for part in schema if part != {"type": "null"}]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _without_null(part) for name, part in schema.items() if not (name == "default" and part is None)}
    kinds = plain.get("anyOf", ())
    return {**kinds[0], **{k: v for k, v in plain.items() if k != "anyOf"}} if len(kinds) == 1 else plain


_REQUEST: ContextVar[Request | None] = ContextVar("gems_langserve_request", default=None)
"""The request that LangServe answers, which it does not pass on."""


def add_langserve(app: FastAPI, service: Service, links: Links) -> None:
    """Add LangServe's routes for the agent."""
    agent = _Agent(service, links)

    async def check(request: Request) -> None:
        _REQUEST.set(request)
        is_stream = "/stream" in request.url.path
        for fields in await _check_call(request):
            await agent.check(fields, is_stream=is_stream)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic warns about LangServe's own models
        from langserve import add_routes

        add_routes(
            app,
            _AgentRunnable(agent).with_types(input_type=AgentRequest, output_type=dict[str, Any]),
            path=_PATH,
            dependencies=[Depends(check)],
            enable_feedback_endpoint=False,
            enabled_endpoints=_ENDPOINTS,
        )


class _Strict(BaseModel):
    """What LangServe itself would ignore is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, fields: Any) -> Any:
        names = [name for name in fields if name not in cls.model_fields] if isinstance(fields, dict) else []
        if names:
            input_names = ", ".join(AgentRequest.model_fields)
            raise ValueError(
                f"{names[0]!r} has no effect here; a request takes {input_names} in its input, with the settings in "
                "context, and a config takes configurable.thread_id"
            )
        return fields


class _Configurable(_Strict):
    """The thread. Where a graph of LangGraph calls this service, LangGraph adds its place in that graph."""

    thread_id: ThreadId = ""
    checkpoint_ns: Any = None
    checkpoint_id: Any = None
    checkpoint_map: Any = None


class _Config(_Strict):
    """The config of a call. Apart from the thread, LangChain's clients send what is about their own side only."""

    configurable: _Configurable = _Configurable()
    tags: list[str] = []
    metadata: dict[str, Any] = {}
    recursion_limit: int = 25


class _Call(_Strict):
    """The body of LangServe's routes for one input. LangServe itself trusts that fields have these types."""

    input: AgentRequest
    config: _Config = _Config()
    kwargs: dict[str, Any] = Field(default={}, max_length=0)
    diff: Literal[True] = True
    include_names: list[str] = []
    include_types: list[str] = []
    include_tags: list[str] = []
    exclude_names: list[str] = []
    exclude_types: list[str] = []
    exclude_tags: list[str] = []


class _BatchCall(_Strict):
    """The body of LangServe's route for several inputs."""

    inputs: list[AgentRequest]
    config: _Config | list[_Config] = _Config()
    kwargs: dict[str, Any] = Field(default={}, max_length=0)


async def _check_call(request: Request) -> list[dict[str, Any]]:
    """Check a call before LangServe reads it, and give its inputs, which are returned, the thread of the config."""
    config_hash = request.path_params.get("config_hash")
    configs = [_checked(_Config, _config_from_hash(config_hash), "config")] if config_hash else []
    _check_page_file(request.path_params.get("file_path", ""))
    if request.method != "POST":
        return []
    try:
        body = await request.json()
    except json.JSONDecodeError:  # no body
        body = None
    is_batch = request.url.path.endswith("/batch")
    call = _checked(_BatchCall, body) if is_batch else _checked(_Call, body)
    inputs = body["inputs"] if isinstance(call, _BatchCall) else [body["input"]]
    own_configs = call.config if isinstance(call.config, list) else [call.config] * len(inputs)
    for fields, own in zip(inputs, own_configs, strict=False):  # LangServe itself refuses another number of configs
        for config in (*configs, own):
            _put_thread(fields, config.configurable.thread_id)
    return list(inputs)


def _check_page_file(name: str) -> None:
    """Check that the playground has a file, which LangServe opens without asking."""
    import langserve

    folder = Path(langserve.__file__).parent / "playground" / "dist"
    if name and not os.path.isfile(folder / name):  # noqa: PTH113 - pathlib raises an error for too long a name
        raise RequestError(404, "the playground has no such file")


def _config_from_hash(config_hash: str) -> Any:
    """The config in an address of the playground."""
    from langserve.lzstring import LZString

    try:
        decoder: Any = LZString  # without types
        return json.loads(decoder.decompressFromEncodedURIComponent(config_hash))
    except Exception:  # of a text that no playground made
        raise InputError("the address holds no config") from None


def _checked(model: type[_T], content: object, *place: str) -> _T:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise RequestValidationError([{**fault, "loc": (*place, *fault["loc"])} for fault in error.errors()]) from None


def _put_thread(fields: dict[str, Any], thread: str) -> None:
    """Put the config's thread into an input, which LangServe reads after us.

    Raises:
        InputError: The input has another one.
    """
    if thread and (fields.get("thread_id") or thread) != thread:
        raise InputError(f"thread_id is {fields['thread_id']!r}, and {thread!r} in the config: leave one out")
    if thread:
        fields["thread_id"] = thread


class _AgentRunnable(RunnableLambda[Any, Any]):
    """The runnable. Invoked, it gives the run as it stands at its end; streamed, the events before that too.

    It accepts a whole batch or nothing of it.
    """

    def __init__(self, agent: _Agent) -> None:
        super().__init__(agent.draw, name="gems")
        self._agent = agent

    async def abatch(self, inputs: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        """Begin all runs together, then follow them."""
        return await super().abatch(await self._agent.begin_all(inputs), *args, **kwargs)


@dataclass(frozen=True)
class _Agent:
    service: Service
    links: Links

    async def check(self, fields: dict[str, Any], *, is_stream: bool) -> None:
        """Check that a run waits for this answer, or that it would be accepted: in streams, LangServe hides why not."""
        request = AgentRequest.model_validate(fields)
        try:
            if request.resume:
                await asyncio.to_thread(self._waiting, request)
            elif is_stream:
                await asyncio.to_thread(self.service.check, CLIENT.get(), [_submission(request)])
        except (InputError, ConflictError, RefusedError) as error:
            raise as_http(error) from error

    async def begin_all(self, inputs: Sequence[AgentRequest | dict[str, Any]]) -> list[Run]:
        """Begin or resume a run for each request, or raise an HTTP error and begin none."""
        requests = [AgentRequest.model_validate(fields) for fields in inputs]  # LangServe gives dicts
        try:
            return await begun_for_client(self.service, lambda: self._begin_all(requests))
        except (InputError, BackendError, ConflictError, RefusedError) as error:
            raise as_http(error) from error

    async def draw(self, fields: AgentRequest | dict[str, Any] | Run) -> AsyncIterator[dict[str, Any]]:
        """Begin a run, unless it has begun as part of a batch, and yield what happens in it."""
        run = fields if isinstance(fields, Run) else (await self.begin_all([fields]))[0]
        async with ending_with_client(self.service, _REQUEST.get(), [run]):
            async for event in self.service.follow(run.id):
                yield dict(event)
        try:
            run = await asyncio.to_thread(self.service.ledger.run, run.id)
        except ConflictError as error:
            raise as_http(error) from error
        state = None if run.has_ended else await asyncio.to_thread(self.service.values, run)
        yield {"event": "run", **run_view(run, self.links, state).model_dump(mode="json")}
        if run.status == "failed" and run.record is None:  # a stream has said why by now, and hides this
            kind = InputError if run.error_kind == "input" else BackendError
            raise as_http(kind(without_options(run.error or "the run failed")))

    def _begin_all(self, requests: Sequence[AgentRequest]) -> list[Run]:
        client = CLIENT.get()
        waiting = {position: self._waiting(request) for position, request in enumerate(requests) if request.resume}
        if len({run.id for run in waiting.values()}) < len(waiting):
            raise ConflictError("two answers of this batch are for the same run")
        submissions = [_submission(request) for request in requests if not request.resume]
        new_runs = iter(self.service.submit_all(client, submissions))
        return [
            self.service.answer(waiting[position].id, request.resume) if request.resume else next(new_runs)
            for position, request in enumerate(requests)
        ]

    def _waiting(self, request: AgentRequest) -> Run:
        """The run that waits for this answer."""
        if not request.thread_id:
            raise InputError("resume needs the thread_id of the run that waits")
        run = self.service.ledger.latest_of(CLIENT.get().name, request.thread_id)
        if run is None:
            raise InputError(f"there is no thread {request.thread_id!r}")
        if run.status != "waiting":
            raise ConflictError("this run waits for no review")
        return run


def _submission(request: AgentRequest) -> Submission:
    return Submission(request.prompt, request.context, request.thread_id)
