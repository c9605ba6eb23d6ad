"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gems.errors import InputError
from gems.paths import is_in_home, private_file

__all__ = ["atomic_replacement", "refuse_link", "write_atomically"]


@contextmanager
def atomic_replacement(path: Path) -> Iterator[Path]:
    """A path for a temporary file or folder, which replaces ``path`` after the block, or is deleted on an error."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that no reader sees half of it, and no crash leaves half of it.

    In the home folder, the file is for its owner alone, and so are folders that it needs.
    """
    with atomic_replacement(path) as temporary:
        if is_in_home(path):
            private_file(temporary)
        temporary.write_bytes(data)


def refuse_link(path: Path) -> None:
    """Refuse a link in place of a file that is written in place: in somebody else's folder, it can lead anywhere.

    Raises:
        InputError: It is a link.
    """
    if path.is_symlink():
        raise InputError(f"{path} is a link, and this file is written in place; put the file itself there")
