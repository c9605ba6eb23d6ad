"""Runs the chat model conformance suite on every kind of chat model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from chatting import ChatEndpoint
from conformance.chat_suite import ChatConformance
from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel
from tiny_chat import save_tiny_chat

from gems.authority import OPERATOR
from gems.models.registry import init_mllm
from gems.nodes.prompt_checks import Plan
from gems.options import ChatOptions

WAYS = [
    ("fine", "auto"),
    ("fine", "json_schema"),
    ("fine", "tool"),
    ("fine", "json_mode"),
    ("fine", "text"),
    ("no-schema", "auto"),
    ("thinks-aloud", "auto"),
]


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def chat(request: pytest.FixtureRequest, chat_server: str) -> ChatEndpoint:
    behaviour, way = request.param
    return ChatEndpoint(chat_server, behaviour, structured=way, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("chat") / "random")


class TestPocket(ChatConformance):
    @pytest.fixture
    def model(self) -> BaseChatModel:
        return init_mllm("pocket")


class TestOpen(ChatConformance):
    @pytest.fixture
    def model(self) -> BaseChatModel:
        return init_mllm("open")


@pytest.mark.slow
class TestServer(ChatConformance):
    """Over HTTP: every way to request a structured answer, and servers that support only some of them."""

    @pytest.fixture
    def model(self, chat: ChatEndpoint) -> BaseChatModel:
        return chat.model

    @pytest.fixture
    def options(self, chat: ChatEndpoint) -> ChatOptions:
        return chat.options


class TestTransformers(ChatConformance):
    """Random weights: the model writes nonsense, and constrained decoding makes it fit the form."""

    forms: ClassVar[tuple[type[BaseModel], ...]] = (Plan,)

    @pytest.fixture
    def options(self) -> ChatOptions:
        torch.manual_seed(5)  # with greedy decoding it would repeat one letter forever
        return ChatOptions(device="cpu", max_tokens=800, temperature=1.0)

    @pytest.fixture
    def model(self, folder: Path, options: ChatOptions) -> BaseChatModel:
        return init_mllm(f"transformers:{folder}", options, OPERATOR)

    @pytest.fixture
    def steady(self, folder: Path) -> BaseChatModel:
        model: Any = init_mllm(f"transformers:{folder}", ChatOptions(device="cpu", max_tokens=24), OPERATOR)
        return model
