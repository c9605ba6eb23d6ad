"""What all image servers share: one image after another, or many at the same time, each with its own tries.

Whatever a server does, a request ends with one image or one clear error within ``timeout`` seconds.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

from langgraph.errors import GraphBubbleUp, GraphDrained
from PIL import Image
from pydantic import SecretStr

from gems.errors import BackendError, GemsError
from gems.models.generators import (
    ASKS,
    GeneratedImage,
    ImageRequest,
    Step,
    StepCallback,
    join_notes,
    size_note,
    unless_stopped,
)
from gems.models.option_effects import OptionEffect, changed_options, effects_of, require_honoured
from gems.models.servers.http_client import ServerClient, UnreachedError
from gems.models.servers.image_files import NOTE
from gems.models.servers.retries import PassingError, charged, try_until
from gems.options import GeneratorOptions
from gems.secrets import one_line
from gems.stopping import acquire

__all__ = ["CHECK_TIMEOUT", "RemoteGenerator", "explain_options"]

CHECK_TIMEOUT: Final = 15.0
"""Seconds that ``check`` waits for an answer, unless the option ``timeout`` is shorter."""

_TINY: Final = 4
"""Pixels of a side of what is no picture of anything."""
_PATIENCE: Final = 30.0
"""Seconds in which a server may start to which no connection was ever made. Behind a wrong address, none will."""
_MAX_PAID_TRIES: Final = 3
"""Requests that a server took and that ended without a usable image, after which no other is sent: each of them may
cost as much as an image."""


class _Report:
    """Reports the steps of one image.

    Args:
        index: The image's place in the call.
        on_step: Is called with the steps; None reports them to nobody.

    Attributes:
        fault: What ``on_step`` has raised, which ends the generation.
    """

    def __init__(self, index: int, on_step: StepCallback | None) -> None:
        self._index, self._on_step = index, on_step
        self.fault: Exception | None = None

    def __call__(self, step: Step) -> None:
        try:
            if self._on_step:
                self._on_step(Step(self._index, step.step, step.steps, step.preview))
        except Exception as error:
            self.fault = error
            raise


class RemoteGenerator(ServerClient, ABC):
    """Base class of the generators behind a server. A subclass defines a single try.

    Args:
        name: The name of this backend in records.
        base_url: The server's address, to which paths are added.
        options: How images are drawn.
        key: Sent as a bearer token, and never shown.
    """

    def __init__(self, name: str, base_url: str, options: GeneratorOptions, key: SecretStr | None = None) -> None:
        super().__init__(name, base_url, options.concurrency, key)
        self.options = options

    draws_for_many: Final = True
    """See ``generators.draws_for_many``."""

    @property
    def edits(self) -> bool:
        """See ``ImageGenerator.edits``."""
        return False

    @property
    def requested_size(self) -> tuple[int | None, int | None]:
        """Width and height that the server is asked for; None where it decides."""
        return self.options.width, self.options.height

    @property
    def reproducible(self) -> bool:
        """See ``generators.is_reproducible``."""
        return True

    def option_effects(self, *, on_this_machine: bool = True) -> tuple[OptionEffect, ...]:
        """See ``ExplainsOptions.option_effects``; the constructor has refused what the server would ignore."""
        return effects_of(self.options, {})

    @property
    def fingerprint(self) -> str:
        """The model's name and a hash of the server's address: only the server knows its weights.

        A hash, because every image and record has the fingerprint, and the address is nobody else's business.
        """
        kind = self.name.partition(":")[0]
        model = self.name if kind == "openai" else kind
        address = str(self.url.copy_with(username=None, password=None))
        return f"{model}@{hashlib.sha256(address.encode()).hexdigest()[:16]}"

    @abstractmethod
    async def make(
        self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]
    ) -> bytes | Image.Image:
        """Try once to get one image. What computes or blocks runs in threads, by ``asyncio.to_thread``.

        Args:
            request: The image to draw.
            deadline: When to give up, on the monotonic clock.
            on_preview: May be called with steps, in a thread; their ``index`` is ignored.

        Returns:
            The bytes of an image file, which are not decoded in the time of a slot; or the image.
        """

    @abstractmethod
    async def acheck(self) -> str:
        """See ``check``."""

    def check(self) -> str:
        """Check whether the server can be used, without drawing an image; returns one line about it.

        Raises:
            BackendError: It cannot.
        """
        return self.wait_for(self.acheck())

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``. Requests are sent at the same time, up to ``concurrency`` of them."""
        return self.wait_for(self._draw_all(requests, on_step)) if requests else []

    async def agenerate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``Asynchronous.agenerate``. ``on_step`` is called in a thread."""
        return await asyncio.wrap_future(self.begin(self._draw_all(requests, on_step))) if requests else []

    async def _draw_all(
        self, requests: Sequence[ImageRequest], on_step: StepCallback | None
    ) -> list[GeneratedImage | BackendError]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._draw(index, request, on_step)) for index, request in enumerate(requests)
                ]
        except BaseExceptionGroup as errors:  # such as that of a step's callback, which ends the generation
            raise errors.exceptions[0] from None
        return unless_stopped([task.result() for task in tasks])

    async def _draw(
        self, index: int, request: ImageRequest, on_step: StepCallback | None
    ) -> GeneratedImage | BackendError | GraphDrained:
        report = _Report(index, on_step)
        try:
            image = await self._retry(request, report)
        except (BackendError, GraphDrained) as error:
            return error
        if on_step:
            await asyncio.to_thread(on_step, Step(index, 1, 1))
        return GeneratedImage(self.as_drawn(request), image, self._note(image))

    @contextmanager
    def _unread_answers(self, report: _Report) -> Iterator[None]:
        """Let a failure of ours on an answer end as an error of one image: those beside it are paid, too.

        Whatever the failure is, to draw the image again would end in the same way.
        """
        try:
            yield
        except (GemsError, GraphBubbleUp):
            raise
        except Exception as error:
            if error is report.fault:
                raise
            words = f"{type(error).__name__}: {one_line(error, 200)}".removesuffix(": ")
            fault = f"an image was asked for, and may be charged, but its answer cannot be read ({words})"
            with charged():
                raise BackendError(f"{self.title}: {fault}", retryable=False) from error

    def _note(self, image: Image.Image) -> str | None:
        """What the user should know about an image."""
        of_size = size_note(self.title, self.requested_size, image)
        if not of_size and max(image.size) <= _TINY:  # such as what stands for an image that is not there
            of_size = f"{self.title} drew only {image.width}x{image.height} pixels"
        return join_notes(of_size, image.info.pop(NOTE, None))

    def as_drawn(self, request: ImageRequest) -> ImageRequest:
        """A request as the server has drawn it, without what it refuses."""
        return request

    async def _retry(self, request: ImageRequest, report: _Report) -> Image.Image:
        """Try until there is an image, an error that will not pass, or no time left."""
        deadline = math.inf  # set by the first try: waiting for a slot does not count

        async def attempt() -> Image.Image:
            nonlocal deadline
            async with acquire(self.slots):
                deadline = min(deadline, time.monotonic() + self.options.timeout)
                if not ASKS.get()(True):
                    raise BackendError(f"{self.title}: the budget leaves no further image", retryable=False)
                with self._unread_answers(report):
                    image = await self.make(request, deadline, report)
            with charged():
                return await self.decode(image) if isinstance(image, bytes) else image

        async def paid() -> Image.Image:
            try:
                return await attempt()
            except BackendError as error:
                if isinstance(error, PassingError) and error.rest is not None:  # another image would cost as much
                    return error.rest
                has_room = ASKS.get()(None if error.may_cost else False)
                if isinstance(error, PassingError) and not has_room:
                    fault = f"{error} (the budget leaves no other try)"
                    raise BackendError(fault, retryable=False) from None
                if isinstance(error, UnreachedError) and time.monotonic() > deadline - self.options.timeout + _PATIENCE:
                    fault = f"{error} for {_PATIENCE:.0f} s; see that the server runs, and that its address is right"
                    raise BackendError(fault, retryable=False) from None
                raise

        try:
            return await try_until(lambda: deadline, paid, _MAX_PAID_TRIES)
        except PassingError as error:
            notes = [f"{error.tries} tries in {self.options.timeout:g} s"] if error.tries > 1 else []
            if error.costly_tries:
                number = "it" if error.tries == 1 else f"{error.costly_tries} of them"
                notes.append(f"{number} may have been charged")
            raise BackendError(f"{error} ({', '.join(notes)})" if notes else str(error), retryable=False) from None


def explain_options(
    name: str, options: GeneratorOptions, supported: frozenset[str], refusals: Mapping[str, str] | None = None
) -> tuple[OptionEffect, ...]:
    """What each option does with a server.

    Args:
        name: The generator's name, for error messages.
        options: The options.
        supported: The names of the options that reach the server or decide how it is asked.
        refusals: Why supported options are refused, by name.

    Raises:
        RefusedOptionsError: An option would be ignored.
    """
    ignored = {
        option: f"it cannot honour the option {option}; it supports {', '.join(sorted(supported))}"
        for option in changed_options(options)
        if option not in supported
    }
    effects = effects_of(options, {**(refusals or {}), **ignored})
    require_honoured(name, effects)
    return effects
