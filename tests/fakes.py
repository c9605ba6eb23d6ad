"""Fake models: a chat model that follows a script, and a generator that can be made to fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from PIL import Image
from pydantic import PrivateAttr

from gems.errors import BackendError
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback

Script = Callable[[str, list[BaseMessage], int], Any]
"""(schema or "Plan", messages, call number from 0) -> arguments, list of (tool, args), text, message or exception."""


class ScriptedChatModel(BaseChatModel):
    """Answers each structured call with what the script returns, and records the calls."""

    script: Script
    _calls: list[tuple[str, list[BaseMessage], list[str]]] = PrivateAttr(default_factory=list)
    _schemas: dict[str, dict[str, Any]] = PrivateAttr(default_factory=dict)
    _lock: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def calls(self) -> list[tuple[str, list[BaseMessage], list[str]]]:
        return self._calls

    def schema(self, name: str) -> dict[str, Any]:
        """The JSON schema of a form, as the last call offered it."""
        return self._schemas[name]

    def count(self, schema: str) -> int:
        return sum(name == schema for name, _, _ in self._calls)

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        kwargs.pop("tool_choice", None)
        return self.bind(tools=[convert_to_openai_tool(t) for t in tools], **kwargs)

    def _generate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, *, tools: Any = (), **kwargs: Any
    ) -> ChatResult:
        names = [t["function"]["name"] for t in tools] or [json.loads(messages[-1].text.rpartition("\n")[2])["title"]]
        schema = "Plan" if "Plan" in names else names[0]
        self._schemas |= {t["function"]["name"]: t["function"]["parameters"] for t in tools}
        with self._lock:
            index = self.count(schema)
            self._calls.append((schema, messages, names))
        answer = self.script(schema, messages, index)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, AIMessage):
            return ChatResult(generations=[ChatGeneration(message=answer)])
        if isinstance(answer, dict) and not tools:  # asked for in words
            answer = json.dumps(answer)
        calls = [(schema, answer)] if isinstance(answer, dict) else answer if isinstance(answer, list) else []
        message = AIMessage(
            content=answer if isinstance(answer, str) else "",
            tool_calls=[
                {"name": name, "args": args, "id": f"c{len(self._calls)}-{i}", "type": "tool_call"}
                for i, (name, args) in enumerate(calls)
            ],
            usage_metadata={"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
        )
        return ChatResult(generations=[ChatGeneration(message=message)])


class PaintGenerator:
    """Paints one flat colour per request, the same for equal requests. ``fail`` chooses the requests that fail."""

    name = "paint"
    fingerprint = "0" * 64
    redraws_edits = False

    def __init__(
        self,
        fail: Callable[[ImageRequest, int], Exception | None] | None = None,
        seconds: float = 0,
        *,
        edits: bool = False,
        takes_negative_prompts: bool = False,
    ) -> None:
        self.edits, self.takes_negative_prompts = edits, takes_negative_prompts
        self.requests: list[ImageRequest] = []
        self._fail = fail
        self._seconds = seconds

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        results: list[GeneratedImage | BackendError] = []
        for index, request in enumerate(requests):
            self.requests.append(request)
            error = self._fail(request, len(self.requests) - 1) if self._fail else None
            if isinstance(error, BackendError):
                results.append(error)
                continue
            if error is not None:
                raise error
            if on_step:
                on_step(Step(index, 1, 1))
            time.sleep(self._seconds)
            shade = sum(request.prompt.encode()) + request.seed
            if request.edit is not None:  # the colour depends on the image that the edit starts from
                shade += sum(request.edit.image.getpixel((0, 0)))  # type: ignore[arg-type]
            color = (shade % 256, shade // 256 % 256, shade // 65536 % 256)
            results.append(GeneratedImage(request, Image.new("RGB", (32, 32), color)))
        return results
