"""Diffusers pipelines in the real graph: stops between steps, previews, several devices and the run's record."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import ScriptedChatModel
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from PIL import Image
from tiny_pipelines import SIZE, save_tiny

from gems.authority import OPERATOR
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.context import GemsContext
from gems.memory.image_store import ImageStore
from gems.models.registry import init_image_generator
from gems.options import GeneratorOptions
from gems.runs.threads import has_ended, run_thread

STEPS = 40
PROMPT = "two red cars"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("ZImagePipeline", tmp_path_factory.mktemp("pipelines") / "z-image-turbo")


def answers(schema: str, messages: list[BaseMessage], call: int) -> Any:
    """No image ever passes, so that the run uses all its rounds."""
    return {
        "Plan": {"prompt": PROMPT},
        "Requirements": {"requirements": [{"question": "Are there any cars?", "kind": "object"}]},
        "Verdicts": {"verdicts": [{"id": "r1", "answer": "no", "confidence": 0.9, "reason": "none seen"}]},
        "Refinement": {"experience": "none", "strategy": "rewrite", "prompt": PROMPT},
    }[schema]


@pytest.fixture
def graph(tmp_path: Path) -> GemsGraph:
    model = ScriptedChatModel(script=answers)
    return build_graph(checkpointer=InMemorySaver(), mllm=model, images=ImageStore(tmp_path / "images"))


def context(folder: Path, **options: Any) -> GemsContext:
    generator_options = GeneratorOptions(width=SIZE, height=SIZE, steps=STEPS, **options)
    return GemsContext(
        generator=f"diffusers:{folder}",
        generator_options=generator_options,
        memory=False,
        skills=False,
        seed=7,
        max_rounds=2,
    ).as_operator()


def transformer_of(settings: GemsContext) -> Any:
    generator: Any = init_image_generator(settings.generator, settings.generator_options, OPERATOR)
    with generator.replicas.borrow() as replica:
        return replica.pipeline.transformer


@contextmanager
def slow_steps(settings: GemsContext, seconds: float) -> Iterator[None]:
    transformer = transformer_of(settings)
    forward = transformer.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return forward(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformer, "forward", slow)
        yield


@pytest.mark.slow
def test_a_stop_interrupts_the_current_image_and_the_run_can_be_resumed(graph: GemsGraph, folder: Path) -> None:
    control, steps = RunControl(), list[tuple[int, int]]()

    def listener(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            steps.append((event["round"], event["step"]))
            if steps[-1] == (2, 3):
                control.request_drain("interrupted")

    settings = context(folder)
    with slow_steps(settings, 0.02):
        stopped_values = run_thread(graph, "t", PROMPT, settings, listener=listener, control=control)
    # A few more steps may run before the stop takes effect, but the image is not finished.
    assert steps[:STEPS] == [(1, n) for n in range(1, STEPS + 1)]
    assert 3 <= len(steps) - STEPS < STEPS
    assert len(stopped_values["attempts"]) == 1
    assert stopped_values["image"] == stopped_values["attempts"][0].image
    assert not stopped_values.get("outcome")
    assert not stopped_values["errors"]
    assert not has_ended(graph, "t")

    ended_values = run_thread(graph, "t", PROMPT, settings)
    assert ended_values["outcome"] == "rounds"
    assert [a.round for a in ended_values["attempts"]] == [1, 2]
    uninterrupted_values = run_thread(graph, "another", PROMPT, settings)
    assert [a.image.sha256 for a in ended_values["attempts"]] == [
        a.image.sha256 for a in uninterrupted_values["attempts"]
    ]


def test_a_stop_during_the_first_image_leaves_no_attempt(graph: GemsGraph, folder: Path) -> None:
    control = RunControl()
    config: Any = {"configurable": {"thread_id": "t"}}
    events = graph.stream({"prompt": PROMPT}, config, context=context(folder), stream_mode="custom", control=control)
    assert any(event["event"] == "step" for event in events)
    control.request_drain()
    with pytest.raises(GraphDrained):
        list(events)
    values = graph.get_state(config).values
    assert not values.get("attempts")
    assert graph.get_state(config).next == ("generator",)


def test_previews_are_streamed_as_small_jpegs(graph: GemsGraph, folder: Path) -> None:
    events: list[dict[str, Any]] = []
    settings = context(folder, previews=10).model_copy(update={"max_rounds": 1})
    run_thread(graph, "t", PROMPT, settings, listener=events.append)
    previews = [e for e in events if e["event"] == "preview"]
    assert [(e["round"], e["candidate"], e["step"]) for e in previews] == [(1, 0, n) for n in (10, 20, 30, 40)]
    for event in previews:
        data = base64.b64decode(event["jpeg"])
        assert len(data) < 10_000
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "JPEG"
            assert max(image.size) <= 128


def test_devices_share_a_round_and_its_events_arrive(graph: GemsGraph, folder: Path) -> None:
    events: list[dict[str, Any]] = []
    settings = context(folder, device="cpu,cpu").model_copy(update={"max_rounds": 1, "candidates": 3})
    ended_values = run_thread(graph, "t", PROMPT, settings, listener=events.append)
    assert [a.candidate for a in ended_values["attempts"]] == [0, 1, 2]
    assert {e["candidate"] for e in events if e["event"] == "step"} == {0, 1, 2}


def test_a_smaller_batch_is_noted_in_the_record(
    graph: GemsGraph, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = save_tiny("ZImagePipeline", tmp_path / "z-image-turbo")
    settings = context(own, batch_size=2).model_copy(update={"max_rounds": 1, "candidates": 2})
    transformer = transformer_of(settings)
    forward = transformer.forward

    def limited(x: list[Any], *args: Any, **kwargs: Any) -> Any:
        if len(x) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(x, *args, **kwargs)

    monkeypatch.setattr(transformer, "forward", limited)
    ended_values = run_thread(graph, "t", PROMPT, settings)
    assert len(ended_values["attempts"]) == 2
    assert ended_values["notes"] == [f"diffusers:{own}: a batch of 2 does not fit into memory; going on with 1"]
    assert ended_values["errors"] == []
