"""The bodies of answers: torn or not, packed or not, whatever their headers say."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import re
import sys
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import httpx
from httpx._decoders import SUPPORTED_DECODERS, ContentDecoder
from pydantic_core import from_json

from gems.errors import BackendError
from gems.secrets import one_line

__all__ = [
    "JPEG",
    "MAX_BYTES",
    "is_image_file",
    "is_packed",
    "is_page",
    "is_text",
    "keep_whole",
    "read_body",
    "without_base64",
]

MAX_BYTES: Final = 64 * 2**20
"""Size of the largest accepted answer, in bytes. A 4096 x 4096 PNG of noise has 50 MB. Base64 adds a third to that, but
real images are smaller than noise."""

JPEG: Final = b"\xff\xd8\xff"
"""How a JPEG begins."""
_GZIP: Final = b"\x1f\x8b"
_ENCODINGS: Final = re.compile("ascii|big5|cp|euc_|gb|hz|iso|johab|koi8|kz1048|mac|ptcp|shift_jis|tis|utf")
"""Matches Python's names of the encodings of texts; of its other codecs, "idna" takes an hour for a few megabytes."""


async def read_body(response: httpx.Response) -> bytes:
    """The body of an answer whose stream is limited.

    Raises:
        BackendError: It unpacks to more than ``MAX_BYTES``.
        httpx.RequestError: It is torn, or does not arrive in time.
    """
    parts = list[bytes]()
    # Damage to the transfer does not matter if the answer is whole: it is paid, and another one would be too.
    try:
        async for part in response.aiter_raw():
            parts.append(part)
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ReadTimeout):
        if (body := await asyncio.to_thread(_whole, response, b"".join(parts))) is None:
            raise
    else:
        body = b"".join(parts)
        if "content-encoding" in response.headers or body.startswith(_GZIP):
            body = await asyncio.to_thread(_decoded, response, body)
    return _in_utf_8(body, response.headers.get("content-type", "")) or body


def _whole(response: httpx.Response, raw: bytes) -> bytes | None:
    """What arrived of a torn answer, if no more is needed. What a JPEG lacks is seen when it is decoded."""
    bodies = list[bytes]()
    for codings in ([], _codings(response)):
        with suppress(_DamagedError, _TooLargeError):
            bodies.append(_unpacked(_without_codings(raw, codings)))
    return next((body for body in bodies if _is_whole(body) or body.startswith(JPEG)), None)


def keep_whole(response: Any) -> None:
    """Keep an answer whose JSON is whole, whatever its headers and its end say: it is paid, and another would be too.

    One that is too long becomes an error. Halves of characters are replaced, which packages fail on.

    Args:
        response: An answer whose body has not been read yet; of httpx, or of the package that OpenAI's client uses.
    """
    try:
        body = _completion(response)
    except _TooLargeError:
        error = {"message": f"it sends more than {MAX_BYTES >> 20} MB", "code": 400}
        body = json.dumps({"error": error}).encode()
    response.headers.pop("content-encoding", None)
    media_type = response.headers.get("content-type", "")
    text = _HALF_A_CHARACTER.sub(_whole_character, _in_utf_8(body, media_type) or body)
    if ";" in media_type:  # the client would decode an error by any codec that is named there
        response.headers["content-type"] = media_type.partition(";")[0]
    response.stream = type(response)(200, content=text).stream


_HALF_A_CHARACTER: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|\\(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|\\."
)
"""Matches each escape in JSON, and names those that spell half of a UTF-16 character, which is none."""


def _whole_character(escape: re.Match[bytes]) -> bytes:
    return rb"\ufffd" if escape["half"] else escape[0]


def _completion(response: Any) -> bytes:
    parts, size, codings = list[bytes](), 0, _codings(response)
    try:
        for part in response.stream:
            size += len(part)
            if size > MAX_BYTES:
                raise _TooLargeError
            parts.append(part)
    except _TooLargeError:
        raise
    except Exception:  # of the transfer
        if (body := _whole(response, b"".join(parts))) is None:
            raise
        return body
    finally:
        response.stream.close()
    raw = b"".join(parts)
    try:
        return _unpacked(_without_codings(raw, codings))
    except _DamagedError as error:
        if not _is_whole(raw):
            package = sys.modules[type(response).__module__.partition(".")[0]]
            raise package.DecodingError(str(error), request=response.request) from None
        return raw


