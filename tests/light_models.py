"""Models without weights that import no heavy library:
``--generator python:light_models:make_generator --mllm python:light_models:make_chat``.

The generator paints one flat colour that depends on prompt and seed, and the chat model judges an image by that colour.
About a third of the prompts are solved in the first round, the same ones in every process.

Two environment variables control the models. LIGHT_PACE names a file with the seconds per image; a test can change it
at any time. LIGHT_IMPORTS names a folder where each process that draws or chats lists the heavy libraries that it has
imported.
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
"""Command-line options that select both models. They need ``tests`` on PYTHONPATH."""

HEAVY = ("torch", "transformers", "diffusers", "faiss", "scipy")


class LightGenerator(PaintGenerator):
    """A ``Local`` generator: on Ray it runs in its own process."""

    batch_size = 1
    replicas = SimpleNamespace(devices=("cpu",))

    def load(self) -> None:
        """Load nothing."""
        _record_imports("loaded")

    def generate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> Any:
        _record_imports("drew")
        if pace_file := os.environ.get("LIGHT_PACE"):
            time.sleep(len(requests) * float(Path(pace_file).read_text()))
        return super().generate(requests, on_step=on_step)


def make_generator(options: GeneratorOptions) -> LightGenerator:
    return LightGenerator()


def make_chat(options: ChatOptions) -> ScriptedChatModel:
    return ScriptedChatModel(script=_answer)


def _answer(form: str, messages: list[Any], _: int) -> Any:
    _record_imports("chatted")
    text = str(messages[-1].text)
    if form == "Requirements":
        prompt = text.split(">")[1].split("<")[0].strip()
        questions = {"object": f"Is there {prompt}?", "count": f"Does it show {prompt}?"}
        return {"requirements": [{"question": question[:200], "kind": kind} for kind, question in questions.items()]}
    if form == "Verdicts":
        red = _red(messages[-1])
        passed = {"r1": red % 2 == 1, "r2": red % 3 != 0}
        return {"verdicts": [{"id": r, "answer": "yes" if p else "no", "confidence": 0.9} for r, p in passed.items()]}
    if form == "Refinement":
        return {"experience": "chance", "strategy": "reseed", "prompt": ""}
    raise AssertionError(form)


def _red(message: Any) -> int:
    [image] = [part for part in message.content if part["type"] == "image"]
    with Image.open(io.BytesIO(base64.b64decode(image["base64"]))) as picture:
        red, _, _ = picture.convert("RGB").getpixel((0, 0))  # type: ignore[misc]
    return int(red)


def _record_imports(activity: str) -> None:
    if folder := os.environ.get("LIGHT_IMPORTS"):
        heavy = [name for name in HEAVY if name in sys.modules]
        Path(folder, f"{activity}-{os.getpid()}").write_text(" ".join(heavy))
