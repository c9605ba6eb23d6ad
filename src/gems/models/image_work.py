"""How much work it is to decode an image file: a small one of somebody else's can keep a processor for hours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["MAX_SCANS", "excess_work"]

MAX_SCANS: Final = 100
"""Passes over the whole image in one JPEG; cameras and programs make one, or about ten of a progressive one."""
_MAX_PARTS: Final = 50_000
"""Segments of a JPEG, or chunks of a PNG. Each takes a moment, and 64 MB hold millions of empty ones."""
_MAX_FILLING: Final = 2**16
"""Bytes between segments that say nothing."""
_MAX_TABLES: Final = 2**16
"""Bytes of an AVIF's tables. libavif compares their entries with each other: so many take it a second, and ten times as
many take minutes, in which nothing else in the process runs. Programs write some hundred, and four for each frame."""

_SCAN: Final = 0xDA
_END: Final = 0xD9
_MARKER: Final = re.compile(rb"\xff(?P<kind>[^\x00\xff])", re.DOTALL)
_MARKER_AFTER_SCAN: Final = re.compile(rb"\xff(?P<kind>[^\x00\xd0-\xd7\xff])", re.DOTALL)
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8"
_AVIF: Final = b"ftyp"
"""What follows the first length of an AVIF."""
_NESTED: Final = (b"meta", b"iprp", b"ipco")
"""Boxes of an AVIF, each in the one before it, that hold data among their tables."""
_DATA: Final = (b"idat", b"colr")
"""Boxes in these that are no tables: images and EXIF data, and colour profiles."""


def excess_work(data: bytes) -> str:
    """Why a file of any format is not decoded, since that would take too long; empty if it would not.

    Of animations only the first frame is decoded, so that their length does not matter.
    """
    if data.startswith(_PNG):
        return _excess_in_png(data)
    if data[4:8] == _AVIF:
        return _excess_in_avif(data)
    return _excess_in_jpeg(data) if data.startswith(_JPEG) else ""


def _excess_in_png(data: bytes) -> str:
    parts = profiles = 0
    for kind in _chunks(data):
        parts, profiles = parts + 1, profiles + (kind == b"iCCP")
        if profiles > 1:  # Pillow inflates each to as much as a megabyte, and keeps the last
            return "more than one colour profile"
        if parts > _MAX_PARTS:
            return f"more than {_MAX_PARTS:,} chunks"
    return ""


def _chunks(png: bytes) -> Iterator[bytes]:
    """The kinds of a PNG's chunks, to its end or where it is torn."""
    position, kind = len(_PNG), b""
    while kind != b"IEND" and position + 8 <= len(png):
        kind = png[position + 4 : position + 8]
        yield kind
        position += 12 + int.from_bytes(png[position : position + 4])


def _excess_in_jpeg(data: bytes) -> str:
    position, parts, scans, filling, marker = len(_JPEG), 0, 0, 0, _MARKER
    while match := marker.search(data, position):
        kind, after = match["kind"][0], match.end()
        filling += match.start() - position if marker is _MARKER else 0
        parts, scans = parts + 1, scans + (kind == _SCAN)
        if kind == _END or scans > MAX_SCANS or parts > _MAX_PARTS or filling > _MAX_FILLING:
            break
        has_length = kind != 0x01 and not 0xD0 <= kind <= 0xD8
        position = after + (int.from_bytes(data[after : after + 2]) if has_length else 0)
        marker = _MARKER_AFTER_SCAN if kind == _SCAN else _MARKER
    if match is None and marker is _MARKER:
        filling += max(0, len(data) - position)
    if scans > MAX_SCANS:
        return f"more than {MAX_SCANS} scans"
    return "too many parts that hold nothing" if parts > _MAX_PARTS or filling > _MAX_FILLING else ""


def _excess_in_avif(data: bytes) -> str:
    size = 0
    for part in _tables(data, 0, len(data)):
        size += part
        if size > _MAX_TABLES:
            return f"more than {_MAX_TABLES:,} bytes of tables"
    return ""


def _tables(data: bytes, position: int, end: int, depth: int = 0) -> Iterator[int]:
    """The sizes of an AVIF's tables: what is in its boxes ``meta`` and ``moov``, and the heads of all boxes."""
    for kind, content, after in _boxes(data, position, end):
        yield content - position
        position = after
        if kind in _NESTED[depth : depth + 1]:
            yield from _tables(data, content + 4 * (kind == b"meta"), after, depth + 1)
        elif kind == b"moov" if depth == 0 else kind not in _DATA:
            yield after - content


def _boxes(data: bytes, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of ISO's base media format between two positions, to where one is torn: kind, content, and its end."""
    while position + 8 <= end:
        size, kind, head = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[position + 8 : position + 16]), 16
        if size and size < head:
            return
        after = min(position + size, end) if size else end
        yield kind, min(position + head, after), after
        position = after
