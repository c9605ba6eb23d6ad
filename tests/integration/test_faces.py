"""The graph on an event loop: many runs at once, nobody else's threads, cancelling, and closing."""

from __future__ import annotations

import asyncio
import gc
import inspect
import io
import socket
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest
from blockbuster import BlockingError, blockbuster_ctx
from fakes import PaintGenerator, ScriptedChatModel
from langchain_core.callbacks import AsyncCallbackHandler, dispatch_custom_event
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_core.runnables import RunnableLambda
from langgraph._internal._runnable import RunnableCallable
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.errors import GraphDrained
from langgraph.runtime import RunControl
from langgraph.store.memory import InMemoryStore
from PIL import Image
from pydantic import PrivateAttr
from servers.threaded import serving

import gems
from gems.errors import BackendError, InputError
from gems.faces import Turns, Workers, in_line, in_thread
from gems.graph.lifetime import resources_in
from gems.memory.image_store import ImageStore, encode_png
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback

PROMPT = {"prompt": "two red cars"}
SETTINGS = {"memory": False, "seed": 5, "max_rounds": 2}
QUESTIONS = [{"question": "Are there any cars?", "kind": "object"}, {"question": "Are the cars red?", "kind": "other"}]


def answer(schema: str, messages: list[BaseMessage], index: int) -> dict[str, Any]:
    """What a chat model says that finds every image right."""
    verdicts = [{"id": f"r{n}", "answer": "yes", "confidence": 0.9, "reason": "seen"} for n in (1, 2)]
    return {
        "Plan": {"prompt": "two red cars side by side"},
        "Requirements": {"requirements": QUESTIONS},
        "Verdicts": {"verdicts": verdicts, "quality": 0.9},
        "Refinement": {"experience": "x", "strategy": "reseed", "prompt": ""},
    }[schema]


