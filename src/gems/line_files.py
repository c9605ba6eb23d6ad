"""Files of JSON lines that are only ever appended to, and that people edit: a kill can leave half a line at the end."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic_core import from_json

from gems.files import MOST_BYTES, lines_of

__all__ = ["FileLine", "lines_in", "mend_end"]

_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class FileLine:
    """A line that is not blank."""

    number: int
    """From 1, blank lines counted."""
    offset: int
    text: bytes


def lines_in(path: Path, opening: bytes = b"{") -> Iterator[FileLine]:
    """The lines of a file, without what a killed process has left of one; none if the file does not exist.

    Args:
        path: The file.
        opening: How each line that is written to it begins.

    Raises:
        OSError: As for ``lines_of``.
    """
    offset = 0
    for number, text in enumerate(lines_of(path, within=path.parent), start=1):
        if text.strip() and not _is_torn(text, opening):
            yield FileLine(number, offset, text)
        offset += len(text)


def mend_end(path: Path, opening: bytes = b"{") -> None:
    """Let a file end with a whole line: what a killed process has left of one goes, and nothing else does.

    An editor may have dropped the last line feed, which is added. For the one process that writes; see ``lines_in``.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if file.read() in (b"", b"\n"):
            return
        file.seek(max(0, end - MOST_BYTES))
        last = file.read().rpartition(b"\n")[2]
        if _is_torn(last, opening):
            file.truncate(end - len(last))
        else:
            file.write(b"\n")


def _is_torn(text: bytes, opening: bytes) -> bool:
    """Whether a text is the beginning of one line of ours, and not all of it."""
    if text.endswith(b"\n") or text[: len(opening)] != opening[: len(text)]:
        return False
    try:
        # Without what is left of a last character.
        _DECODER.raw_decode(codecs.getincrementaldecoder("utf-8")().decode(text))
    except json.JSONDecodeError:
        return _begins_json(text)
    except (UnicodeDecodeError, RecursionError):
        return False
    return False  # it is whole, whatever follows


def _begins_json(text: bytes) -> bool:
    try:
        from_json(text, allow_inf_nan=False, allow_partial=True)
    except ValueError:
        return False
    return True
