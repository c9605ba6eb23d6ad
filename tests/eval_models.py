"""Models for evaluations: a generator that fails some prompts, and judges with and without log-probabilities.

``--generator python:eval_models:make_generator``; ``--judge python:eval_models:make_judge`` or ``make_mute_judge``.
The environment variable EVAL_FAILS is a JSON object: by a part of a prompt, "backend" or "raise" or "input".
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from fakes import PaintGenerator
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from pydantic import Field

from gems.errors import BackendError, InputError
from gems.models.generators import ImageRequest
from gems.options import ChatOptions, GeneratorOptions

GENERATOR = "python:eval_models:make_generator"
JUDGE = "python:eval_models:make_judge"
MUTE_JUDGE = "python:eval_models:make_mute_judge"

ERRORS = {
    "backend": BackendError("the server is on fire", retryable=False),
    "raise": RuntimeError("a bug in the model"),
    "input": InputError("this prompt cannot be drawn"),
}


def make_generator(options: GeneratorOptions) -> PaintGenerator:
    def fail(request: ImageRequest, index: int) -> Exception | None:
        fails: dict[str, str] = json.loads(os.environ.get("EVAL_FAILS", "{}"))
        return next((ERRORS[how] for part, how in fails.items() if part in request.prompt), None)

    return PaintGenerator(fail)


PROBABILITIES = {"Yes": 0.75, " yes": 0.1, "two": 0.3, "2": 0.2, "one": 0.4, "1": 1e-9}


class Judge(BaseChatModel):
    """Puts a probability of its own on "Yes", "two" and some others, in OpenAI's format."""

    probabilities: dict[str, float] = Field(default_factory=lambda: dict(PROBABILITIES))
    fingerprint: str = "judge-1"

    @property
    def _llm_type(self) -> str:
        return "judge"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        tokens = [{"token": t, "logprob": math.log(p)} for t, p in self.probabilities.items()]
        metadata = {"logprobs": {"content": [{**tokens[0], "top_logprobs": tokens}]}} if tokens else {}
        return ChatResult(generations=[ChatGeneration(message=AIMessage("x", response_metadata=metadata))])


def make_judge(options: ChatOptions) -> Judge:
    return Judge()


def make_mute_judge(options: ChatOptions) -> Judge:
    return Judge(probabilities={})