class AsyncChatModel(ScriptedChatModel):
    """Has a client for event loops, and waits in calls for one form until it is let go on."""

    waits_for: str = ""
    _waiting: list[str] = PrivateAttr(default_factory=list)
    _cancelled: list[str] = PrivateAttr(default_factory=list)

    async def _agenerate(
        self, messages: list[BaseMessage], stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        result = self._generate(messages, **kwargs)
        await asyncio.sleep(0)
        if self._calls[-1][0] == self.waits_for:
            self._waiting.append(self.waits_for)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self._cancelled.append(self.waits_for)
                raise
        return result


class StepwiseGenerator(PaintGenerator):
    """Draws in this process, one image after another, in steps that wait for a signal."""

    batch_size = 1
    devices = ("cpu",)

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.go_on = list[tuple[int, int]](), threading.Semaphore(0)

    @property
    def replicas(self) -> Any:
        return self

    def load(self) -> None:
        """The weights are there."""

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        for index, request in enumerate(requests):
            for step in (1, 2, 3):
                self.go_on.acquire()
                self.steps.append((request.seed, step))
                if on_step:
                    on_step(Step(index, step, 3))
        return super().generate(requests)


@pytest.fixture
def images(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "images")


@pytest.fixture
def no_blocking() -> Iterator[None]:
    """An error for every call that blocks an event loop."""
    with blockbuster_ctx():
        yield


async def until(state: Callable[[], Any]) -> None:
    """Wait until a state is reached; the test's own timeout is the limit."""
    while not state():
        await asyncio.sleep(0.005)


def same(result: dict[str, Any]) -> tuple[Any, ...]:
    """What two runs with the same seed have in common."""
    return result["outcome"], result["score"], result["image"].sha256, result["usage"].chat_calls


def test_langgraph_still_takes_a_node_with_two_faces() -> None:
    parameters = inspect.signature(RunnableCallable.__init__).parameters
    assert {"func", "afunc", "name", "trace"} <= parameters.keys()


@pytest.mark.parametrize("model", [ScriptedChatModel, AsyncChatModel])
def test_both_faces_give_the_same_run(model: type[ScriptedChatModel], images: ImageStore) -> None:
    graph = gems.build_graph(mllm=model(script=answer), generator=PaintGenerator(), images=images, settings=SETTINGS)
    assert same(asyncio.run(graph.ainvoke(PROMPT))) == same(graph.invoke(PROMPT))


def test_a_graph_can_be_invoked_inside_a_running_event_loop(images: ImageStore) -> None:
    graph = gems.build_graph(
        mllm=AsyncChatModel(script=answer), generator=PaintGenerator(), images=images, settings=SETTINGS
    )

    async def application() -> Any:
        return graph.invoke(PROMPT)

    assert asyncio.run(application())["outcome"] == "solved"


@pytest.mark.parametrize("model", [ScriptedChatModel, AsyncChatModel])
def test_no_node_blocks_the_event_loop(model: type[ScriptedChatModel], images: ImageStore, no_blocking: None) -> None:
    """Skills, memory, checkpoints and thumbnails included."""
    graph = gems.build_graph(
        mllm=model(script=answer),
        generator=PaintGenerator(),
        images=images,
        store=InMemoryStore(index={"dims": 384, "embed": gems.init_embedder()}),
        checkpointer=InMemorySaver(),
        settings={**SETTINGS, "memory": True},
        thumbnails=16,
    )
    result = asyncio.run(graph.ainvoke(PROMPT, {"configurable": {"thread_id": "t"}}))
    assert (result["outcome"], result["errors"]) == ("solved", [])


def test_no_model_of_ours_blocks_the_event_loop(tmp_path: Path, no_blocking: None) -> None:
    settings = {"seed": 5, "max_rounds": 2, "memory": False}
    graph = gems.build_graph(mllm="pocket", generator="pocket", images=tmp_path, settings=settings)
    result = asyncio.run(graph.ainvoke({"prompt": "four striped cars behind a red elephant"}))
    assert (len(result["attempts"]) > 0, result["errors"]) == (True, [])


@pytest.mark.parametrize("model", [ScriptedChatModel, AsyncChatModel])
def test_fifty_runs_at_once_let_the_event_loop_go_on(
    model: type[ScriptedChatModel], images: ImageStore, no_blocking: None
) -> None:
    graph = gems.build_graph(
        mllm=model(script=answer), generator=PaintGenerator(seconds=0.01), images=images, settings=SETTINGS
    )
    beats = 0

    async def heartbeat() -> None:
        nonlocal beats
        while True:
            await asyncio.sleep(0)
            beats += 1

    async def application() -> list[Any]:
        beating = asyncio.create_task(heartbeat())
        results = await asyncio.gather(*(graph.ainvoke(PROMPT) for _ in range(50)))
        beating.cancel()
        return results

    assert {result["outcome"] for result in asyncio.run(application())} == {"solved"}
    assert beats > 50


def test_the_check_sees_what_blocks(no_blocking: None) -> None:
    async def application() -> None:
        time.sleep(0.001)

    with pytest.raises(BlockingError):
        asyncio.run(application())


@pytest.mark.parametrize("model", [ScriptedChatModel, AsyncChatModel])
def test_the_applications_own_threads_stay_free(model: type[ScriptedChatModel], images: ImageStore) -> None:
    """Its default pool has one thread, which is taken for the whole time."""
    graph = gems.build_graph(mllm=model(script=answer), generator=PaintGenerator(), images=images, settings=SETTINGS)

    async def application() -> list[Any]:
        end = threading.Event()
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        blocked = loop.run_in_executor(None, end.wait)
        try:
            return await asyncio.gather(*(graph.ainvoke(PROMPT) for _ in range(3)))
        finally:
            end.set()
            await blocked

    assert [result["outcome"] for result in asyncio.run(application())] == ["solved"] * 3


def test_a_cancelled_drawing_stops_at_its_next_step_and_keeps_what_was_made(images: ImageStore) -> None:
    generator = StepwiseGenerator()
    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=answer),
        generator=generator,
        images=images,
        checkpointer=InMemorySaver(),
        settings={**SETTINGS, "candidates": 16, "plan": False},
    )
    config: Any = {"configurable": {"thread_id": "t"}}

    async def application() -> Any:
        task = asyncio.create_task(graph.ainvoke(PROMPT, config))
        generator.go_on.release(7)  # two images, and one step of the third
        await until(lambda: len(generator.steps) == 7)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        generator.go_on.release(100)
        await until(lambda: len(generator.steps) == 8)
        kept = list(generator.requests)
        assert len(kept) == 2
        result = await graph.ainvoke(None, config)
        # What was drawn before the cancel is not drawn again.
        assert len(generator.requests) == 16
        assert [request.seed for request in generator.requests[:2]] == [request.seed for request in kept]
        return result

    assert asyncio.run(application())["usage"].images == 16


