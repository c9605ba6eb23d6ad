"""The lines before an answer's body without those that no client reads, such as a warning of a script before them.

What comes after them may be paid, and is read as if they were not there.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_whole_head", "readable_head"]

_END: Final = re.compile(rb"\n\r?\n")
_FIELD: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\0]*")
_MISLEADING: Final = re.compile(
    rb"content-length:(?!\s*\d+(?:\s*,\s*\d+)*\s*$)|transfer-encoding:\s*identity\s*$", re.I
)
"""Matches lines that name no length, or no encoding, which clients refuse."""
_LONGEST: Final = 2**16
"""Bytes after which no end of the lines is waited for."""


def is_whole_head(data: bytes) -> bool:
    """Whether all lines before the body are there, or too much for any more of them to be waited for."""
    return bool(_END.search(data)) or len(data) >= _LONGEST


def readable_head(data: bytes) -> bytes:
    """The beginning of an answer with only those lines before its body that can be read.

    Args:
        data: The first bytes of the answer, as many as ``is_whole_head`` asks for.
    """
    end = _END.search(data := data.lstrip(b"\r\n"))
    if end is None:
        return data
    status, *lines = data[: end.start()].split(b"\n")
    good_lines, continues = [status], False
    for line in lines:
        text = line.rstrip(b"\r")
        if not (continues and line.startswith((b" ", b"\t"))):
            continues = bool(_FIELD.fullmatch(text)) and not _MISLEADING.match(text)
        good_lines += [line] if continues else []
    return b"\n".join(good_lines) + data[end.start() :]
