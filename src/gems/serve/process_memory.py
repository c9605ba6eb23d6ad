"""Keeps the memory of a process that serves for weeks flat: freed memory goes back to the operating system."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

__all__ = ["leave_to_collector_what_comes", "return_freed_blocks"]

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
"""Parameters of glibc's mallopt(3)."""
_LARGE_BLOCK: Final = 256 * 1024
"""Bytes from which a block is mapped by itself, and unmapped when it is freed: images and long bodies."""
_FREE_TOP: Final = 1024 * 1024
"""Free bytes at the end of an arena from which they are returned."""


def return_freed_blocks() -> None:
    """Have glibc map each large block by itself. Without glibc, nothing happens.

    By default, glibc raises this threshold to the size of the largest block that was freed, up to 32 MiB: from the
    first image on, images and long bodies lie between small blocks in the arenas of many threads, which keep them.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _FREE_TOP)


def leave_to_collector_what_comes() -> None:
    """Take what exists now out of garbage collection.

    Python collects the oldest generation once a quarter as many objects are new in it. Next to the 600,000 objects of
    models and libraries, the reference cycles of thousands of requests, with the bodies they hold, would count little.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # counts the oldest generation, which is empty now
