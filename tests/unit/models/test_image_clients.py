"""Clients of image servers: called from event loops and threads of all kinds, cancelled, and closed."""

from __future__ import annotations

import asyncio
import io
import os
import select
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from fakes import ScriptedChatModel
from langgraph.checkpoint.memory import InMemorySaver
from PIL import Image
from servers.threaded import serving
from servers.waiting import wait_until

import gems
from gems.errors import BackendError
from gems.faces import OwnLoop
from gems.memory.image_store import ImageStore
from gems.models.generators import GeneratedImage, ImageRequest, Step
from gems.models.servers.openai_images import PlainImages
from gems.options import GeneratorOptions
from gems.stopping import cancelled_if, stopping

_BUFFER = io.BytesIO()
Image.radial_gradient("L").convert("RGB").save(_BUFFER, "PNG")
PNG = _BUFFER.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Draws as soon as it may, and notices when a client leaves before that."""

    protocol_version = "HTTP/1.1"
    may_draw: ClassVar[threading.Event]
    drawn_at_once: ClassVar[int] = 0
    asked: ClassVar[list[str]]
    left: ClassVar[list[str]]

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        """The image."""
        self.asked.append(self.path)
        number = len(self.asked)
        while number > self.drawn_at_once and not self.may_draw.is_set():
            if select.select([self.connection], [], [], 0.01)[0]:
                self.left.append(self.path)
                self.close_connection = True
                return
        with suppress(OSError):  # the client leaves in the midst of it
            self.send_response(200)
            self.send_header("Content-Length", str(len(PNG)))
            self.end_headers()
            self.wfile.write(PNG)


Server = tuple[str, type[Handler]]


@pytest.fixture
def server() -> Iterator[Server]:
    handler = type("OneHandler", (Handler,), {"may_draw": threading.Event(), "asked": [], "left": []})
    with serving(handler) as http:
        yield f"http://127.0.0.1:{http.server_port}/draw", handler
        handler.may_draw.set()


@pytest.fixture
def quick_server(server: Server) -> Server:
    server[1].may_draw.set()
    return server


@pytest.fixture(autouse=True)
def own_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that no other test's client keeps running."""
    monkeypatch.setattr("gems.models.servers.http_client.OWN_LOOP", OwnLoop())


def client(server: Server, concurrency: int = 8) -> PlainImages:
    return PlainImages(server[0], name="http:draw", options=GeneratorOptions(concurrency=concurrency, timeout=30))


def requests(count: int) -> list[ImageRequest]:
    return [ImageRequest("a cat", seed) for seed in range(count)]


def are_images(results: list[GeneratedImage | BackendError]) -> bool:
    return all(isinstance(result, GeneratedImage) for result in results)


def connections_to(server: Server) -> list[Any]:
    port = int(server[0].rpartition(":")[2].partition("/")[0])
    return [c for c in psutil.Process().net_connections("tcp") if c.raddr and c.raddr.port == port]


def wait_for(state: Any, handler: type[Handler], seconds: float = 10) -> None:
    wait_until(state, lambda: f"{len(handler.asked)} asked, {len(handler.left)} left", seconds=seconds)


# --- cancel ---------------------------------------------------------------------------------------------------------


def test_a_cancelled_call_leaves_the_server_at_once_and_asks_for_nothing_more(server: Server) -> None:
    handler, generator = server[1], client(server, concurrency=2)

    async def run() -> None:
        task = asyncio.create_task(generator.agenerate(requests(4)))
        await asyncio.to_thread(wait_for, lambda: len(handler.asked) == 2, handler)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_for, lambda: len(handler.left) == 2, handler, 1)

    asyncio.run(run())
    handler.may_draw.set()
    assert are_images(generator.generate(requests(1)))
    assert len(handler.asked) == 3
    generator.close()


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, also where a shell has started the tests in the background, and has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_call_that_waits_for_a_server(server: Server) -> None:
    handler, generator = server[1], client(server, concurrency=2)
    main = threading.main_thread().ident or 0

    def interrupt() -> None:
        wait_for(lambda: len(handler.asked) == 2, handler)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        generator.generate(requests(4))
    thread.join()
    wait_for(lambda: len(handler.left) == 2, handler, 1)
    generator.close()
    assert len(handler.asked) == 2


