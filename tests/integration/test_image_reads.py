"""How often a run reads its stored images; a bucket charges for every read."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import pytest
from counting_files import empty_counting_files
from fakes import PaintGenerator, ScriptedChatModel
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image

from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore, open_images

CONTEXT = GemsContext(
    images_url="counting://bucket/images", memory=False, seed=5, max_rounds=3, candidates=2
).as_operator()


@pytest.fixture
def reads() -> Counter[str]:
    return empty_counting_files()


def answer(schema: str, messages: list[BaseMessage], call: int) -> dict[str, Any]:
    """A chat model that never passes an image and edits the best one in each round."""
    if schema == "Plan":
        return {"prompt": "two blue cars"}
    if schema == "Requirements":
        return {"requirements": [{"question": "Are there two blue cars?", "kind": "count"}]}
    if schema == "Verdicts":
        return {"verdicts": [{"id": "r1", "answer": "no", "confidence": 0.9, "reason": "seen"}]}
    return {"experience": "x", "strategy": "edit", "prompt": f"two blue cars {call}"}


def test_a_run_of_three_rounds_reads_no_image_twice(reads: Counter[str]) -> None:
    model, generator = ScriptedChatModel(script=answer), PaintGenerator(edits=True)
    graph = build_graph(mllm=model, generator=generator, thumbnails=64, checkpointer=InMemorySaver())
    thread: Any = {"configurable": {"thread_id": "thread"}}
    graph.invoke({"prompt": "two blue cars"}, thread, context=CONTEXT)
    state: Any = graph.get_state(thread).values
    assert len(state["attempts"]) == 6
    assert sum(request.edit is not None for request in generator.requests) == 4
    assert model.count("Refinement") == 2
    for attempt in state["attempts"]:  # as the run's folder and the service do
        assert open_images(CONTEXT.images_url).read(attempt.image)
    assert not reads, "images that this process has stored are not read"

    other_process = ImageStore(CONTEXT.images_url)
    for _ in range(2):
        for attempt in state["attempts"]:
            assert other_process.find(attempt.image.sha256) == attempt.image
            png = other_process.read(attempt.image, check_exists=True)
            with Image.open(io.BytesIO(png)) as image:
                assert image.size == (32, 32)
    assert reads == {f"{attempt.image.sha256}.png": 1 for attempt in state["attempts"]}
