"""One body, two faces: code that is written once, as coroutines, for callers with and without an event loop.

``run_here`` is the face without a loop: every wait blocks the thread of the caller, as if there were no ``await``. On
an event loop, a body is awaited as usual: what blocks runs in threads of ``Workers``, never in those of the
application's default pool, and a cancelled task tells its threads to stop.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

from gems.handlers import use_loop_for_handlers
from gems.stopping import POLL_SECONDS, WaitEnded, cancelled_if, is_cancelled, may_be_cancelled

__all__ = [
    "OWN_LOOP",
    "OwnLoop",
    "Turns",
    "Workers",
    "in_line",
    "in_thread",
    "run_here",
    "runs_here",
    "together",
    "until_cancelled",
]

P = ParamSpec("P")
T = TypeVar("T")

_MOST_THREADS: Final = 256
"""Threads for calls that block, of which most wait for a server."""


class Workers:
    """The threads of one graph, begun when they are needed. ``close`` ends them."""

    def __init__(self, most_threads: int = _MOST_THREADS) -> None:
        self._most_threads = most_threads
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], T], context: Context) -> Future[T]:
        """Make a call in a thread, in a context that nobody else is in."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._most_threads, thread_name_prefix="gems")
            return self._pool.submit(context.run, call)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Let ``in_thread`` use these threads in the block."""
        token = _WORKERS.set(self)
        try:
            yield
        finally:
            _WORKERS.reset(token)

    def close(self) -> None:
        """End the threads, after the calls that they are making. Later calls begin new ones."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(cancel_futures=True)


_WORKERS: ContextVar[Workers] = ContextVar("gems_workers", default=Workers())  # noqa: B039 - meant to be shared
_BLOCKED_PLACE: ContextVar[object] = ContextVar("gems_here", default=None)
"""The thread, and the event loop that runs in it, in which a body is run without a loop."""


def _place() -> tuple[int, object]:
    return threading.get_ident(), asyncio._get_running_loop()


def runs_here() -> bool:
    """Whether the current body is run by ``run_here``, so that it has to block where it waits."""
    return _BLOCKED_PLACE.get() == _place()


