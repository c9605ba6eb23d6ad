"""A chat model that fills every field, as strong ones do, without weights:
``--mllm python:strong_models:make_chat --generator python:strong_models:make_generator``.

Its first plan counts wrongly and its first image fails, so that a run goes through every node.
"""

from __future__ import annotations

import re
from typing import Any

from fakes import PaintGenerator, ScriptedChatModel

from gems.options import ChatOptions, GeneratorOptions

OPTIONS = ("--mllm", "python:strong_models:make_chat", "--generator", "python:strong_models:make_generator")
"""Command-line options that select both models. They need ``tests`` on PYTHONPATH."""
PROMPT = "a beach without people, two boats, cloudy sky"
_WORDS = ("a beach without people", "two boats", "cloudy sky")
_PHRASES = ("A quiet empty beach", "two boats", "under a cloudy sky")
_QUESTIONS = {
    "Is there a beach?": "a beach",
    "Are there exactly two boats?": "two boats",
    "Is the beach free of people?": "without people",
}
_ADDED = {"Is the sky cloudy?": "cloudy sky"}
FLAWS = "six fingers, smeared letters"


def make_generator(options: GeneratorOptions) -> PaintGenerator:
    return PaintGenerator(takes_negative_prompts=True)


def make_chat(options: ChatOptions) -> ScriptedChatModel:
    return ScriptedChatModel(script=_answer)


def _answer(form: str, messages: list[Any], index: int) -> Any:
    match form:
        case "Requirements":
            return _requirements(_ADDED if index else _QUESTIONS)
        case "Plan":
            prompt = "A quiet empty beach under a cloudy sky with two boats"
            parts = [{"words": w, "phrase": p} for w, p in zip(_WORDS, _PHRASES, strict=True)]
            text = {"prompt": prompt, "parts": parts}
            return text if index else {**text, "prompt": prompt.replace("two", "three")}
        case "Refinement":
            prompt = "A quiet empty beach under a cloudy sky, two boats far apart"
            return {"experience": "the boats overlap", "strategy": "rewrite", "prompt": prompt}
        case "Verdicts":
            ids = dict.fromkeys(re.findall(r"\br\d+\b", str(messages[-1].text)))
            rows = [{"id": i, "answer": "yes", "confidence": 0.8, "reason": "seen"} for i in ids]
            if not index:
                rows[1] |= {"answer": "no", "reason": "three boats"}
            return {"verdicts": rows, "quality": 0.4, "flaws": FLAWS}
    raise AssertionError(form)


def _requirements(questions: dict[str, str]) -> dict[str, Any]:
    return {"requirements": [{"question": q, "kind": "object", "words": w} for q, w in questions.items()]}
