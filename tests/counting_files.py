"""A file system that counts how often each of its files is read."""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["CountingFileSystem", "empty_counting_files"]


class CountingFileSystem(MemoryFileSystem):
    """An in-memory substitute for a bucket: ``counting://FOLDER``."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    reads: ClassVar[Counter[str]] = Counter()
    """Number of reads per file name, without the folder."""

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        self.reads[path.rpartition("/")[2]] += 1
        data: bytes = super().cat_file(path, start, end, **kwargs)
        return data


def empty_counting_files() -> Counter[str]:
    """Delete all files of ``counting://``, reset the counts and return them."""
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    CountingFileSystem.store.clear()
    CountingFileSystem.reads.clear()
    return CountingFileSystem.reads