def _in_utf_8(body: bytes, media_type: str) -> bytes | None:
    """A text in the encoding that its header names, such as GBK, in UTF-8; None if it is no such text."""
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", media_type, re.I)
    if charset is None or is_image_file(body) or body.startswith(_GZIP):
        return None
    with suppress(UnicodeError):  # a header that tells wrongly of UTF-8
        body.decode()
        return None
    try:
        is_for_text = _ENCODINGS.match(codecs.lookup(charset[1]).name)
        return body.decode(charset[1]).encode() if is_for_text else None
    except (LookupError, UnicodeError):
        return None


def check_size(host: str, size: int) -> None:
    """Refuse an answer of too many bytes.

    Raises:
        BackendError: There are more than ``MAX_BYTES``.
    """
    if size > MAX_BYTES:
        raise too_large(host)


def too_large(host: str) -> BackendError:
    """The error about a server that sends more than ``MAX_BYTES``."""
    return BackendError(f"{host} sends more than {MAX_BYTES >> 20} MB", retryable=False)


ACCEPTED: Final = "gzip, deflate"
"""The compressions that a server is told of; others can be unpacked where their package is installed."""


class _TooLargeError(Exception):
    """A body has more than ``MAX_BYTES``."""


class _DamagedError(Exception):
    """A compression cannot be read."""


_ZLIB: Final = ("gzip", "x-gzip", "deflate")
_PLAIN: Final = ("", "identity", "none", "utf-8", "aws-chunked")
_MOST_CODINGS: Final = 4
_BITE: Final = 256
"""Bytes that unfold into a few megabytes at most, for decoders without a limit of their own."""


def _codings(response: Any) -> list[str]:
    """The compressions of a body that its header names, the first one innermost."""
    return [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]


def _without_codings(raw: bytes, codings: Sequence[str]) -> bytes:
    """A body without compressions; those that are not known are left. A small body may unfold into gigabytes.

    Raises:
        _TooLargeError: It has more than ``MAX_BYTES``.
        _DamagedError: It is not packed so.
    """
    for name in codings[::-1][:_MOST_CODINGS]:
        if name in _ZLIB:
            raw = _inflated(raw)
        elif name not in _PLAIN and (decoder := SUPPORTED_DECODERS.get(name)):
            raw = _bitten(raw, decoder())
    return raw


def _inflated(raw: bytes) -> bytes:
    """What zlib reads, however it is wrapped."""
    fault = None
    for wrapping in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):
        try:
            content = zlib.decompressobj(wrapping).decompress(raw, MAX_BYTES + 1)
        except zlib.error as error:
            fault = fault or error
            continue
        if len(content) > MAX_BYTES:
            raise _TooLargeError
        return content
    raise _DamagedError(str(fault))


def _bitten(raw: bytes, decoder: ContentDecoder) -> bytes:
    parts, size = list[bytes](), 0
    try:
        for start in range(0, len(raw), _BITE):
            parts.append(decoder.decode(raw[start : start + _BITE]))
            size += len(parts[-1])
            if size > MAX_BYTES:
                raise _TooLargeError
        parts.append(decoder.flush())
    except httpx.DecodingError as error:
        raise _DamagedError(str(error)) from None
    return b"".join(parts)


def _decoded(response: httpx.Response, raw: bytes) -> bytes:
    """A body without its compression, which its header may tell wrongly."""
    codings = _codings(response)
    _require_known_compression(response, codings, raw)
    try:
        content = _without_codings(raw, codings)
        # A decoder reads the first of several parts of a file; two gateways may both have packed it.
        whole = _unpacked(raw) if len(codings) == 1 else raw
        return _unpacked(whole if whole is not raw else content)
    except _TooLargeError:
        raise too_large(response.url.host) from None
    except _DamagedError as error:
        if not _is_whole(raw):
            raise httpx.DecodingError(str(error), request=response.request) from None
        return raw


