"""Keeps the memory of a process that serves for weeks flat: freed memory goes back to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

__all__ = ["leave_to_collector_what_comes", "return_freed_blocks"]

_LIBC: Final = ctypes.CDLL(None) if sys.platform == "linux" else None


def return_freed_blocks() -> None:
    """Have glibc return the free pages of all its arenas to the operating system. Without glibc, nothing happens.

    The arenas of many threads keep images and long bodies that lay between small blocks. To have each large block
    mapped by itself instead costs a seventh of the speed: every intermediate result of a drawing begins with new pages.
    """
    if trim := getattr(_LIBC, "malloc_trim", None):
        trim(0)


def leave_to_collector_what_comes() -> None:
    """Take what exists now out of garbage collection.

    Python collects the oldest generation once a quarter as many objects are new in it. Next to the 600,000 objects of
    models and libraries, the reference cycles of thousands of requests, with the bodies they hold, would count little.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts the oldest generation, which is empty now