@pytest.mark.parametrize("form", ["Requirements", "Plan", "Verdicts"])
def test_a_cancelled_call_ends_and_counts_as_spent(form: str, images: ImageStore) -> None:
    async def application() -> None:
        model = AsyncChatModel(script=answer, waits_for=form)
        graph = gems.build_graph(
            mllm=model,
            generator=PaintGenerator(),
            images=images,
            checkpointer=InMemorySaver(),
            settings={**SETTINGS, "candidates": 3, "verify_concurrency": 3},
        )
        config: Any = {"configurable": {"thread_id": "t"}}
        task = asyncio.create_task(graph.ainvoke(PROMPT, config))
        calls = 3 if form == "Verdicts" else 1
        await until(lambda: len(model._waiting) == calls)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sent = len(model.calls)
        assert len(model._cancelled) == calls
        await asyncio.sleep(0.05)
        assert len(model.calls) == sent, "a call was made after the cancel"
        model.waits_for = ""
        result = await graph.ainvoke(None, config)
        assert result["outcome"] == "solved"
        assert result["usage"].chat_calls == len(model.calls)

    asyncio.run(application())


def test_verdicts_of_several_images_are_asked_for_at_the_same_time(images: ImageStore) -> None:
    def never_passes(schema: str, messages: list[BaseMessage], index: int) -> dict[str, Any]:
        if schema != "Verdicts":
            return answer(schema, messages, index)
        together.wait(20)  # breaks if the others do not come
        return {"verdicts": [{"id": f"r{n}", "answer": "no", "confidence": 0.9, "reason": "none"} for n in (1, 2)]}

    together = threading.Barrier(4)
    settings = {**SETTINGS, "candidates": 8, "verify_concurrency": 4, "max_rounds": 1}
    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=never_passes), generator=PaintGenerator(), images=images, settings=settings
    )
    for result in (graph.invoke(PROMPT), asyncio.run(graph.ainvoke(PROMPT))):
        assert (result["outcome"], result["usage"].chat_calls) == ("rounds", 10)
        assert all(attempt.verified for attempt in result["attempts"])


def test_a_wave_that_has_a_pass_is_the_last(images: ImageStore) -> None:
    model = ScriptedChatModel(script=answer)
    settings = {**SETTINGS, "candidates": 8, "verify_concurrency": 3}
    graph = gems.build_graph(mllm=model, generator=PaintGenerator(), images=images, settings=settings)
    assert graph.invoke(PROMPT)["outcome"] == "solved"
    assert model.count("Verdicts") == 3


def test_a_wave_is_no_larger_than_the_budget(images: ImageStore) -> None:
    model = ScriptedChatModel(script=answer)
    settings = {**SETTINGS, "candidates": 8, "verify_concurrency": 8, "budget": {"chat_calls": 4}}
    graph = gems.build_graph(mllm=model, generator=PaintGenerator(), images=images, settings=settings)
    result = asyncio.run(graph.ainvoke(PROMPT))
    assert (result["outcome"], result["usage"].chat_calls, len(model.calls)) == ("solved", 4, 4)


class ManyAtOnce(PaintGenerator):
    """A server, whose images arrive at different times."""

    draws_for_many = True

    def generate(self, requests: Sequence[ImageRequest], **kwargs: Any) -> Any:
        time.sleep(0.01 * (requests[0].seed % 4))
        return super().generate(requests, **kwargs)


@pytest.mark.parametrize("face", ["invoke", "ainvoke"])
@pytest.mark.parametrize("generator", [PaintGenerator, ManyAtOnce])
@pytest.mark.parametrize("limit", [{"tokens": 150}, {"cost": 150e-6, "prices": {"prompt": 1, "completion": 1}}])
def test_calls_at_the_same_time_exceed_a_limit_on_tokens_no_more_than_one_after_the_other(
    limit: dict[str, Any], generator: Any, face: str, images: ImageStore
) -> None:
    """Each answer takes 15 tokens, of which nothing is known before the first one."""

    def never_passes(schema: str, messages: list[BaseMessage], index: int) -> dict[str, Any]:
        time.sleep(0.02 if schema == "Verdicts" else 0)
        return verdicts("no", "no") if schema == "Verdicts" else answer(schema, messages, index)

    settings = {**SETTINGS, "candidates": 16, "proposals": 4, "verify_concurrency": 16, "budget": limit}
    model = ScriptedChatModel(script=never_passes)
    graph = gems.build_graph(mllm=model, generator=generator(), images=images, settings=settings)
    result = graph.invoke(PROMPT) if face == "invoke" else asyncio.run(graph.ainvoke(PROMPT))
    assert (result["outcome"], result["errors"]) == ("budget", [])
    assert 150 <= result["usage"].tokens < 150 + 15
    assert result["usage"].chat_calls == len(model.calls)


