"""One image generator for many prompts in flight: requests that wait at the same time are made in one call.

What inference servers call dynamic batching. Nothing waits for a batch to fill: whoever makes images takes what has
come meanwhile, so that a lone request is made at once and many make large batches. Each tenant has its own queue, and
queues are served in turn (Nagle's fair queueing, RFC 970), so that nobody's thousands hold up anybody's one.
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
    guide_of,
    objection_to,
)
from gems.models.local_weights import load_now

__all__ = ["BatchingGenerator"]

Result: TypeAlias = GeneratedImage | BackendError


@dataclass(slots=True, eq=False)
class _Call:
    """One caller's requests, which may be made in several batches together with those of others."""

    requests: Sequence[ImageRequest]
    on_step: StepCallback | None
    context: Context = field(default_factory=copy_context)
    """The caller's, in which LangGraph keeps where events go."""
    results: dict[int, Result] = field(default_factory=dict)
    done: Future[list[Result]] = field(default_factory=Future)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, index: int, result: Result) -> None:
        with self.lock:
            self.results[index] = result
            if len(self.results) == len(self.requests) and not self.done.done():
                self.done.set_result([self.results[i] for i in range(len(self.requests))])

    def fail(self, error: BaseException) -> None:
        with self.lock:
            if not self.done.done():
                self.done.set_exception(error)


_Item: TypeAlias = tuple[_Call, int]


class _AllGoneError(Exception):
    """Nobody waits for any image of the batch any more."""


class BatchingGenerator:
    """An ``ImageGenerator`` over another one, for calls from many threads. Use it as a context manager.

    A caller whose ``on_step`` raises gets that exception; the others' images are made to their end.

    Args:
        inner: Makes the images; called from a thread of this one's.
        largest: Most images in one call of it.
    """

    def __init__(self, inner: ImageGenerator, *, largest: int) -> None:
        self.name, self.fingerprint, self.edits = inner.name, inner.fingerprint, inner.edits
        self.guide = guide_of(inner)
        self.largest: Final = largest
        self._inner = inner
        self._waiting: OrderedDict[str, deque[_Item]] = OrderedDict()
        self._came = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="images", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._came:
            self._closed = True
            self._came.notify_all()
        self._thread.join()

    def load(self) -> None:
        """Load the inner one's weights now, rather than at the first image."""
        load_now(self._inner)

    def objection(self, prompt: str) -> str:
        """See ``Guided.objection``."""
        return objection_to(self._inner, prompt)

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None, tenant: str = ""
    ) -> list[Result]:
        """See ``ImageGenerator.generate``; ``on_step`` is called from another thread.

        Args:
            requests: What to make.
            on_step: Hears of each step; its ``Step.index`` counts in ``requests``.
            tenant: Whose requests these are.
        """
        if not requests:
            return []
        call = _Call(requests, on_step)
        with self._came:
            if self._closed:
                raise BackendError(f"{self.name}: stopped", retryable=False)
            self._waiting.setdefault(tenant, deque()).extend((call, i) for i in range(len(requests)))
            self._came.notify()
        return call.done.result()

    def _work(self) -> None:
        while batch := self._next():
            self._try(batch)

    def _try(self, batch: list[_Item]) -> None:
        try:
            self._make(batch)
        except BaseException as error:
            if isinstance(error, InputError) and len(batch) > 1:  # the fault of one of them
                for item in batch:
                    self._try([item])
            else:
                for call, _ in batch:
                    call.fail(error)  # whatever it is: they wait for it

    def _next(self) -> list[_Item]:
        """The next batch, an image of each tenant in turn; empty once there is nothing more to come."""
        with self._came:
            while not self._waiting:
                if self._closed:
                    return []
                self._came.wait()
            batch: list[_Item] = []
            while self._waiting and len(batch) < self.largest:
                tenant, queue = self._waiting.popitem(last=False)
                call, index = queue.popleft()
                if queue:
                    self._waiting[tenant] = queue  # to the end of the line
                if not call.done.done():
                    batch.append((call, index))
        return batch or self._next()

    def _make(self, batch: list[_Item]) -> None:
        def on_step(step: Step) -> None:
            call, index = batch[step.index]
            if call.on_step is not None and not call.done.done():
                try:
                    call.context.copy().run(call.on_step, Step(index, step.step, step.steps, step.preview))
                except BaseException as error:
                    call.fail(error)
            if all(call.done.done() for call, _ in batch):
                raise _AllGoneError

        wanted = any(call.on_step for call, _ in batch)
        requests = [call.requests[index] for call, index in batch]
        try:
            results = self._inner.generate(requests, on_step=on_step if wanted else None)
        except _AllGoneError:
            return
        for (call, index), result in zip(batch, results, strict=True):
            call.take(index, result)