@pytest.mark.parametrize(("context", "is_waited_for"), [(stopping, True), (cancelled_if, False)])
def test_a_stop_waits_for_what_is_paid_and_a_cancel_does_not(
    server: Server, context: type[stopping], is_waited_for: bool
) -> None:
    handler, generator, is_requested = server[1], client(server, concurrency=1), threading.Event()
    handler.drawn_at_once = 1

    def on_step(step: Step) -> None:
        wait_for(lambda: len(handler.asked) == 2, handler)
        is_requested.set()
        if is_waited_for:
            handler.may_draw.set()

    with context(is_requested.is_set):
        results = generator.generate(requests(3), on_step=on_step)
    if not is_waited_for:
        wait_for(lambda: handler.left, handler, 1)
    generator.close()
    assert [isinstance(result, GeneratedImage) for result in results] == [True, is_waited_for, False]
    assert len(handler.asked) == 2


# --- callers --------------------------------------------------------------------------------------------------------


def test_one_client_serves_loops_one_after_the_other_and_threads_at_once(quick_server: Server) -> None:
    generator = client(quick_server)
    for _ in range(2):
        assert are_images(asyncio.run(generator.agenerate(requests(2))))
    with ThreadPoolExecutor(2) as pool:
        for results in pool.map(lambda count: asyncio.run(generator.agenerate(requests(count))), [8, 8]):
            assert are_images(results)
        for results in pool.map(generator.generate, [requests(8), requests(8)]):
            assert are_images(results)
    assert len(connections_to(quick_server)) <= 8
    generator.close()


def test_a_client_can_be_waited_for_inside_a_running_loop(quick_server: Server) -> None:
    generator = client(quick_server)

    async def run() -> list[GeneratedImage | BackendError]:
        return generator.generate(requests(2))

    assert are_images(asyncio.run(run()))
    generator.close()


@pytest.mark.parametrize("face", ["generate", "agenerate"])
def test_steps_are_reported_in_the_context_of_the_caller(quick_server: Server, face: str) -> None:
    caller, generator, steps = ContextVar("caller", default=""), client(quick_server), list[tuple[str, int]]()

    def on_step(step: Step) -> None:
        steps.append((caller.get(), step.index))

    caller.set("me")
    if face == "generate":
        generator.generate(requests(2), on_step=on_step)
    else:
        asyncio.run(generator.agenerate(requests(2), on_step=on_step))
    generator.close()
    assert sorted(steps) == [("me", 0), ("me", 1)]


def test_an_error_of_a_step_ends_the_call(quick_server: Server) -> None:
    def on_step(step: Step) -> None:
        raise ZeroDivisionError

    generator = client(quick_server)
    with pytest.raises(ZeroDivisionError):
        generator.generate(requests(3), on_step=on_step)
    generator.close()


def test_many_calls_do_not_hold_up_the_loop_of_the_caller(quick_server: Server) -> None:
    generator, lags, computing = client(quick_server, concurrency=16), list[float](), list[float]()

    async def beat() -> None:
        while True:
            start, computed = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.01)
            lags.append(time.perf_counter() - start - 0.01)
            computing.append(time.thread_time() - computed)

    async def run() -> list[list[GeneratedImage | BackendError]]:
        heart = asyncio.create_task(beat())
        try:
            return await asyncio.gather(*(generator.agenerate(requests(1)) for _ in range(50)))
        finally:
            heart.cancel()

    assert all(map(are_images, asyncio.run(run())))
    generator.close()
    assert max(computing) < 0.25
    assert statistics.median(lags) < 0.25, "a single beat can also be late because others use the machine"


# --- a server that is not there -------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gems.models.servers.base._PATIENCE", 0.5)