def verdicts(*answers: str) -> dict[str, Any]:
    items = [{"id": f"r{n}", "answer": a, "confidence": 0.9, "reason": "seen"} for n, a in enumerate(answers, 1)]
    return {"verdicts": items}


@pytest.mark.parametrize("retryable", [True, False])
@pytest.mark.parametrize("first", [verdicts("no", "unsure"), '{"verdicts": [{"id": "r1", "answer": "no"}, {"id": "r2'])
def test_a_second_call_that_fails_costs_nothing_of_the_first_answer(
    first: Any, retryable: bool, images: ImageStore
) -> None:
    def script(schema: str, messages: list[BaseMessage], index: int) -> Any:
        if schema != "Verdicts":
            return answer(schema, messages, index)
        return first if index == 0 else BackendError("no money left", retryable=retryable)

    for face in ("invoke", "ainvoke"):
        model = ScriptedChatModel(script=script)
        settings = {**SETTINGS, "max_rounds": 1, "budget": {"chat_calls": 4}}
        graph = gems.build_graph(mllm=model, generator=PaintGenerator(), images=images, settings=settings)
        result = graph.invoke(PROMPT) if face == "invoke" else asyncio.run(graph.ainvoke(PROMPT))
        assert [verdict.answer for verdict in result["attempts"][0].verdicts] == ["no", "unsure"]
        assert (result["outcome"], result["usage"].chat_calls, model.count("Verdicts")) == ("rounds", 4, 2)


def test_images_that_are_verified_at_once_do_not_take_each_others_last_call(images: ImageStore) -> None:
    together = threading.Barrier(2)

    def script(schema: str, messages: list[BaseMessage], index: int) -> Any:
        if schema != "Verdicts":
            return answer(schema, messages, index)
        if index > 1:
            time.sleep(0.3)
            return verdicts("no", "no")
        together.wait(20)
        return '{"verdicts": [{"id": "r1", "answer": "no"}, {"id": "r2'

    settings = {**SETTINGS, "max_rounds": 1, "candidates": 2, "verify_concurrency": 2, "budget": {"chat_calls": 5}}
    for face in ("invoke", "ainvoke"):
        model = ScriptedChatModel(script=script)
        graph = gems.build_graph(mllm=model, generator=PaintGenerator(), images=images, settings=settings)
        result = graph.invoke(PROMPT) if face == "invoke" else asyncio.run(graph.ainvoke(PROMPT))
        answers = sorted([verdict.answer for verdict in attempt.verdicts] for attempt in result["attempts"])
        assert (answers, result["outcome"], result["errors"]) == ([["no", "no"], ["no", "unsure"]], "rounds", [])
        assert result["usage"].chat_calls == len(model.calls) == 5


def test_closing_leaves_no_thread_file_or_model(tmp_path: Path) -> None:
    process = psutil.Process()
    threads, files = set(threading.enumerate()), {file.path for file in process.open_files()}

    async def application() -> Any:
        # Nobody else in this process has the model with this option.
        settings = {"seed": 5, "max_rounds": 1, "generator_options": {"device": "cpu"}}
        parts: Any = {"mllm": "pocket", "generator": "pocket", "settings": settings}
        async with gems.open_graph(store=tmp_path / "memory", images=tmp_path / "images", **parts) as graph:
            gems.warm(graph)
            assert (await graph.ainvoke({"prompt": "two cats"}))["image"]
            generator = resources_in(graph).generator(resources_in(graph)._resolved(None, False))
            with generator.replicas.borrow() as replica:
                return weakref.ref(replica.pipeline)

    pipeline = asyncio.run(application())
    gc.collect()
    assert pipeline() is None
    assert {thread for thread in threading.enumerate() if "gems" in thread.name} <= threads
    assert {file.path for file in process.open_files() if str(tmp_path) in file.path} <= files


