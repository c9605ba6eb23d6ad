"""Models and stores that a process makes once: they are freed when the last one who holds them lets them go."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Generic, ParamSpec, TypeVar, cast

__all__ = ["holding", "release", "shared"]

P = ParamSpec("P")
T = TypeVar("T")

_PROCESS: Final = object()
"""Holds what is asked for outside ``holding``, for as long as the process runs."""
_HOLDER: ContextVar[object] = ContextVar("gems_holder", default=_PROCESS)


@contextmanager
def holding(holder: object) -> Iterator[None]:
    """Let a holder have what is asked for in the block."""
    token = _HOLDER.set(holder)
    try:
        yield
    finally:
        _HOLDER.reset(token)


class shared(Generic[P, T]):  # noqa: N801 - a decorator, like functools.cache
    """Makes a value once for the same arguments, like ``functools.cache``, and keeps it while somebody holds it."""

    _all: Final[list[shared[Any, Any]]] = []

    def __init__(self, make: Callable[P, T]) -> None:
        self.__doc__, self.__wrapped__ = make.__doc__, make
        self._values: dict[Hashable, tuple[T, list[object]]] = {}
        self._lock = threading.RLock()
        self._all.append(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """The value; made with the function's own errors."""
        key, holder = (args, tuple(sorted(kwargs.items()))), _HOLDER.get()
        with self._lock:
            if key not in self._values:
                self._values[key] = self.__wrapped__(*args, **kwargs), []
            value, holders = self._values[key]
            if not any(other is holder for other in holders):
                holders.append(holder)
        return value

    def cache_clear(self) -> None:
        """Forget all values, without closing them."""
        with self._lock:
            self._values.clear()

    def let_go(self, holder: object) -> list[T]:
        """The values that nobody holds any more when this one lets them go; they are forgotten."""
        free = []
        with self._lock:
            for key, (value, holders) in list(self._values.items()):
                holders[:] = [other for other in holders if other is not holder]
                if not holders:
                    del self._values[key]
                    free.append(value)
        return free


def release(holder: object) -> None:
    """Let go of all that a holder has, and close what nobody else holds."""
    has_freed = False
    for function in shared._all:
        for value in function.let_go(holder):
            has_freed = True
            release(value)  # what it holds itself, such as the weights of a generator
            close = getattr(value, "close", None)
            if callable(close):
                cast(Callable[[], object], close)()
    if has_freed:
        gc.collect()  # models are full of circles
