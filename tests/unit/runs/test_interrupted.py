"""Chat calls of a step that a stop interrupts count, also when another process does the step again."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import light_models
import pytest
from fakes import PaintGenerator, ScriptedChatModel
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langgraph.store.memory import InMemoryStore

from gems.errors import InputError
from gems.graph.builder import build_graph
from gems.graph.context import GemsContext
from gems.graph.state import ImageRef
from gems.memory.image_store import ImageStore
from gems.models.generators import ImageRequest
from gems.nodes import meter
from gems.nodes.meter import unsettled
from gems.runs.checkpoints import open_checkpoints
from gems.runs.interrupted import run_counted, with_interrupted

CONTEXT = GemsContext(max_rounds=1, candidates=1, plan=False, skills=False, memory=False, seed=1)


@pytest.mark.parametrize("survives_kill", [False, True])
def test_what_a_stop_interrupts_counts_once(survives_kill: bool, tmp_path: Path) -> None:
    control, calls = RunControl(), list[str]()
    stops = 2

    def answer(form: str, messages: list[Any], n: int) -> Any:
        nonlocal stops
        calls.append(form)
        if form == "Verdicts" and stops:
            stops -= 1
            control.request_drain("test")
            raise GraphDrained("stopped while waiting for a server")
        return light_models.make_chat(None).script(form, messages, n)  # type: ignore[arg-type]

    for start in (1, 2, 3):
        with open_checkpoints(tmp_path / "checkpoints.sqlite") as saver:
            chat = ScriptedChatModel(script=answer)
            graph = build_graph(
                generator=PaintGenerator(), mllm=chat, checkpointer=saver, images=ImageStore(tmp_path / "images")
            )
            control = RunControl()
            values = run_counted(graph, "t", "two cats", CONTEXT, control=control, survives_kill=survives_kill)
            assert values["usage"].chat_calls == len(calls), start
            assert not values["usage"].killed_calls, "a stop leaves time to count"
            seen = graph.get_state({"configurable": {"thread_id": "t"}}).values
            assert start == 3 or seen["usage"].chat_calls < len(calls)
            assert with_interrupted(graph, "t", seen)["usage"].chat_calls == len(calls)
        meter._UNSETTLED.clear()  # another process
        meter._ANSWERS.clear()
    assert values["outcome"] in ("rounds", "solved")
    assert calls.count("Verdicts") >= 3
    assert values["usage"].images == 1


@pytest.mark.parametrize("form", ["Plan", "Requirements", "Verdicts", "Refinement"])
def test_after_a_bug_a_run_goes_on_behind_what_was_paid(form: str, tmp_path: Path) -> None:
    """A chat model of the user's own raises what no server does: the run ends with it, and is started again."""
    context = CONTEXT.model_copy(update={"max_rounds": 2, "plan": True})
    calls, faults, generator = list[str](), 2, PaintGenerator()

    def answer(asked: str, messages: list[Any], n: int) -> Any:
        nonlocal faults
        calls.append(asked)
        if asked == form and faults:
            faults -= 1
            raise KeyError("a bug")
        if asked == "Plan":
            return {"prompt": "two cats on a lawn"}
        return light_models.make_chat(None).script(asked, messages, n)  # type: ignore[arg-type]

    for start in (1, 2, 3):
        with open_checkpoints(tmp_path / "checkpoints.sqlite") as saver:
            chat = ScriptedChatModel(script=answer)
            graph = build_graph(
                generator=generator, mllm=chat, checkpointer=saver, images=ImageStore(tmp_path / "images")
            )
            with pytest.raises(KeyError) if start < 3 else nullcontext():
                run_counted(graph, "t", "two cats", context, control=RunControl())
            values = with_interrupted(graph, "t", graph.get_state({"configurable": {"thread_id": "t"}}).values)
            assert values["usage"].chat_calls == len(calls), start
            assert not unsettled(values["run_id"])
    assert values["outcome"] in ("rounds", "solved")
    assert len(generator.requests) == len({request.seed for request in generator.requests}) == values["usage"].images
    assert [attempt.round for attempt in values["attempts"]] == [1, 2]


def test_another_graph_of_the_process_asks_for_no_verdicts_again(tmp_path: Path) -> None:
    """A run that is resumed gets a graph of its own; what an interrupted step has paid for is not asked for there."""
    context = CONTEXT.model_copy(update={"candidates": 3, "verify_concurrency": 1})
    calls, faults, generator = list[str](), 1, PaintGenerator()

    def answer(form: str, messages: list[Any], n: int) -> Any:
        nonlocal faults
        calls.append(form)
        if faults and calls.count("Verdicts") == 2:
            faults -= 1
            raise KeyError("a bug")
        reply: Any = light_models.make_chat(None).script(form, messages, n)  # type: ignore[arg-type]
        return (
            reply | {"verdicts": [row | {"answer": "no"} for row in reply["verdicts"]]}
            if "verdicts" in reply
            else reply
        )

    for start in (1, 2):
        with open_checkpoints(tmp_path / "checkpoints.sqlite") as saver:
            chat = ScriptedChatModel(script=answer)
            graph = build_graph(
                generator=generator, mllm=chat, checkpointer=saver, images=ImageStore(tmp_path / "images")
            )
            with pytest.raises(KeyError) if start == 1 else nullcontext():
                values = run_counted(graph, "t", "two cats", context, control=RunControl())
    assert all(attempt.verified for attempt in values["attempts"])
    assert calls.count("Verdicts") == len(values["attempts"]) + 1 == 4
    assert values["usage"].chat_calls == len(calls)