def _require_known_compression(response: httpx.Response, codings: Sequence[str], raw: bytes) -> None:
    """Refuse an answer in a compression that the client has not asked for, and cannot unpack; the next is no better.

    Raises:
        BackendError: It cannot be read, although it was paid.
    """
    if len(codings) > _MOST_CODINGS:
        raise BackendError(f"{response.url.host} packs its answer {len(codings)} times", retryable=False)
    unknown = [name for name in codings if name not in _ZLIB and name not in _PLAIN and name not in SUPPORTED_DECODERS]
    if response.is_success and unknown and not _is_whole(raw) and not is_image_file(raw) and not raw.startswith(_GZIP):
        fault = f"{response.url.host} packs its answer ({one_line(unknown[0], 30)}) as nobody asked it to"
        raise BackendError(f"{fault}; let it send plain answers", retryable=False)


def _is_whole(body: bytes) -> bool:
    """Whether an answer is JSON, or an image, to its end."""
    if body.startswith((b"\x89PNG", JPEG)):
        return body.endswith((b"IEND\xaeB`\x82", b"\xff\xd9"))
    try:
        return isinstance(from_json(body), (dict, list))
    except ValueError:
        return False


def is_image_file(data: bytes) -> bool:
    """Whether a file begins like an image; some servers send images with the type of a text."""
    is_webp, is_avif = data.startswith(b"RIFF") and data[8:12] == b"WEBP", data[4:8] == b"ftyp"
    is_bmp = data.startswith(b"BM") and data[6:10] == bytes(4)
    return data.startswith((b"\x89PNG", b"\xff\xd8\xff", *_OTHER_FORMATS)) or is_webp or is_avif or is_bmp


_OTHER_FORMATS: Final = (b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP", b"\xff\x0a", b"\xff\x4f\xff\x51", b"8BPS")
"""How images of formats begin that are not decoded: to ask for another one would cost as much, and be no better."""


def is_text(body: bytes) -> bool:
    """Whether a body is a short text to read, such as an error, whatever its header says."""
    try:
        text = body.decode()
    except UnicodeError:
        return False
    return len(body) < _LONGEST_TEXT and "<svg" not in text[:500] and all(c.isprintable() or c.isspace() for c in text)


def is_page(body: bytes) -> bool:
    """Whether a body is a page for people."""
    return bool(
        re.match(rb"\s*(?:\xef\xbb\xbf)?\s*(?:<!--.{0,400}?-->\s*)?<(?:!doctype html|html)\b", body[:1000], re.I | re.S)
    )


_LONGEST_TEXT: Final = 2**14


def is_packed(body: bytes) -> bool:
    """Whether a body that has been read is still packed, since it is damaged."""
    return body.startswith(_GZIP)


def without_base64(data: bytes) -> bytes:
    """An image file whose gateway has sent it as base64; anything else as it is."""
    try:
        decoded = base64.b64decode(data.strip(b' \t\r\n"'), validate=True)
    except ValueError:
        return data
    return decoded if is_image_file(decoded) else data


def _unpacked(body: bytes) -> bytes:
    """The body without a compression that its header does not tell; as it is if that is damaged.

    Raises:
        _TooLargeError: It has more than ``MAX_BYTES``.
    """
    if not body.startswith(_GZIP):
        return body
    content, rest = b"", body
    for _ in range(_MOST_PARTS):  # a file may have several
        if not rest.startswith(_GZIP):
            break
        reader = zlib.decompressobj(wbits=31)
        try:
            content += reader.decompress(rest, MAX_BYTES + 1)
        except zlib.error:
            return body
        if len(content) > MAX_BYTES:
            raise _TooLargeError
        if not reader.eof:
            return body
        rest = reader.unused_data
    return content


_MOST_PARTS: Final = 64
