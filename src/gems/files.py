"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["made_aside", "write_atomically"]


@contextmanager
def made_aside(path: Path) -> Iterator[Path]:
    """A place to make a file or a folder in; it takes the path's own when all went well, and is removed when not."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield aside
        aside.replace(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that no reader and no crash ever meets half of it."""
    with made_aside(path) as aside:
        aside.write_bytes(data)