def test_a_closed_graph_can_be_used_again_and_what_was_given_stays_open(tmp_path: Path) -> None:
    store = gems.FaissStore(tmp_path / "memory")
    with gems.open_graph(store=store, images=tmp_path / "images", settings={"seed": 5, "max_rounds": 1}) as graph:
        first = graph.invoke({"prompt": "two cats"})
    again = graph.invoke({"prompt": "two cats"})
    assert first["image"].sha256 == again["image"].sha256
    assert store.search(("gems",))
    gems.close(graph)
    store.close()


def test_only_a_graph_of_ours_can_be_closed() -> None:
    with pytest.raises(InputError, match="build_graph"):
        gems.close(object())  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not both"):
        gems.open_graph(gems.build_graph(), mllm="pocket")


@contextmanager
def silent_server() -> Iterator[tuple[str, threading.Event, threading.Event]]:
    """A server that answers nothing: its address, whether it was asked, and whether the client has hung up."""
    asked, left = threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            asked.set()
            while connection.recv(65536):
                continue
            left.set()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", asked, left
    finally:
        thread.join(30)
        listener.close()


@pytest.mark.parametrize("way", ["task", "control"])
@pytest.mark.parametrize("server", ["chat", "images"])
def test_a_cancel_closes_the_connection_to_a_server(way: str, server: str, images: ImageStore) -> None:
    with silent_server() as (url, asked, left):
        address = {"base_url": url, "api_key": "none", "timeout": 60.0}
        settings: dict[str, Any] = {**SETTINGS, "plan": False}
        parts: dict[str, Any] = {"mllm": ScriptedChatModel(script=answer), "generator": PaintGenerator()}
        if server == "chat":
            parts["mllm"], settings["chat_options"] = "openai:m", address
        else:
            parts["generator"], settings["generator_options"] = "openai:m", address
        control = RunControl()

        async def application() -> None:
            graph = gems.build_graph(**parts, images=images, settings=settings)
            task = asyncio.create_task(graph.ainvoke(PROMPT, control=control))
            await until(asked.is_set)
            task.cancel() if way == "task" else control.request_drain("cancelled")
            with pytest.raises(asyncio.CancelledError if way == "task" else GraphDrained):
                await task
            await until(left.is_set)
            await graph_closed(graph)

        async def graph_closed(graph: Any) -> None:
            async with gems.open_graph(graph):
                pass

        asyncio.run(application())


@contextmanager
def paid_server() -> Iterator[tuple[str, list[int], threading.Event]]:
    """A server that draws; every second request takes until the event. Its address, and the seeds it was asked for."""
    seeds, go_on = list[int](), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Log nothing."""

        def do_POST(self) -> None:
            seed = int(parse_qs(urlsplit(self.path).query)["seed"][0])
            seeds.append(seed)
            if len(seeds) % 2 == 0:
                go_on.wait(30)
            file = io.BytesIO()
            Image.new("RGB", (32, 32), (seed % 256, 0, 0)).save(file, "PNG")
            with suppress(OSError):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(file.getvalue())

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/draw", seeds, go_on
        finally:
            go_on.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("way", ["task", "cancelled", "another reason"])
@pytest.mark.parametrize("limit", [None, 2])
def test_images_in_flight_at_a_cancel_count_as_spent(
    way: str, limit: int | None, images: ImageStore, tmp_path: Path
) -> None:
    with paid_server() as (url, seeds, go_on):
        settings = {**SETTINGS, "max_rounds": 1, "candidates": 2, "budget": {"images": limit}}
        graph = gems.build_graph(
            mllm=ScriptedChatModel(script=answer),
            generator=f"http:{url}",
            images=images,
            checkpointer=InMemorySaver(),
            settings=settings,
        )
        config: Any = {"configurable": {"thread_id": "t"}}
        control = RunControl()

        async def application() -> Any:
            async with gems.open_graph(graph):
                task = asyncio.create_task(graph.ainvoke(PROMPT, config, control=control))
                await until(lambda: len(seeds) == 2 and any(path.is_file() for path in tmp_path.rglob("*")))
                task.cancel() if way == "task" else control.request_drain(way)
                if way == "another reason":
                    go_on.set()
                with pytest.raises(asyncio.CancelledError if way == "task" else GraphDrained):
                    await task
                go_on.set()
                return await graph.ainvoke(None, config)

        result = asyncio.run(application())
        assert result["usage"].images == len(seeds) <= (limit or 3)
        assert result["attempts"]


class SlowGenerator(PaintGenerator):
    """A client of the user's own for a server, which is asked for images and does not answer at first."""

    answers = False

    async def agenerate(self, requests: Sequence[ImageRequest], **_: Any) -> list[GeneratedImage | BackendError]:
        results = self.generate(requests)
        while not self.answers:
            await asyncio.sleep(0.01)
        return results


