"""Packed answers of image servers: a few bytes neither fill the memory nor take hours."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import httpx
import pytest

from gems.errors import BackendError
from gems.models.servers import bodies

_LIMIT = 2**20
_MUCH = b'"' + b" " * (64 * _LIMIT) + b'"'


class _Body(httpx.AsyncByteStream):
    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


def _read(content: bytes, **headers: str) -> bytes:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    request = httpx.Request("POST", "http://server")
    return asyncio.run(bodies.read_body(httpx.Response(200, headers=sent, stream=_Body(content), request=request)))


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (gzip.compress(_MUCH), "gzip"),
        (gzip.compress(_MUCH), "x-gzip"),
        (gzip.compress(gzip.compress(_MUCH)), "gzip, gzip"),
        (gzip.compress(gzip.compress(_MUCH)), "gzip"),
        (zlib.compress(_MUCH), "deflate"),
        (zlib.compress(_MUCH)[2:-4], "deflate"),
        (gzip.compress(_MUCH), "identity"),
        (gzip.compress(_MUCH), "br"),
    ],
    ids=["gzip", "x-gzip", "twice", "twice, told once", "deflate", "raw deflate", "untold", "told wrongly"],
)
def test_a_packed_answer_is_counted_while_it_is_unpacked(
    packed: bytes, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "MAX_BYTES", _LIMIT)
    tracemalloc.start()
    try:
        with contextlib.suppress(BackendError):
            assert len(_read(packed, content_encoding=encoding)) <= _LIMIT
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 * _LIMIT


def test_a_file_of_countless_parts_is_left_as_it_is() -> None:
    body = gzip.compress(b"") * 200_000
    began = time.monotonic()
    assert _read(body, content_encoding="gzip") in (b"", body)
    assert time.monotonic() - began < 5


def test_an_answer_is_unpacked_a_few_times_at_most() -> None:
    with pytest.raises(BackendError, match="packs its answer 100 times"):
        _read(b"{}", content_encoding=", ".join(["gzip"] * 100))


@pytest.mark.parametrize(
    ("packed", "encoding"),
    [
        (gzip.compress(b"{}"), "gzip"),
        (gzip.compress(b"{") + gzip.compress(b"}"), "gzip"),
        (gzip.compress(zlib.compress(b"{}")), "deflate, gzip"),
        (zlib.compress(b"{}")[2:-4], "Deflate"),
        (gzip.compress(b"{}"), "none"),
        (b"{}", "zstd"),
    ],
)
def test_what_is_packed_is_read(packed: bytes, encoding: str) -> None:
    assert _read(packed, content_encoding=encoding) == b"{}"