def test_an_image_that_cannot_be_kept_costs_no_earlier_one(tmp_path: Path) -> None:
    """The disk is full in the second round: the image of the first one is not drawn again."""

    def fault(request: ImageRequest, n: int) -> Exception | None:
        return OSError(28, "No space left on device") if n == 1 else None

    context, generator = CONTEXT.model_copy(update={"max_rounds": 2}), PaintGenerator(fail=fault)
    chat = ScriptedChatModel(script=light_models.make_chat(None).script)  # type: ignore[arg-type]
    with open_checkpoints(tmp_path / "checkpoints.sqlite") as saver:
        graph = build_graph(generator=generator, mllm=chat, checkpointer=saver, images=ImageStore(tmp_path / "images"))
        with pytest.raises(OSError, match="No space"):
            run_counted(graph, "t", "two cats", context, control=RunControl())
        values = run_counted(graph, "t", "two cats", context, control=RunControl())
    first, second = (attempt.seed for attempt in values["attempts"])
    assert [request.seed for request in generator.requests] == [first, second, second]
    assert values["usage"].chat_calls == len(chat.calls)


class _FullOnce(ImageStore):
    """Has no room for the third image, once."""

    puts = 0

    def put(self, *args: Any, **options: Any) -> ImageRef:
        self.puts += 1
        if self.puts == 3:
            raise OSError(28, "No space left on device")
        return super().put(*args, **options)


@pytest.mark.parametrize("is_server", [True, False])
def test_images_of_a_step_that_an_error_ends_count_and_are_not_drawn_again(is_server: bool, tmp_path: Path) -> None:
    context, generator = CONTEXT.model_copy(update={"candidates": 4, "max_rounds": 1}), PaintGenerator()
    generator.draws_for_many = is_server  # type: ignore[attr-defined]
    chat = ScriptedChatModel(script=light_models.make_chat(None).script)  # type: ignore[arg-type]
    with open_checkpoints(tmp_path / "checkpoints.sqlite") as saver:
        images = _FullOnce(tmp_path / "images")
        graph = build_graph(generator=generator, mllm=chat, checkpointer=saver, images=images)
        with pytest.raises(OSError, match="No space"):
            run_counted(graph, "t", "two cats", context, control=RunControl())
        assert with_interrupted(graph, "t", graph.get_state({"configurable": {"thread_id": "t"}}).values)[
            "usage"
        ].images == len(generator.requests)
        values = run_counted(graph, "t", "two cats", context, control=RunControl())
    assert len(values["attempts"]) == 4
    assert values["usage"].images == len(generator.requests) == (5 if is_server else 6)


class _Refused(Embeddings):
    """Refuses once, as a database does whose password was changed."""

    def __init__(self) -> None:
        self.is_refused = True

    def embed_query(self, text: str) -> list[float]:
        if self.is_refused:
            self.is_refused = False
            raise InputError("the database refused the connection")
        return [1.0, 0.0]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


@pytest.mark.parametrize("error", [KeyError, InputError])
@pytest.mark.parametrize("place", ["Plan", "Requirements", "Verdicts", "Refinement", "image", "memory"])
def test_a_graph_that_is_invoked_again_does_the_failed_node_again(
    place: str, error: type[Exception], tmp_path: Path
) -> None:
    context = GemsContext(seed=1, max_rounds=2, skills=False)
    faults, calls = [place], list[str]()

    def break_once(asked: str) -> Exception | None:
        if asked not in faults:
            return None
        faults.remove(asked)
        return error("a bug")

    def answer(asked: str, messages: list[Any], n: int) -> Any:
        calls.append(asked)
        if fault := break_once(asked):
            raise fault
        if asked == "Plan":
            return {"prompt": "two cats on a lawn"}
        return light_models.make_chat(None).script(asked, messages, n)  # type: ignore[arg-type]

    generator, embedder = PaintGenerator(fail=lambda request, n: break_once("image")), _Refused()
    embedder.is_refused = place == "memory"
    thread: RunnableConfig = {"configurable": {"thread_id": "t"}}
    graph = build_graph(
        generator=generator,
        mllm=ScriptedChatModel(script=answer),
        checkpointer=InMemorySaver(),
        store=InMemoryStore(index={"dims": 2, "embed": embedder}),
        images=ImageStore(tmp_path / "images"),
    )
    with pytest.raises(InputError if place == "memory" else error):
        graph.invoke({"prompt": "two cats"}, thread, context=context)
    result = graph.invoke(None, thread, context=context)
    assert result["outcome"] in ("rounds", "solved")
    assert not result["errors"]
    assert result["usage"].chat_calls == len(calls)
    assert calls.count("Requirements") == (2 if place == "Requirements" else 1)
    assert len(generator.requests) == result["usage"].images + (place == "image")