def test_images_that_a_generator_of_ones_own_was_asked_for_count_as_spent(images: ImageStore) -> None:
    generator = SlowGenerator()
    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=answer),
        generator=generator,
        images=images,
        checkpointer=InMemorySaver(),
        settings={**SETTINGS, "max_rounds": 1, "candidates": 2},
    )
    config: Any = {"configurable": {"thread_id": "t"}}

    async def application() -> Any:
        task = asyncio.create_task(graph.ainvoke(PROMPT, config))
        await until(lambda: len(generator.requests) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        generator.answers = True
        return await graph.ainvoke(None, config)

    assert asyncio.run(application())["usage"].images == len(generator.requests) == 4


class StructuredChatModel(AsyncChatModel):
    """Its package sets it up for structured answers by LangChain's own steps, as those of most providers do."""

    def with_structured_output(self, schema: Any, *, include_raw: bool = False, **kwargs: Any) -> Any:
        return super().with_structured_output(schema, include_raw=include_raw)


class Watcher(AsyncCallbackHandler):
    """Notes on which event loop it is called."""

    def __init__(self) -> None:
        self.calls = list[tuple[str, asyncio.AbstractEventLoop, object]]()

    async def on_llm_start(self, *args: Any, **kwargs: Any) -> None:  # in place of on_chat_model_start
        await asyncio.sleep(0)
        self.calls.append(("start", asyncio.get_running_loop(), APPLICATION.get()))

    async def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append(("end", asyncio.get_running_loop(), APPLICATION.get()))


APPLICATION: ContextVar[object] = ContextVar("application", default=None)


@pytest.mark.parametrize("model", [ScriptedChatModel, AsyncChatModel, StructuredChatModel])
def test_asynchronous_handlers_run_on_the_loop_of_their_application(
    model: type[ScriptedChatModel], images: ImageStore
) -> None:
    graph = gems.build_graph(mllm=model(script=answer), generator=PaintGenerator(), images=images, settings=SETTINGS)
    watcher = Watcher()

    async def application() -> None:
        APPLICATION.set("ours")
        await graph.ainvoke(PROMPT, {"callbacks": [watcher]})
        assert {call[1:] for call in watcher.calls} == {(asyncio.get_running_loop(), "ours")}

    asyncio.run(application())
    names = sorted(name for name, *_ in watcher.calls)
    watcher.calls.clear()
    graph.invoke(PROMPT, {"callbacks": [watcher]})
    assert sorted(name for name, *_ in watcher.calls) == names == ["end"] * 3 + ["start"] * 3


def test_a_thread_does_not_wait_for_the_handler_of_a_loop_that_has_ended() -> None:
    reached, go_on = threading.Event(), threading.Event()
    events = list[Any]()

    class Listener(AsyncCallbackHandler):
        async def on_custom_event(self, *event: Any, **_: Any) -> None:
            events.append(event)

    def work() -> None:
        reached.set()
        go_on.wait()
        dispatch_custom_event("late", None)

    async def application() -> None:
        task = asyncio.create_task(RunnableLambda(calls).ainvoke(None, {"callbacks": [Listener()]}))
        await until(reached.is_set)
        task.cancel()
        await asyncio.wait([task])

    async def calls(_: object) -> None:
        with workers.at_work():
            await in_thread(work)

    workers = Workers()
    asyncio.run(application())
    go_on.set()
    workers.close()  # waits for the thread
    assert events == []


def test_structured_answers_are_read_in_threads_of_the_graph(images: ImageStore) -> None:
    graph = gems.build_graph(
        mllm=StructuredChatModel(script=answer), generator=PaintGenerator(), images=images, settings=SETTINGS
    )

    class NoPool(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise AssertionError("asyncio's default pool is used")

    async def application() -> Any:
        asyncio.get_running_loop().set_default_executor(NoPool(1))
        return await graph.ainvoke(PROMPT)

    assert same(asyncio.run(application())) == same(graph.invoke(PROMPT))


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration])
def test_a_model_whose_answers_have_run_out_ends_the_run(kind: type[Exception], images: ImageStore) -> None:
    """``next`` raises StopIteration, which no future can carry: LangChain's own fake model does that."""

    def run_out(*_: object) -> dict[str, Any]:
        raise kind

    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=run_out), generator=PaintGenerator(), images=images, settings=SETTINGS
    )
    for face in (graph.invoke, lambda given: asyncio.run(graph.ainvoke(given))):
        with pytest.raises(RuntimeError, match=f"coroutine raised {kind.__name__}"):
            face(PROMPT)


