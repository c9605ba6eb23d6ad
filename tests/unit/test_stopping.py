"""Waits end when a run is asked to stop."""

from __future__ import annotations

import asyncio
import threading

import pytest
from langgraph.errors import GraphDrained

from gems.errors import BackendError
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.servers.base import RemoteGenerator
from gems.options import GeneratorOptions
from gems.stopping import WaitEnded, acquire, apause, cancelled_if, ending, pause, stopping


@pytest.mark.parametrize("context", [stopping, ending])
def test_a_pause_ends_with_a_stop(context: type[stopping]) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    with context(stop.is_set), pytest.raises(GraphDrained):
        pause(60)
    timer.join()


@pytest.mark.parametrize("context", [stopping, ending])
def test_a_pause_on_an_event_loop_ends_with_a_stop(context: type[stopping]) -> None:
    async def run() -> None:
        stop = threading.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        with context(stop.is_set), pytest.raises(GraphDrained):
            await apause(60)

    asyncio.run(run())


def test_a_pause_without_a_stop_lasts() -> None:
    with stopping(lambda: False), ending(lambda: False):
        pause(0.01)


def test_a_run_that_is_to_stop_does_not_wait_for_its_turn() -> None:
    async def wait(slots: asyncio.Semaphore) -> None:
        async with acquire(slots):
            raise AssertionError("it was not its turn")

    async def run() -> None:
        slots, stop = asyncio.Semaphore(1), threading.Event()
        async with acquire(slots):
            asyncio.get_running_loop().call_later(0.05, stop.set)
            with stopping(stop.is_set), pytest.raises(GraphDrained, match="before its turn"):
                await wait(slots)
            assert slots.locked()
        assert not slots.locked(), "it is not the turn of what was stopped"

    asyncio.run(run())


@pytest.mark.parametrize(("context", "is_ended"), [(stopping, False), (cancelled_if, True)])
def test_a_request_under_way_ends_with_a_cancel_and_not_with_a_stop(context: type[stopping], is_ended: bool) -> None:
    async def ask(slots: asyncio.Semaphore, is_requested: threading.Event) -> bool:
        with context(is_requested.is_set):
            try:
                async with acquire(slots):
                    is_requested.set()
                    await asyncio.sleep(0.3)  # longer than it takes to notice
            except WaitEnded:
                return True
        return False

    async def run() -> None:
        slots = asyncio.Semaphore(1)
        assert await ask(slots, threading.Event()) is is_ended
        assert not slots.locked()

    asyncio.run(run())


class HalfBusy(RemoteGenerator):
    """Draws some prompts at once, and lets the others wait until the run is stopped."""

    async def make(self, request: ImageRequest, deadline: float, on_preview: object) -> bytes:
        if request.prompt == "busy":
            await apause(60)
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        return file.getvalue()

    async def acheck(self) -> str:
        return "here"


def test_images_that_are_paid_for_are_kept_when_others_are_stopped() -> None:
    generator = HalfBusy("half", "http://127.0.0.1:1", GeneratorOptions())
    with ending(lambda: True):
        image, error = generator.generate([ImageRequest("fine", 1), ImageRequest("busy", 2)])
        assert isinstance(image, GeneratedImage)
        assert isinstance(error, BackendError)
        with pytest.raises(GraphDrained):
            generator.generate([ImageRequest("busy", 1), ImageRequest("busy", 2)])


@pytest.mark.parametrize("context", [stopping, cancelled_if, ending])
def test_what_is_inside_of_something_that_stops_stops_with_it_and_by_itself(context: type[stopping]) -> None:
    outer, inner = threading.Event(), threading.Event()
    with context(outer.is_set):
        with context(inner.is_set):
            pause(0)
            for reason in (outer, inner):
                reason.set()
                with pytest.raises(GraphDrained):
                    pause(0)
                reason.clear()
            inner.set()
        pause(0)  # a reason of the inner one is none of the outer one
    outer.set()
    pause(0)
