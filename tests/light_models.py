"""Models that need no weights and import neither torch nor any other heavy library, by name:
``--generator python:light_models:make_generator --mllm python:light_models:make_chat``.

The generator paints one flat colour that follows from prompt and seed; the chat model judges an image by that colour.
So about a third of the prompts is solved in the first round, and the same in every process.

Two variables of the environment matter to a process that draws or chats. LIGHT_PACE names a file with the seconds that
an image takes, which a test may change meanwhile. In the folder LIGHT_IMPORTS, each process leaves a file with the
heavy libraries that it has imported.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fakes import PaintGenerator, ScriptedChatModel
from PIL import Image

from gems.models.generators import ImageRequest, StepCallback
from gems.options import ChatOptions, GeneratorOptions

GENERATOR = "python:light_models:make_generator"
CHAT = "python:light_models:make_chat"
OPTIONS = ("--generator", GENERATOR, "--mllm", CHAT)
"""Of the command line. ``tests`` has to be on PYTHONPATH."""

HEAVY = ("torch", "transformers", "diffusers", "faiss", "scipy")


class LightGenerator(PaintGenerator):
    """Is run like a model in this process: on Ray it has a process of its own."""

    batch_size = 1
    replicas = SimpleNamespace(devices=("cpu",))

    def load(self) -> None:
        """There is nothing to load."""
        _note_imports("loaded")

    def generate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> Any:
        _note_imports("drew")
        pace = os.environ.get("LIGHT_PACE")
        time.sleep(len(requests) * float(Path(pace).read_text()) if pace else 0)
        return super().generate(requests, on_step=on_step)


def make_generator(options: GeneratorOptions) -> LightGenerator:
    return LightGenerator()


def make_chat(options: ChatOptions) -> ScriptedChatModel:
    return ScriptedChatModel(script=_answer)


def _answer(form: str, messages: list[Any], _: int) -> Any:
    _note_imports("chatted")
    text = str(messages[-1].text)
    if form == "Requirements":
        words = text.split(">")[1].split("<")[0].strip()
        questions = {"object": f"Is there {words}?", "count": f"Does it show {words}?"}
        return {"requirements": [{"question": question[:200], "kind": kind} for kind, question in questions.items()]}
    if form == "Verdicts":
        red = _red(messages[-1])
        answers = {"r1": red % 2 == 1, "r2": red % 3 != 0}
        return {"verdicts": [{"id": r, "answer": "yes" if a else "no", "confidence": 0.9} for r, a in answers.items()]}
    if form == "Refinement":
        return {"experience": "chance", "strategy": "reseed", "prompt": ""}
    raise AssertionError(form)


def _red(message: Any) -> int:
    [image] = [part for part in message.content if part["type"] == "image"]
    with Image.open(io.BytesIO(base64.b64decode(image["base64"]))) as picture:
        red, _, _ = picture.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red)


def _note_imports(what: str) -> None:
    if folder := os.environ.get("LIGHT_IMPORTS"):
        heavy = [name for name in HEAVY if name in sys.modules]
        Path(folder, f"{what}-{os.getpid()}").write_text(" ".join(heavy))