def run_here(body: Coroutine[Any, Any, T]) -> T:
    """Run a body without an event loop, also in a thread in which one is running.

    Raises:
        RuntimeError: The body awaits something else than the functions of this module do.
    """
    token = _BLOCKED_PLACE.set(_place())
    try:
        body.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        _BLOCKED_PLACE.reset(token)
        body.close()
    raise RuntimeError(
        f"{getattr(body, '__qualname__', body)} needs an event loop; use ainvoke, or a model without one"
    )


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Make a call that blocks or computes: here, or off the event loop in a thread of ours.

    If the task is cancelled, a call that has not begun never does, and another one is told to stop, see
    ``gems.stopping``; its result is dropped.
    """
    if runs_here():
        return call(*args, **kwargs)
    has_ended = threading.Event()
    with cancelled_if(has_ended.is_set):
        context = copy_context()
    use_loop_for_handlers(context, asyncio.get_running_loop())

    def work() -> T:
        try:
            return call(*args, **kwargs)
        except StopIteration as error:  # which no future can carry: whoever awaits it would wait for ever
            raise RuntimeError("coroutine raised StopIteration") from error  # as it is without an event loop

    future = _WORKERS.get().submit(work, context)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        has_ended.set()
        raise


_LINES: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]]] = WeakKeyDictionary()
"""Those who wait for their turn to compute, by event loop."""


async def in_line() -> None:
    """Let one body begin in each cycle of the event loop: many that begin in the same one would make it late."""
    if runs_here():
        return
    loop = asyncio.get_running_loop()
    line, turn = _LINES.setdefault(loop, deque()), loop.create_future()
    line.append(turn)
    if len(line) == 1:
        loop.call_soon(_admit_next, loop, line)
    await turn


def _admit_next(loop: asyncio.AbstractEventLoop, line: deque[asyncio.Future[None]]) -> None:
    while line:
        turn = line.popleft()
        if not turn.cancelled():
            turn.set_result(None)
            break
    if line:
        loop.call_soon(_admit_next, loop, line)


async def until_cancelled(body: Coroutine[Any, Any, T]) -> T:
    """Await a body on an event loop, and cancel it when the run is cancelled by its ``RunControl``.

    A body that is cancelled, by that or with its caller, has ended when this function ends.

    Raises:
        WaitEnded: The run was cancelled.
    """
    if not may_be_cancelled():
        return await body
    task = asyncio.ensure_future(body)  # one of its own: a client of the user's may raise what it likes when cancelled
    task.add_done_callback(_take_error)
    try:
        while not (await asyncio.wait([task], timeout=POLL_SECONDS))[0]:
            if is_cancelled():
                raise WaitEnded("cancelled while a model was asked")
        return task.result()
    except (asyncio.CancelledError, WaitEnded):
        task.cancel()
        await asyncio.wait([task])
        raise


def _take_error(task: asyncio.Task[Any]) -> None:
    """Keep asyncio from reporting the error of a task that was cancelled as one that nobody has looked at."""
    if not task.cancelled():
        task.exception()


class Turns:
    """Bodies that wait for one of a number of places. On an event loop, they hold no thread meanwhile."""

    def __init__(self, places: int = 1) -> None:
        # Reentrant: the garbage collector, which closes bodies that nobody runs on with, may come at any time.
        self._free, self._lock = places, threading.RLock()
        self._waiting: deque[_Turn] = deque()

    async def __aenter__(self) -> None:
        if runs_here():  # the model's own lock is waited for in any case
            return
        turn = _Turn()
        with self._lock:
            self._waiting.append(turn)
        self._admit()
        try:
            await turn.future
        except BaseException:  # cancelled, or closed since its loop has ended
            with self._lock:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    raise
            self._leave()  # it came at the same moment
            raise

    async def __aexit__(self, *_: object) -> None:
        if not runs_here():
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._free += 1
        self._admit()

    def _admit(self) -> None:
        with self._lock:
            while self._free and self._waiting:
                self._free -= 1
                if not self._waiting.popleft().come():
                    self._free += 1


class _Turn:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.future = self._loop.create_future()

    def come(self) -> bool:
        """Tell the one who waits, from any thread; False if its event loop has ended."""
        try:
            self._loop.call_soon_threadsafe(self._set)
        except RuntimeError:
            return False
        return True

    def _set(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


async def together(bodies: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run several bodies at the same time.

    Raises:
        Exception: The first error in their order, once all have ended: what the others do is paid for.
    """
    if len(bodies) == 1:
        return [await bodies[0]]
    if not runs_here():
        outcomes = await asyncio.gather(*bodies, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
        return cast(list[T], outcomes)
    is_interrupted = threading.Event()
    with cancelled_if(is_interrupted.is_set), ThreadPoolExecutor(max(1, len(bodies))) as pool:
        futures = [pool.submit(copy_context().run, run_here, body) for body in bodies]
        try:
            return [future.result() for future in futures]
        except BaseException as error:
            if not isinstance(error, Exception):  # Ctrl-C, which only this thread gets
                is_interrupted.set()
            raise


class OwnLoop:
    """An event loop in a thread of ours, for clients that belong to the loop on which they are used.

    Applications call from threads, and from several loops, which end before the client does. The loop begins with its
    first user and ends with its last one. What would hold it up runs in its own default pool, by ``asyncio.to_thread``.
    """

    def __init__(self) -> None:
        self._begin_anew()
        if hasattr(os, "register_at_fork"):  # of the threads, a fork copies only the one that makes it
            os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._users: set[object] = set()
        self._running: _LoopThread | None = None

    def submit(self, user: object, body: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a body on the loop, with a copy of the caller's context. To cancel the future ends it at once.

        Args:
            user: What keeps the loop running until it leaves.
            body: The coroutine.
        """
        with self._lock:
            self._users.add(user)
            self._running = self._running or _LoopThread()
            return asyncio.run_coroutine_threadsafe(body, self._running.loop)

    def leave(
        self, user: object, say_goodbye: Callable[[], Awaitable[object]]
    ) -> Future[threading.Thread | None] | None:
        """Let the loop end without waiting for a user, after a last function of the user's on it.

        Waits for nothing, not even for a lock, so that the garbage collector may call it.

        Returns:
            The loop's thread, if it ends; None if there is nothing to be ended.
        """
        running = self._running
        if running is None or user not in self._users:
            return None
        return asyncio.run_coroutine_threadsafe(self._part(user, say_goodbye), running.loop)

    async def _part(self, user: object, say_goodbye: Callable[[], Awaitable[object]]) -> threading.Thread | None:
        await say_goodbye()
        with self._lock:
            self._users.discard(user)
            if self._users or self._running is None:
                return None
            running, self._running = self._running, None
        running.end.set()
        return running.thread


class _LoopThread:
    def __init__(self) -> None:
        beginning: Future[asyncio.AbstractEventLoop] = Future()

        async def live() -> None:
            self.end = asyncio.Event()
            beginning.set_result(asyncio.get_running_loop())
            await self.end.wait()

        self.thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True, name="gems-loop")
        self.thread.start()
        self.loop = beginning.result()


OWN_LOOP: Final = OwnLoop()
"""Where the clients of image servers live."""