@pytest.mark.parametrize("way", ["task", "control"])
def test_a_cancel_leaves_no_task_and_no_error_that_nobody_takes(way: str, images: ImageStore) -> None:
    reports = list[dict[str, Any]]()

    class Client(PaintGenerator):
        async def agenerate(self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None) -> Any:
            has_begun.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                raise BackendError("the connection could not be closed") from None

    async def application() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
        graph = gems.build_graph(
            mllm=ScriptedChatModel(script=answer), generator=Client(), images=images, settings=SETTINGS
        )
        control = RunControl()
        task = asyncio.create_task(graph.ainvoke(PROMPT, control=control))
        await until(has_begun.is_set)
        task.cancel() if way == "task" else control.request_drain("cancelled")
        with pytest.raises(asyncio.CancelledError if way == "task" else GraphDrained):
            await task
        assert asyncio.all_tasks() == {asyncio.current_task()}

    has_begun = threading.Event()
    asyncio.run(application())
    gc.collect()
    assert reports == []


def test_every_copy_of_a_pipeline_draws_at_the_same_time(images: ImageStore) -> None:
    together = threading.Barrier(2)

    class TwoCopies(StepwiseGenerator):
        devices = ("cpu", "cpu")  # type: ignore[assignment]

        def generate(self, requests: Sequence[ImageRequest], **_: Any) -> list[GeneratedImage | BackendError]:
            together.wait(20)  # breaks if the other run does not come
            return PaintGenerator.generate(self, requests)

    async def application() -> list[Any]:
        graph = gems.build_graph(
            mllm=ScriptedChatModel(script=answer), generator=TwoCopies(), images=images, settings=SETTINGS
        )
        return await asyncio.gather(*(graph.ainvoke(PROMPT) for _ in range(4)))

    assert [result["outcome"] for result in asyncio.run(application())] == ["solved"] * 4


def test_a_loop_that_ends_loses_no_turn() -> None:
    turns = Turns()

    async def draw() -> None:
        async with turns:
            await asyncio.Event().wait()

    async def draw_next() -> str:
        async with turns:
            return "drawn"

    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)  # tasks that are destroyed while they wait
    tasks = [loop.create_task(draw()) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    del tasks[:2]  # one that draws and one that waits are collected; another one that waits is still held
    gc.collect()
    assert asyncio.run(draw_next()) == "drawn"


def test_a_loop_that_ends_while_many_wait_in_line_is_freed() -> None:
    async def application() -> weakref.ref[asyncio.AbstractEventLoop]:
        waiting = {asyncio.create_task(in_line()) for _ in range(100)}
        await asyncio.sleep(0)
        assert not all(task.done() for task in waiting)
        return weakref.ref(asyncio.get_running_loop())

    ended = asyncio.run(application())
    gc.collect()
    assert ended() is None


def test_closing_goes_on_when_the_wait_for_it_is_cancelled(images: ImageStore) -> None:
    generator = StepwiseGenerator()
    failures = list[Any]()

    async def application() -> None:
        async def draw() -> None:
            async with gems.open_graph(
                mllm=ScriptedChatModel(script=answer), generator=generator, images=images, settings=SETTINGS
            ) as graph:
                await graph.ainvoke(PROMPT)

        task = asyncio.create_task(draw())
        generator.go_on.release(1)
        await until(lambda: generator.steps)
        for _ in range(2):  # the run, which still draws; then the wait for its thread
            task.cancel()
            await asyncio.wait([task], timeout=0.1)
        assert task.cancelled()

    hook, threading.excepthook = threading.excepthook, failures.append
    try:
        asyncio.run(application())
        generator.go_on.release(100)
        for thread in threading.enumerate():
            if thread.name == "gems-close":
                thread.join()
    finally:
        threading.excepthook = hook
    assert failures == []


class _TearingHandler(BaseHTTPRequestHandler):
    """Draws a torn image first, and then a whole one, unless told otherwise."""

    bodies: ClassVar[list[bytes]] = []
    drawn: ClassVar[int] = 0

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        """The next of the bodies; the last one again and again."""
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = self.bodies[min(self.drawn, len(self.bodies) - 1)]
        type(self).drawn += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)