@pytest.mark.usefixtures("impatient")
def test_an_address_behind_which_nothing_ever_listened_is_not_waited_for_as_long_as_an_image() -> None:
    begin = time.monotonic()
    generator = client(("http://127.0.0.1:9/draw", Handler))
    for result in generator.generate(requests(2)):
        assert isinstance(result, BackendError)
        assert "cannot reach 127.0.0.1:9" in str(result)
        assert "see that the server runs, and that its address is right" in str(result)
        assert not result.may_cost
    assert time.monotonic() < begin + 20, "an image may take 30"
    generator.close()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_starts_again_is_waited_for_as_long_as_an_image() -> None:
    one_request_each = {"protocol_version": "HTTP/1.0"}
    handler = type("Restarted", (Handler,), {"may_draw": threading.Event(), "asked": [], "left": []} | one_request_each)
    handler.may_draw.set()
    with serving(handler) as http:
        port = http.server_port
        generator = client((f"http://127.0.0.1:{port}/draw", handler))
        assert are_images(generator.generate(requests(1)))
    with ThreadPoolExecutor() as pool:
        drawing = pool.submit(generator.generate, requests(1))
        time.sleep(3)
        assert not drawing.done()
        with serving(handler, port=port):
            assert are_images(drawing.result(30))
            generator.close()


# --- in a graph -----------------------------------------------------------------------------------------------------


def test_a_cancelled_run_leaves_the_server_and_keeps_the_images_that_arrived(server: Server, tmp_path: Path) -> None:
    handler, generator = server[1], client(server)
    handler.drawn_at_once = 2
    graph = gems.build_graph(
        mllm=ScriptedChatModel(script=_passing),
        generator=generator,
        images=ImageStore(tmp_path),
        checkpointer=InMemorySaver(),
        settings={"memory": False, "seed": 5, "plan": False, "candidates": 4},
    )
    config: Any = {"configurable": {"thread_id": "t"}}
    images = list[Any]()

    async def watch() -> None:
        async for event in graph.astream({"prompt": "two red cars"}, config, stream_mode="custom"):
            images.extend([event] if event.get("event") == "image" else [])

    async def application() -> Any:
        task = asyncio.create_task(watch())
        await asyncio.to_thread(wait_for, lambda: len(images) == 2 and len(handler.asked) == 4, handler)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(wait_for, lambda: len(handler.left) == 2, handler, 1)
        handler.may_draw.set()
        return await graph.ainvoke(None, config)

    assert asyncio.run(application())["usage"].images == 6, "those in flight at the cancel may be charged"
    assert len(handler.asked) == 6, "the two that have arrived are not asked for again"
    gems.close(graph)
    generator.close()


def _passing(form: str, messages: list[Any], index: int) -> dict[str, Any]:
    if form == "Requirements":
        return {"requirements": [{"question": "Are there any cars?", "kind": "object"}]}
    return {"verdicts": [{"id": "r1", "answer": "yes", "confidence": 0.9, "reason": "seen"}], "quality": 0.9}


# --- the end --------------------------------------------------------------------------------------------------------


def test_a_closed_client_leaves_no_thread_and_no_connection(quick_server: Server) -> None:
    def threads() -> set[threading.Thread]:  # without those of the server
        return {t for t in threading.enumerate() if "process_request" not in t.name}

    before, generator = threads(), client(quick_server)
    other = client(quick_server)
    assert are_images(generator.generate(requests(8)))
    assert are_images(other.generate(requests(1)))
    generator.close()
    generator.close()
    assert len(connections_to(quick_server)) == 1
    other.close()
    assert connections_to(quick_server) == []
    assert threads() <= before
    assert are_images(generator.generate(requests(1))), "a later call begins anew"
    generator.close()
    assert threads() <= before


def test_closing_ends_the_calls_under_way(server: Server) -> None:
    handler, generator = server[1], client(server)

    async def run() -> None:
        task = asyncio.create_task(generator.agenerate(requests(2)))
        await asyncio.to_thread(wait_for, lambda: len(handler.asked) == 2, handler)
        await asyncio.to_thread(generator.close)
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    wait_for(lambda: len(handler.left) == 2, handler, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_that_is_forked_has_its_own_connections(quick_server: Server) -> None:
    generator = client(quick_server)
    assert are_images(generator.generate(requests(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if not child:
        os._exit(0 if are_images(generator.generate(requests(1))) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert are_images(generator.generate(requests(1)))
    generator.close()
