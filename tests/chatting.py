"""Helpers that ask chat models to fill in forms, and clients of the test chat server (``servers/chat_server.py``)."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import urlopen

import numpy as np
from forked import Process
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
from pydantic import BaseModel

from gems.authority import OPERATOR
from gems.faces import run_here
from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Requirement, Usage, Verdict
from gems.models.fencing import fence
from gems.models.pocket.grammar import questions_of
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Group, SceneSpec, layout
from gems.models.pocket.vocabulary import ATTRIBUTES, SINGULARS
from gems.models.registry import init_mllm
from gems.nodes.ask import Answer, ask, image_block
from gems.nodes.decomposer import Requirements
from gems.nodes.examiner import inspect_image
from gems.nodes.meter import metered
from gems.nodes.prompt_checks import Plan
from gems.nodes.refiner import Refinement
from gems.options import ChatOptions

Schema = TypeVar("Schema", bound=BaseModel)

KEY = "sk-canary-9b1e"
"""The API key that the server's ``locked`` behaviour accepts."""

PROMPT = "two red cars"
SPEC = SceneSpec((Group(2, ATTRIBUTES.index("red"), SINGULARS["car"]),), ())
REQUIREMENTS = [
    Requirement(id=f"r{i}", question=text, kind=question.kind)
    for i, (text, question) in enumerate(questions_of(SPEC), start=1)
]


@contextmanager
def serving(script: str = "chat_server.py") -> Iterator[str]:
    """Run a test server in its own process until the block ends, and yield its address."""
    path = Path(__file__).parent / "servers" / script
    with Process([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


class ChatEndpoint:
    """A unique endpoint of the chat server, with one behaviour and its own log."""

    def __init__(self, server: str, behaviour: str = "fine", **options: Any) -> None:
        self._server, self._name = server, f"{behaviour}~{uuid.uuid4().hex[:8]}"
        settings = {"api_key": KEY, "timeout": 20.0, **options}
        self.options = ChatOptions(base_url=f"{server}/{self._name}/v1", **settings)

    @property
    def model(self) -> BaseChatModel:
        return init_mllm("openai:pocket", self.options, OPERATOR)

    @property
    def log(self) -> list[dict[str, Any]]:
        """The requests so far, each with its way, form, key and whole body."""
        with urlopen(f"{self._server}/log/{self._name}") as answer:
            entries: list[dict[str, Any]] = json.load(answer)
        return entries

    @property
    def ways(self) -> list[str]:
        return [entry["way"] for entry in self.log]

    def fill(self, form: type[Schema], **kwargs: Any) -> Schema:
        return fill(self.model, form, options=self.options, **kwargs)[0].form

    def look(self) -> list[Verdict]:
        return look(self.model, self.options)[0]

    def context(self, **settings: Any) -> GemsContext:
        return GemsContext(
            mllm="openai:pocket", chat_options=self.options, memory=False, seed=7, **settings
        ).as_operator()


def fill(
    model: BaseChatModel,
    form: type[Schema],
    messages: Sequence[BaseMessage] = (),
    options: ChatOptions | None = None,
    run_id: str = "",
    **kwargs: Any,
) -> tuple[Answer[Schema], Usage]:
    """Have the model fill in one form; return the form and its usage."""
    state = GemsState(usage=Usage(), run_id=run_id or uuid.uuid4().hex)
    with metered(state, "test", GemsContext(chat_options=options or ChatOptions())) as meter:
        answer = run_here(ask(meter, model, form, list(messages) or question(form), **kwargs))
    return answer, meter.usage


def look(model: BaseChatModel, options: ChatOptions | None = None) -> tuple[list[Verdict], Usage]:
    """Have the model inspect an image of two red cars; return its verdicts and their usage."""
    state = GemsState(usage=Usage(), run_id=uuid.uuid4().hex)
    with metered(state, "test", GemsContext(chat_options=options or ChatOptions())) as meter:
        verdicts = run_here(inspect_image(meter, model, REQUIREMENTS, picture())).verdicts
    return verdicts, meter.usage


def question(form: type[BaseModel], prompt: str = PROMPT) -> list[BaseMessage]:
    """A short version of the messages with which a node asks for this form."""
    if form is Plan:
        return [SystemMessage("Write a prompt for the wish."), HumanMessage(fence("user_prompt", prompt))]
    if form is Requirements:
        return [SystemMessage("Break the wish down."), HumanMessage(fence("user_prompt", prompt))]
    assert form is Refinement
    report = "\n\n".join(
        [
            fence("user_prompt", prompt),
            fence("history", "1.0 plan: 1/2 passed, failed r2"),
            fence("best_attempt", f"prompt: {prompt}\nfix (count, no): Are there exactly two cars in the image? three"),
        ]
    )
    return [SystemMessage("Improve the prompt."), HumanMessage([block(), {"type": "text", "text": report}])]


def block(longest: int = 1024) -> dict[str, Any]:
    return image_block(picture(), longest)


@cache
def picture() -> bytes:
    """Two red cars, 512 pixels a side."""
    file = io.BytesIO()
    draw_scene(layout(SPEC, np.random.default_rng(3)).items).save(file, "PNG")
    return file.getvalue()
