"""How tests ask chat models for filled-in forms, and the names of the chat server (``servers/chat_server.py``)."""

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

from gems.graph.context import GemsContext
from gems.graph.state import GemsState, Requirement, Usage, Verdict
from gems.models.fencing import fence
from gems.models.pocket.grammar import questions_of
from gems.models.pocket.render import draw_scene
from gems.models.pocket.scene import Group, SceneSpec, layout
from gems.models.pocket.vocabulary import ATTRIBUTES, SINGULARS
from gems.models.registry import init_mllm
from gems.models.structured import Answer
from gems.nodes.ask import ask, image_block
from gems.nodes.decomposer import Requirements
from gems.nodes.meter import metered
from gems.nodes.prompt_checks import Plan
from gems.nodes.refiner import Refinement
from gems.nodes.verifier import inspect_image
from gems.options import ChatOptions

Schema = TypeVar("Schema", bound=BaseModel)

KEY = "sk-canary-9b1e"
"""The key that the server's ``locked`` opens for."""

WISH = "two red cars"
SPEC = SceneSpec((Group(2, ATTRIBUTES.index("red"), SINGULARS["car"]),), ())
REQUIREMENTS = [
    Requirement(id=f"r{i}", question=text, kind=question.kind)
    for i, (text, question) in enumerate(questions_of(SPEC), start=1)
]


@contextmanager
def serving(script: str = "chat_server.py") -> Iterator[str]:
    """The address of a server in a process of its own, which ends with the block."""
    path = Path(__file__).parent / "servers" / script
    with Process([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.kill()


class ChatAt:
    """A name of the chat server that nobody else asks: one kind of behaviour, one log."""

    def __init__(self, server: str, behaviour: str = "fine", **options: Any) -> None:
        self._server, self._name = server, f"{behaviour}~{uuid.uuid4().hex[:8]}"
        given = {"api_key": KEY, "timeout": 20.0, **options}
        self.options = ChatOptions(base_url=f"{server}/{self._name}/v1", **given)

    @property
    def model(self) -> BaseChatModel:
        return init_mllm("openai:pocket", self.options)

    @property
    def log(self) -> list[dict[str, Any]]:
        """What was asked: way, form, key and the whole request."""
        with urlopen(f"{self._server}/log/{self._name}") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found

    @property
    def ways(self) -> list[str]:
        return [entry["way"] for entry in self.log]

    def fill(self, form: type[Schema], **kwargs: Any) -> Schema:
        return fill(self.model, form, options=self.options, **kwargs)[0].form

    def look(self) -> list[Verdict]:
        return look(self.model, self.options)[0]

    def context(self, **settings: Any) -> GemsContext:
        return GemsContext(mllm="openai:pocket", chat_options=self.options, memory=False, seed=7, **settings)


def fill(
    model: BaseChatModel,
    form: type[Schema],
    messages: Sequence[BaseMessage] = (),
    options: ChatOptions | None = None,
    **kwargs: Any,
) -> tuple[Answer[Schema], Usage]:
    """One form, and what it cost."""
    state = GemsState(usage=Usage(), run_id=uuid.uuid4().hex)
    with metered(state, "test", GemsContext(chat_options=options or ChatOptions())) as meter:
        answer = ask(meter, model, form, list(messages) or question(form), **kwargs)
    return answer, meter.usage


def look(model: BaseChatModel, options: ChatOptions | None = None) -> tuple[list[Verdict], Usage]:
    """What the model says to an image of two red cars, and what it cost."""
    state = GemsState(usage=Usage(), run_id=uuid.uuid4().hex)
    with metered(state, "test", GemsContext(chat_options=options or ChatOptions())) as meter:
        verdicts = inspect_image(meter, model, REQUIREMENTS, picture())
    return verdicts, meter.usage


def question(form: type[BaseModel], wish: str = WISH) -> list[BaseMessage]:
    """What the nodes ask when they want such a form, in short."""
    if form is Plan:
        return [SystemMessage("Write a prompt for the wish."), HumanMessage(fence("user_prompt", wish))]
    if form is Requirements:
        return [SystemMessage("Break the wish down."), HumanMessage(fence("user_prompt", wish))]
    assert form is Refinement
    report = "\n\n".join(
        [
            fence("user_prompt", wish),
            fence("history", "1.0 plan: 1/2 passed, failed r2"),
            fence("best_attempt", f"prompt: {wish}\nfix (count, no): Are there exactly two cars in the image? three"),
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
