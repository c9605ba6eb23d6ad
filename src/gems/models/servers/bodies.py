"""The bodies of answers: torn or not, packed or not, whatever their headers say."""

from __future__ import annotations

import asyncio
import base64
import re
import zlib
from contextlib import suppress
from typing import Any, Final

import httpx
from pydantic_core import from_json

from gems.errors import BackendError
from gems.secrets import one_line

__all__ = ["ACCEPTED", "JPEG", "MAX_BYTES", "check_size", "is_image_file", "keep_whole", "read_body", "without_base64"]

MAX_BYTES: Final = 64 * 2**20
"""Size of the largest accepted answer, in bytes. A 4096 x 4096 PNG of noise has 50 MB. Base64 adds a third to that, but
real images are smaller than noise."""

JPEG: Final = b"\xff\xd8\xff"
"""How a JPEG begins."""
_GZIP: Final = b"\x1f\x8b"


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
        if (body := await asyncio.to_thread(_whole, b"".join(parts))) is None:
            raise
    else:
        body = b"".join(parts)
        if "content-encoding" in response.headers or body.startswith(_GZIP):
            body = await asyncio.to_thread(_decoded, response, body)
    return _in_utf_8(body, response.headers.get("content-type", "")) or body


def _whole(raw: bytes) -> bytes | None:
    """What arrived of a torn answer, if no more is needed. What a JPEG lacks is seen when it is decoded."""
    body = _unpacked(raw)
    return body if _is_whole(body) or body.startswith(JPEG) else None


def keep_whole(response: Any) -> None:
    """Keep an answer whose JSON is whole, whatever its headers and its end say: it is paid, and another would be too.

    Args:
        response: An answer whose body has not been read yet; of httpx, or of the package that OpenAI's client uses.
    """
    parts, stream = list[bytes](), response.stream
    try:
        parts.extend(stream)
    except Exception:  # of the transfer
        if not _is_whole(_unpacked(b"".join(parts))):
            raise
    finally:
        stream.close()
    raw = b"".join(parts)
    try:
        body = type(response)(200, headers=response.headers, content=raw).content
    except Exception:  # of the compression that the headers tell
        if not _is_whole(raw):
            raise
        body = raw
    response.headers.pop("content-encoding", None)
    media_type = response.headers.get("content-type", "")
    if text := _in_utf_8(_unpacked(body), media_type):
        response.headers["content-type"] = media_type.partition(";")[0]
    response.stream = type(response)(200, content=text or _unpacked(body)).stream


def _in_utf_8(body: bytes, media_type: str) -> bytes | None:
    """A text in the encoding that its header names, such as GBK, in UTF-8; None if it is no such text."""
    charset = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", media_type, re.I)
    if charset is None or is_image_file(body) or body.startswith(_GZIP):
        return None
    with suppress(UnicodeError):  # a header that tells wrongly of UTF-8
        body.decode()
        return None
    try:
        return body.decode(charset[1]).encode()
    except (LookupError, UnicodeError):
        return None


def check_size(host: str, size: int) -> None:
    """Refuse an answer of too many bytes.

    Raises:
        BackendError: There are more than ``MAX_BYTES``.
    """
    if size > MAX_BYTES:
        raise BackendError(f"{host} sends more than {MAX_BYTES >> 20} MB", retryable=False)


def _decoded(response: httpx.Response, raw: bytes) -> bytes:
    """A body without its compression, which its header may tell wrongly.

    httpx's own decoders unpack whatever they are given: a megabyte could become a gigabyte before it is counted.
    """
    names = _compressions(response)
    _require_known_compression(response, names, raw)
    body = raw
    try:
        for name in reversed(names):
            body = _inflated(response, body, name)
    except zlib.error as error:
        if not _is_whole(raw):
            raise httpx.DecodingError(str(error), request=response.request) from None
        return raw
    # What the header tells is the first of several parts of a file; two gateways may both have packed it.
    whole = _unpacked(raw) if len(names) == 1 else raw
    return _unpacked(whole if whole is not raw else body)


def _inflated(response: httpx.Response, body: bytes, name: str) -> bytes:
    """A body without one compression, as far as it has arrived; as it is if nothing is known of that name."""
    if not body or name not in _WINDOWS:
        return body
    for window in _WINDOWS[name]:
        try:
            content = zlib.decompressobj(window).decompress(body, MAX_BYTES + 1)
        except zlib.error:
            if window == _WINDOWS[name][-1]:
                raise
        else:
            break
    check_size(response.url.host, len(content))
    return content


_WINDOWS: Final = {
    **dict.fromkeys(("gzip", "x-gzip"), (zlib.MAX_WBITS | 16,)),
    "deflate": (zlib.MAX_WBITS, -zlib.MAX_WBITS),  # some servers leave the frame out
}
"""zlib's windows for the compressions that are read."""
ACCEPTED: Final = "gzip, deflate"
"""The compressions that a server is told of. Others cannot be unpacked up to a limit."""
_MAX_LAYERS: Final = 4
"""Compressions around one body."""
_MAX_PARTS: Final = 64
"""Parts of a packed file: the rest is copied for each."""


def _compressions(response: httpx.Response) -> list[str]:
    return [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]


def _require_known_compression(response: httpx.Response, names: list[str], raw: bytes) -> None:
    """Refuse an answer in a compression that the client has not asked for, and cannot unpack; the next is no better.

    Raises:
        BackendError: It cannot be read, although it was paid.
    """
    if len(names) > _MAX_LAYERS:
        raise BackendError(f"{response.url.host} packs its answer {len(names)} times", retryable=False)
    plain = {"", "identity", "none", "utf-8", "aws-chunked"}
    unknown = [name for name in names if name not in _WINDOWS and name not in plain]
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


def without_base64(data: bytes) -> bytes:
    """An image file whose gateway has sent it as base64; anything else as it is."""
    try:
        decoded = base64.b64decode(data.strip(b' \t\r\n"'), validate=True)
    except ValueError:
        return data
    return decoded if is_image_file(decoded) else data


def _unpacked(body: bytes) -> bytes:
    """The body without a compression that its header does not tell; as it is if that is damaged or too large."""
    if not body.startswith(_GZIP):
        return body
    content, rest = b"", body
    for _ in range(_MAX_PARTS):  # a file may have several
        reader = zlib.decompressobj(wbits=31)
        try:
            content += reader.decompress(rest, MAX_BYTES)
        except zlib.error:
            return body
        if not reader.eof or len(content) > MAX_BYTES:
            return body
        rest = reader.unused_data
        if not rest.startswith(_GZIP):
            return content
    return body
