"""A service that is asked for a run. It may be somebody else's program: what it answers is bounded, and read strictly.

It has no say in where files are written, but for the name of its run, which is checked and stays as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Final, Literal

import httpx
from httpx_sse import ServerSentEvent, connect_sse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gems.errors import BackendError, GemsError, InputError
from gems.json_text import first_fault, parse_json

__all__ = ["FINAL", "ServiceClient", "ServiceRun", "connected"]

FINAL: Final = ("done", "failed", "cancelled")
"""The states of a run that has ended."""
_MAX_BYTES: Final = 64 * 2**20
"""Bytes of an answer, and of all events of a run."""
_SECONDS: Final = 60.0
"""Seconds without a byte of the service, which sends some every 15 seconds."""
_LAST_YEAR: Final = 253_402_300_799.0
"""The last second of the year 9999, since 1970."""

_Path = Annotated[str, Field(pattern=r"^/(?:[!-.0-\[\]-~][!-\[\]-~]*)?$", max_length=4000)]
"""An address on the service itself: not of another host, which ``//`` or a backslash would begin."""
_Time = Annotated[float, Field(ge=0, le=_LAST_YEAR)]


class _Picture(BaseModel):
    url: _Path


class _Row(BaseModel):
    model_config = ConfigDict(extra="allow")

    id: str = ""
    question: str
    kind: str
    skill: str
    answer: Literal["yes", "no", "unsure"] | None
    confidence: float | None
    reason: str


class _Attempt(BaseModel):
    model_config = ConfigDict(extra="allow")

    round: int
    seed: int


class _Usage(BaseModel):
    model_config = ConfigDict(extra="allow")

    images: int
    chat_calls: int
    seconds: float


class ServiceRun(BaseModel):
    """A run as the service shows it: what is used of it here."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,99}$")]
    thread: str
    prompt: str
    status: str
    started_at: _Time | None
    ended_at: _Time | None
    outcome: Literal["solved", "accepted", "rounds", "budget", "stalled", "cancelled", "failed"] | None
    score: float
    image: _Picture | None
    best: int | None
    attempts: list[_Attempt]
    requirements: list[_Row]
    skills: list[str]
    usage: _Usage
    errors: list[str]
    notes: list[str] = []
    """Older services have none."""
    report: _Path | None
    error: str | None
    error_kind: str | None


class ServiceClient:
    """Asks one service. The key goes to this address alone: redirects are not followed.

    Args:
        url: The service's address.

    Raises:
        InputError: It is no address, or the environment's proxies or certificates cannot be used.
    """

    def __init__(self, url: str) -> None:
        if not re.match(r"https?://[^/@]+(/|$)", url):
            raise InputError("--service takes the address of a gems serve, such as http://127.0.0.1:8000")
        key = os.environ.get("GEMS_API_KEY", "")
        # Nothing is packed: a few bytes could unpack to more than the memory holds.
        self._headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {key}"} if key else {})}
        self.url = url
        self._http = self._opened()

    def _opened(self) -> httpx.Client:
        try:
            return httpx.Client(base_url=self.url, headers=self._headers, timeout=_SECONDS)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:
            raise InputError(f"--service {self.url}, or a proxy of the environment, cannot be used: {error}") from None

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def begin(self, prompt: str, settings: Any) -> ServiceRun:
        """Begin a run."""
        return self._run("POST", "/v1/runs", json={"prompt": prompt, "settings": settings})

    def run(self, run: str) -> ServiceRun:
        """A run as it stands."""
        return _same(run, self._run("GET", f"/v1/runs/{run}"))

    def events(self, run: str) -> Iterator[dict[str, Any] | ServiceRun]:
        """What happens in a run, and the run itself whenever its state changes."""
        with connect_sse(self._http, "GET", f"/v1/runs/{run}/events") as source:
            response = source.response
            _check_plain(response)
            assert isinstance(response.stream, httpx.SyncByteStream)  # of a client without a loop
            response.stream = _LimitedStream(response.stream)
            response.encoding = "utf-8"  # as of all events, whatever codec a header names
            for message in source.iter_sse():
                yield _same(run, _run_in(message.data)) if message.event == "run" else _event_in(message)

    def cancel(self, run: str) -> None:
        """Cancel a run, whether or not the service answers, on a connection of its own."""
        with suppress(httpx.HTTPError), self._opened() as other, other.stream("POST", f"/v1/runs/{run}/cancel"):
            pass

    def file(self, path: str) -> bytes:
        """A file of the service."""
        status, content = self._fetch("GET", path)
        if status != httpx.codes.OK:
            raise ValueError(f"a file is answered with status {status}")
        return content

    def _run(self, method: str, path: str, **arguments: Any) -> ServiceRun:
        """The run in an answer.

        Raises:
            InputError: The request cannot be used, or the key is wrong.
            BackendError: The service failed, or is full.
        """
        status, content = self._fetch(method, path, **arguments)
        if status < 300:
            return _run_in(content)
        message = str(parse_json(content)["error"]["message"])
        if status in (401, 403):
            raise InputError(f"the service refuses the request: {message}; set GEMS_API_KEY to your key")
        raise (InputError if status < 429 else BackendError)(f"the service refuses the request: {message}")

    def _fetch(self, method: str, path: str, **arguments: Any) -> tuple[int, bytes]:
        content = bytearray()
        with self._http.stream(method, path, **arguments) as response:
            _check_plain(response)
            for part in response.iter_raw():
                content += part
                _check_size(len(content))
        return response.status_code, bytes(content)


class _LimitedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            size += len(part)
            _check_size(size)
            yield part

    def close(self) -> None:
        self._stream.close()


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise ValueError(f"it sends more than {_MAX_BYTES >> 20} MB")


def _check_plain(response: httpx.Response) -> None:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise ValueError("it packs its answer as nobody asked it to")


def _run_in(content: str | bytes) -> ServiceRun:
    try:
        return ServiceRun.model_validate(parse_json(content))
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def _same(run: str, view: ServiceRun) -> ServiceRun:
    if view.id != run:
        raise ValueError("it answers with another run")
    return view


def _event_in(message: ServerSentEvent) -> dict[str, Any]:
    return dict(parse_json(message.data))


@contextmanager
def connected(url: str) -> Iterator[ServiceClient]:
    """A client of a service for the block, in which errors tell what went wrong between here and there.

    Raises:
        InputError: The address, or a request, cannot be used.
        BackendError: The service cannot be reached, or does not answer as one.
    """
    client = ServiceClient(url)
    try:
        yield client
    except GemsError:
        raise
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise BackendError(
            f"the service {url} does not answer ({reason}); start gems serve, or leave --service out"
        ) from error
    except (ArithmeticError, LookupError, TypeError, ValueError, httpx.InvalidURL, httpx.StreamError) as error:
        raise BackendError(f"{url} does not answer as gems serve does ({type(error).__name__}: {error})") from error
    finally:
        client.close()
