"""Waits end when a run is asked to stop."""

from __future__ import annotations

import threading

import pytest
from langgraph.errors import GraphDrained

from gems.errors import BackendError
from gems.models.generators import GeneratedImage, ImageRequest
from gems.models.servers.base import RemoteGenerator
from gems.options import GeneratorOptions
from gems.stopping import acquire, ending, pause, stopping


@pytest.mark.parametrize("context", [stopping, ending])
def test_a_pause_ends_with_a_stop(context: type[stopping]) -> None:
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    with context(stop.is_set), pytest.raises(GraphDrained):
        pause(60)
    timer.join()


def test_a_pause_without_a_stop_lasts() -> None:
    with stopping(lambda: False), ending(lambda: False):
        pause(0.01)


def test_a_run_that_is_to_stop_does_not_wait_for_its_turn() -> None:
    slots = threading.Semaphore(1)
    with acquire(slots):
        with stopping(lambda: True), pytest.raises(GraphDrained), acquire(slots):
            pass
        assert not slots.acquire(blocking=False)
    assert slots.acquire(blocking=False)


class HalfBusy(RemoteGenerator):
    """Draws some prompts at once, and lets the others wait until the run is stopped."""

    def make(self, request: ImageRequest, deadline: float, on_preview: object) -> bytes:
        if request.prompt == "busy":
            pause(60)
        import io

        from PIL import Image

        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        return file.getvalue()

    def check(self) -> str:
        return "here"


def test_images_that_are_paid_for_are_kept_when_others_are_stopped() -> None:
    generator = HalfBusy("half", "http://127.0.0.1:1", GeneratorOptions())
    with ending(lambda: True):
        image, error = generator.generate([ImageRequest("fine", 1), ImageRequest("busy", 2)])
        assert isinstance(image, GeneratedImage)
        assert isinstance(error, BackendError)
        with pytest.raises(GraphDrained):
            generator.generate([ImageRequest("busy", 1), ImageRequest("busy", 2)])
