"""One image generator for many callers: requests that wait at the same time are drawn in one batch.

Inference servers call this dynamic batching. No request waits for a batch to fill: the worker takes what has arrived,
so that a single request is drawn at once, and many requests form large batches. Each tenant has its own queue, and the
queues are served in turn (Nagle's fair queueing, RFC 970), so that no tenant's backlog delays the others.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeAlias

from gems.errors import BackendError, InputError
from gems.models.generators import (
    GeneratedImage,
    ImageGenerator,
    ImageRequest,
    Step,
    StepCallback,
    excess_of,
    guide_of,
    objection_to,
    redraws_edits,
    takes_negative_prompts,
)
from gems.models.local_weights import load_now

__all__ = ["BatchingGenerator"]

Result: TypeAlias = GeneratedImage | BackendError


@dataclass(slots=True, eq=False)
class _Call:
    """The requests of one caller, which may be drawn in several batches together with those of others."""

    requests: Sequence[ImageRequest]
    on_step: StepCallback | None
    context: Context = field(default_factory=copy_context)
    """The caller's context, in which LangGraph keeps the stream for events."""
    results: dict[int, Result] = field(default_factory=dict)
    """The results, by the index of the request."""
    future: Future[list[Result]] = field(default_factory=Future)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, index: int, result: Result) -> None:
        """Add the result of one request; the last one completes the call."""
        with self.lock:
            self.results[index] = result
            if len(self.results) == len(self.requests) and not self.future.done():
                self.future.set_result([self.results[i] for i in range(len(self.requests))])

    def fail(self, error: BaseException) -> None:
        """End the call with an error, unless it has ended."""
        with self.lock:
            if not self.future.done():
                self.future.set_exception(error)


_Item: TypeAlias = tuple[_Call, int]
"""A call, and the index of one of its requests."""


class _AbandonedError(Exception):
    """No caller waits for any image of the batch any more."""


class BatchingGenerator:
    """An ``ImageGenerator`` that batches the requests of many threads for another one. Use it as a context manager.

    A caller whose ``on_step`` raises gets that exception; the images of the others are finished.

    Args:
        inner: Draws the images, in a thread of this object.
        max_batch_size: The most images in one call of ``inner``.
    """

    def __init__(self, inner: ImageGenerator, *, max_batch_size: int) -> None:
        self.name, self.fingerprint, self.edits = inner.name, inner.fingerprint, inner.edits
        self.guide, self.redraws_edits = guide_of(inner), redraws_edits(inner)
        self.takes_negative_prompts: Final = takes_negative_prompts(inner)
        self.max_batch_size: Final = max_batch_size
        self._inner = inner
        self._queues: OrderedDict[str, deque[_Item]] = OrderedDict()
        """By tenant; the next one to be served is first. No queue is empty."""
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="images", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def load(self) -> None:
        """Load the weights of the inner generator now, rather than at the first image."""
        load_now(self._inner)

    def objection(self, prompt: str) -> str:
        """See ``Guided.objection``."""
        return objection_to(self._inner, prompt)

    def excess(self, prompt: str) -> str:
        """See ``ReadsSoMuch.excess``."""
        return excess_of(self._inner, prompt)

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None, tenant: str = ""
    ) -> list[Result]:
        """See ``ImageGenerator.generate``; ``on_step`` is called from another thread.

        Args:
            requests: The images to draw.
            on_step: Called after each step; ``Step.index`` is an index into ``requests``.
            tenant: Who asks for them; tenants are served in turn.
        """
        if not requests:
            return []
        call = _Call(requests, on_step)
        with self._changed:
            if self._closed:
                raise BackendError(f"{self.name}: stopped", retryable=False)
            self._queues.setdefault(tenant, deque()).extend((call, i) for i in range(len(requests)))
            self._changed.notify()
        return call.future.result()

    def _work(self) -> None:
        while batch := self._next():
            self._try(batch)

    def _try(self, batch: list[_Item]) -> None:
        """Draw a batch. If its input is refused, draw each image alone, since one of them is at fault."""
        try:
            self._draw(batch)
        except BaseException as error:  # whatever went wrong, the callers are waiting for it
            if isinstance(error, InputError) and len(batch) > 1:
                for item in batch:
                    self._try([item])
            else:
                for call, _ in batch:
                    call.fail(error)

    def _next(self) -> list[_Item]:
        """The next batch, with one image of each tenant in turn; empty once this object is closed and idle."""
        with self._changed:
            while not self._queues:
                if self._closed:
                    return []
                self._changed.wait()
            batch: list[_Item] = []
            while self._queues and len(batch) < self.max_batch_size:
                tenant, queue = self._queues.popitem(last=False)
                call, index = queue.popleft()
                if queue:
                    self._queues[tenant] = queue  # to the end of the line
                if not call.future.done():
                    batch.append((call, index))
        return batch or self._next()

    def _draw(self, batch: list[_Item]) -> None:
        def on_step(step: Step) -> None:
            call, index = batch[step.index]
            if call.on_step is not None and not call.future.done():
                try:
                    call.context.copy().run(call.on_step, Step(index, step.step, step.steps, step.preview))
                except BaseException as error:
                    call.fail(error)
            if all(call.future.done() for call, _ in batch):
                raise _AbandonedError

        has_listeners = any(call.on_step for call, _ in batch)
        requests = [call.requests[index] for call, index in batch]
        try:
            results = self._inner.generate(requests, on_step=on_step if has_listeners else None)
        except _AbandonedError:
            return
        for (call, index), result in zip(batch, results, strict=True):
            call.add(index, result)