_WHOLE = encode_png(Image.new("RGB", (32, 32), "red"), {})
_TORN = _WHOLE[: len(_WHOLE) // 2]


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    ("bodies", "limit", "tries", "images_made"),
    [
        ([_TORN, _WHOLE], None, 2, 1),
        ([_TORN], None, 3, 0),
        ([_TORN], 1, 1, 0),
        ([_TORN, _WHOLE], 2, 2, 1),
        ([b"BM\0\0\0\0\0\0\0\0 another format"], None, 1, 0),
    ],
    ids=["torn once", "torn", "torn, no room", "torn once, room for one", "another format"],
)
def test_images_that_are_lost_after_they_were_drawn_count_as_spent(
    bodies: list[bytes],
    limit: int | None,
    tries: int,
    images_made: int,
    is_async: bool,
    images: ImageStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gems.models.servers.retries._WAIT", lambda _: 0.01)
    _TearingHandler.bodies, _TearingHandler.drawn = bodies, 0
    with serving(_TearingHandler) as server:
        graph = gems.build_graph(
            mllm=ScriptedChatModel(script=answer),
            generator=f"http:http://127.0.0.1:{server.server_port}",
            images=images,
            settings={**SETTINGS, "max_rounds": 1, "budget": {"images": limit}},
        )
        result = asyncio.run(graph.ainvoke(PROMPT)) if is_async else graph.invoke(PROMPT)
    assert (_TearingHandler.drawn, result["usage"].images) == (tries, tries)
    assert len(result["attempts"]) == images_made
    if limit == 1:
        assert "the budget leaves no other try" in result["errors"][0]


@pytest.mark.usefixtures("no_blocking")
@pytest.mark.parametrize("kind", ["sqlite", "own"])
def test_a_synchronous_checkpointer_goes_with_both_faces(kind: str, images: ImageStore, tmp_path: Path) -> None:
    """Runs at the same time on a loop, one of which stops before a step and goes on without a loop."""

    class Own(BaseCheckpointSaver[Any]):
        """Keeps everything in memory, by the methods that each checkpointer has to have."""

        def __init__(self) -> None:
            super().__init__()
            self.memory = InMemorySaver(serde=JsonPlusSerializer(allowed_msgpack_modules=gems.checkpoint_types()))
            self.get_tuple, self.list = self.memory.get_tuple, self.memory.list  # type: ignore[method-assign]
            self.put, self.put_writes = self.memory.put, self.memory.put_writes  # type: ignore[method-assign]
            self.get_next_version = self.memory.get_next_version  # type: ignore[method-assign]

    earlier_threads = {*threading.enumerate()}
    connection = sqlite3.connect(tmp_path / "c.sqlite", check_same_thread=False)
    saver = SqliteSaver(connection) if kind == "sqlite" else Own()
    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=answer),
        generator=PaintGenerator(),
        images=images,
        checkpointer=saver,
        settings=SETTINGS,
    )
    assert isinstance(graph.checkpointer, type(saver))
    configs: list[Any] = [{"configurable": {"thread_id": str(n)}} for n in range(4)]

    async def application() -> list[Any]:
        first, *others = configs
        stopped = graph.ainvoke(PROMPT, first, interrupt_before=["verifier"])
        await asyncio.gather(stopped, *(graph.ainvoke(PROMPT, config) for config in others))
        return [state async for state in graph.aget_state_history(first)]

    history = asyncio.run(application())
    assert history[0].next == ("verifier",)
    assert graph.invoke(None, configs[0])["outcome"] == "solved"
    assert [graph.get_state(config).values["outcome"] for config in configs] == ["solved"] * 4
    assert saver.get_tuple(configs[0]) is not None, "what was given holds what was saved"
    gems.close(graph)
    assert not [t for t in {*threading.enumerate()} - earlier_threads if t.name.startswith("gems")]
    connection.close()
