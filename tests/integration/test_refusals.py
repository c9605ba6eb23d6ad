"""A provider that refuses a prompt: the refiner finds another wording within the limit on rounds."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import PaintGenerator, ScriptedChatModel

from gems import build_graph
from gems.errors import BackendError, ContentRefusedError
from gems.graph.context import GemsContext
from gems.graph.state import GemsOutput
from gems.models.generators import ImageRequest


def run(
    refuse: Any, *, passes: bool = True, refined: str = "a knight", **settings: Any
) -> tuple[GemsOutput, ScriptedChatModel, PaintGenerator]:
    def script(schema: str, messages: Any, index: int) -> Any:
        match schema:
            case "Requirements":
                return {"requirements": [{"question": "Is there a knight?", "kind": "object"}]}
            case "Plan":
                return {"prompt": "a bloody knight"}
            case "Refinement":
                return {"experience": "milder words", "strategy": "rewrite", "prompt": f"{refined}, {index}"}
        answer = "yes" if passes else "no"
        return {"verdicts": [{"id": "r1", "answer": answer, "confidence": 0.9}]}

    def fail(request: ImageRequest, index: int) -> BackendError | None:
        return ContentRefusedError("painter refuses to draw this: not safe") if refuse(request.prompt) else None

    model, generator = ScriptedChatModel(script=script), PaintGenerator(fail)
    context = GemsContext(memory=False, skills=False, seed=1, **{"max_rounds": 3, **settings})
    output = build_graph(mllm=model, generator=generator).invoke({"prompt": "a bloody knight"}, context=context)
    return output, model, generator  # type: ignore[return-value]


def refiner_messages(model: ScriptedChatModel) -> list[str]:
    return [messages[-1].text for schema, messages, _ in model.calls if schema == "Refinement"]


def test_other_words_are_found() -> None:
    output, model, generator = run(lambda prompt: "bloody" in prompt)
    assert output["outcome"] == "solved"
    assert [r.prompt for r in generator.requests] == ["a bloody knight", "a knight, 0"]
    [attempt] = output["attempts"]
    assert (attempt.round, attempt.strategy, attempt.prompt) == (1, "rewrite", "a knight, 0")
    assert output["errors"] == ["generator: painter refuses to draw this: not safe"]
    assert output["usage"].images == 1
    [message] = refiner_messages(model)
    assert "<refused>\na bloody knight\n</refused>" in message
    assert "best_attempt" not in message


@pytest.mark.parametrize("rounds", [1, 3])
def test_refusals_use_up_the_rounds(rounds: int) -> None:
    output, model, generator = run(lambda prompt: True, max_rounds=rounds)
    assert output["outcome"] == "failed"
    assert output["image"] is None
    assert len(generator.requests) == rounds
    assert model.count("Refinement") == rounds - 1
    assert len(output["errors"]) == rounds


def test_images_drawn_before_a_refusal_are_kept() -> None:
    output, _, _ = run(lambda prompt: "knight, " in prompt, passes=False, refined="a bloody knight")
    assert output["outcome"] == "rounds"
    [attempt] = output["attempts"]
    assert output["image"] == attempt.image
    assert len(output["errors"]) == 2


def test_some_images_of_a_round_are_enough() -> None:
    prompts_seen: list[str] = []

    def first_only(prompt: str) -> bool:
        prompts_seen.append(prompt)
        return len(prompts_seen) == 1

    output, model, _ = run(first_only, candidates=2)
    assert output["outcome"] == "solved"
    assert [a.candidate for a in output["attempts"]] == [1]
    assert model.count("Refinement") == 0
