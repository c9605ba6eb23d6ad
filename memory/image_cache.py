"""A cache of image files in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

__all__ = ["ImageCache"]

_MAX_BYTES: Final = 64 * 2**20
"""Bytes that a cache holds by default: about forty PNGs of 1024 x 1024 pixels."""


class ImageCache:
    """The image files used last, by address and hash. It is thread-safe.

    Only files whose hash has been verified belong into it.

    Args:
        max_bytes: Total size of the files in the cache; a larger file is not cached.
    """

    def __init__(self, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._size = 0
        self._files: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, uri: str, sha256: str) -> bytes | None:
        """The file; None if it is not in the cache."""
        with self._lock:
            data = self._files.get((uri, sha256))
            if data is not None:
                self._files.move_to_end((uri, sha256))
            return data

    def add(self, uri: str, sha256: str, data: bytes) -> None:
        """Add a file, and drop the files that were not used for longest to make room."""
        with self._lock:
            self._drop(uri, sha256)
            if len(data) > self._max_bytes:
                return
            self._files[uri, sha256] = data
            self._size += len(data)
            while self._size > self._max_bytes:
                self._drop(*next(iter(self._files)))

    def drop(self, uri: str, sha256: str) -> None:
        """Remove a file, if it is in the cache."""
        with self._lock:
            self._drop(uri, sha256)

    def _drop(self, uri: str, sha256: str) -> None:
        self._size -= len(self._files.pop((uri, sha256), b""))
