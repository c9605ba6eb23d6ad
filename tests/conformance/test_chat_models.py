"""Every kind of chat model, held to the same suite."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from chatting import ChatAt
from conformance.chat_suite import ChatConformance
from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel
from tiny_chat import save_tiny_chat

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
def chat(request: pytest.FixtureRequest, chat_server: str) -> ChatAt:
    behaviour, way = request.param
    return ChatAt(chat_server, behaviour, structured=way, temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_chat(tmp_path_factory.mktemp("chat") / "random")


class TestPocket(ChatConformance):
    @pytest.fixture
    def model(self) -> BaseChatModel:
        return init_mllm("pocket")


@pytest.mark.slow
class TestServer(ChatConformance):
    """Over HTTP, in every way that a structured answer can be asked for, and on servers that know few of them."""

    @pytest.fixture
    def model(self, chat: ChatAt) -> BaseChatModel:
        return chat.model

    @pytest.fixture
    def options(self, chat: ChatAt) -> ChatOptions:
        return chat.options


class TestTransformers(ChatConformance):
    """Random weights: what it writes is nonsense, and held to the form of an answer while it is written."""

    forms: ClassVar[tuple[type[BaseModel], ...]] = (Plan,)

    @pytest.fixture
    def options(self) -> ChatOptions:
        torch.manual_seed(5)  # greedy, it would write the same letter for ever
        return ChatOptions(device="cpu", max_tokens=800, temperature=1.0)

    @pytest.fixture
    def model(self, folder: Path, options: ChatOptions) -> BaseChatModel:
        return init_mllm(f"transformers:{folder}", options)

    @pytest.fixture
    def steady(self, folder: Path) -> BaseChatModel:
        model: Any = init_mllm(f"transformers:{folder}", ChatOptions(device="cpu", max_tokens=24))
        return model
