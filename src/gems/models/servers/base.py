"""What all image servers share: retries, deadlines, limits on what a server may send, and protection of keys.

A server is somebody else's program: its answers may be slow, torn, huge or hostile. Whatever it does, a request ends
with one image or one clear error within ``timeout`` seconds.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import re
import threading
import time
import weakref
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from typing import Any, Final, TypeVar, cast

import httpx
from langgraph.errors import GraphDrained
from PIL import Image, ImageFile, ImageOps
from pydantic import SecretStr
from pydantic_core import from_json
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from gems.errors import (
    BackendError,
    ContentRefusedError,
    InputError,
    is_passing_status,
    is_unpaid,
    may_cost,
    meant_status,
)
from gems.models.deadlines import end_reads_at, limit_reads
from gems.models.endings import finish_reason
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback, size_note, unless_stopped
from gems.models.option_effects import OptionEffect, changed_options, effects_of, require_honoured
from gems.models.servers.error_texts import error_message, is_refusal, json_body, retry_after
from gems.options import GeneratorOptions
from gems.secrets import one_line, remember_secret
from gems.stopping import acquire, pause

__all__ = [
    "CHECK_TIMEOUT",
    "MAX_BYTES",
    "MAX_PIXELS",
    "TRUST",
    "PassingError",
    "RemoteGenerator",
    "checked_url",
    "decode_image",
    "explain_options",
    "is_image_file",
    "keep_whole",
    "own_address",
    "read_body",
]

MAX_BYTES: Final = 64 * 2**20
"""Size of the largest accepted answer, in bytes. A 4096 x 4096 PNG of noise has 50 MB. Base64 adds a third to that, but
real images are smaller than noise."""

MAX_PIXELS: Final = 64 * 2**20
"""Size of the largest accepted image, in pixels: a small file can unfold into gigabytes (a decompression bomb)."""

CHECK_TIMEOUT: Final = 15.0
"""Seconds that ``check`` waits for an answer, unless the option ``timeout`` is shorter."""

_CONNECT_TIMEOUT: Final = 15.0
"""Seconds to wait for a connection."""
_MIN_TIMEOUT: Final = 0.05
"""Seconds that a request may take even if its deadline has passed."""
_DECODERS: Final = os.cpu_count() or 1
"""Threads, in addition to those that wait for servers, that decode images."""
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "AVIF")
_JPEG: Final = b"\xff\xd8\xff"
_MAX_TORN: Final = 5
"""Torn copies of an image that was drawn, after which no other copy is fetched."""
_MAX_PAID_TRIES: Final = 3
"""Requests that a server took and that ended without a usable image, after which no other is sent: each of them may
cost as much as an image."""
_NOT_SENT: Final = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol),
    *(httpx.WriteError, httpx.WriteTimeout, httpx.LocalProtocolError),
)
"""What went wrong before a request was complete, so that no server has begun with it."""
_LOSSES: Final = re.compile("disconnected|closed")
"""How the client says that an answer was lost. Whatever else it finds wrong with HTTP, another try would not mend."""
_MAX_REDIRECTS: Final = 4
_CERTIFICATE: Final = "CERTIFICATE_VERIFY_FAILED"
TRUST: Final = "; name the file of the authority that you trust in SSL_CERT_FILE"
"""What to do about a server whose certificate nobody vouches for; to ask it again is of no use."""
_IMPATIENT: Final = "; a gateway before the server waits too short a time: give the server's own address"
_THIS_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})  # noqa: S104 - nothing is bound to it
"""Names that a server on this machine gives itself."""
_LET_BASE64: Final = "let the server answer in base64"
_KEY_HINT: Final = "; set the right key (GEMS_IMAGE_API_KEY)"
_OWN_ADDRESS: Final = ", or the server's own address if a gateway before it refuses this machine"
_NOT_THERE_YET: Final = (202, 204, 404)
"""What storage answers about an image that was drawn a moment ago."""
_WAIT: Final = wait_random_exponential(multiplier=0.5, max=20)
"""Exponential back-off in seconds, with full jitter, so that many clients do not return at the same time."""


_T = TypeVar("_T")


class PassingError(BackendError):
    """A fault that may pass, so that a retry is worthwhile.

    Attributes:
        after: Seconds that the server asks to wait before the retry.
        may_cost: Whether the server may have drawn an image for the failed try; of a file that is fetched, whether it
            is torn.
        tries: How often it was tried in all.
        costly_tries: How many of these tries may have cost an image.
        rest: The image in a torn file, if no more than the end of its last rows is missing.
    """

    def __init__(
        self, message: str, *, after: float = 0.0, may_cost: bool = False, rest: Image.Image | None = None
    ) -> None:
        super().__init__(message, retryable=True)
        self.rest = rest
        self.after = after
        self.may_cost = may_cost
        self.tries = 1
        self.costly_tries = int(may_cost)


def _try_until(deadline: Callable[[], float], attempt: Callable[[], _T], most_costly: int) -> _T:
    """Try again after passing faults, until the deadline or a number of faults that may cost.

    Raises:
        PassingError: The last one, with its number of tries.
    """
    costly_tries = 0
    reason: PassingError | None = None

    def counted() -> _T:
        nonlocal costly_tries, reason
        try:
            return attempt()
        except PassingError as error:
            costly_tries += error.may_cost
            # A try that the deadline cut short says less than the one before it.
            reason = error if reason is None or time.monotonic() < deadline() else reason
            raise

    def is_over(state: RetryCallState) -> bool:
        return costly_tries >= most_costly or time.monotonic() + state.upcoming_sleep >= deadline()

    retrying = Retrying(
        retry=retry_if_exception_type(PassingError), stop=is_over, wait=_pause, sleep=pause, reraise=True
    )
    try:
        return retrying(counted)
    except PassingError as error:
        fault = reason or error
        fault.tries, fault.costly_tries = retrying.statistics.get("attempt_number", 1), costly_tries
        raise fault from None


class RemoteGenerator(ABC):
    """Base class of the generators behind a server. A subclass defines a single try.

    Args:
        name: The name of this backend in records.
        base_url: The server's address, to which paths are added.
        options: How images are drawn.
        key: Sent as a bearer token, and never shown.
    """

    def __init__(self, name: str, base_url: str, options: GeneratorOptions, key: SecretStr | None = None) -> None:
        self.name, self.options = name, options
        self.url = checked_url(base_url)
        remember_secret(key)
        self._client = _client(name, options.concurrency, key)
        weakref.finalize(self, self._client.close)  # at the end of the process, too: generators are cached
        self._slots = threading.BoundedSemaphore(options.concurrency)

    draws_for_many: Final = True
    """See ``generators.draws_for_many``."""

    @property
    def edits(self) -> bool:
        """See ``ImageGenerator.edits``."""
        return False

    @property
    def requested_size(self) -> tuple[int | None, int | None]:
        """Width and height that the server is asked for; None where it decides."""
        return self.options.width, self.options.height

    @property
    def reproducible(self) -> bool:
        """See ``generators.is_reproducible``."""
        return True

    def option_effects(self, *, on_this_machine: bool = True) -> tuple[OptionEffect, ...]:
        """See ``ExplainsOptions.option_effects``; the constructor has refused what the server would ignore."""
        return effects_of(self.options, {})

    @property
    def fingerprint(self) -> str:
        """The model's name and a hash of the server's address: only the server knows its weights.

        A hash, because every image and record has the fingerprint, and the address is nobody else's business.
        """
        kind = self.name.partition(":")[0]
        model = self.name if kind == "openai" else kind
        address = str(self.url.copy_with(username=None, password=None))
        return f"{model}@{hashlib.sha256(address.encode()).hexdigest()[:16]}"

    @abstractmethod
    def make(self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]) -> bytes | Image.Image:
        """Try once to get one image.

        Args:
            request: The image to draw.
            deadline: When to give up, on the monotonic clock.
            on_preview: May be called with steps; their ``index`` is ignored.

        Returns:
            The bytes of an image file, which are not decoded in the time of a slot; or the image.
        """

    @abstractmethod
    def check(self) -> str:
        """Check whether the server can be used, without drawing an image; returns one line about it.

        Raises:
            BackendError: It cannot.
        """

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``. Requests are sent at the same time, up to ``concurrency`` of them."""
        if not requests:
            return []
        report = on_step or (lambda _: None)

        def draw(index: int) -> GeneratedImage | BackendError | GraphDrained:
            try:
                image = self._retry(requests[index], lambda s: report(Step(index, s.step, s.steps, s.preview)))
            except (BackendError, GraphDrained) as error:
                return error
            report(Step(index, 1, 1))
            request = self.as_drawn(requests[index])
            return GeneratedImage(request, image, size_note(self.name, self.requested_size, image))

        if len(requests) == 1:
            return unless_stopped([draw(0)])
        # More threads than slots: while one decodes an image, another one uses its slot.
        with ThreadPoolExecutor(min(len(requests), self.options.concurrency + _DECODERS)) as pool:
            # Each thread gets a copy of this context, in which LangGraph keeps the stream for events.
            futures = [pool.submit(copy_context().run, draw, index) for index in range(len(requests))]
            return unless_stopped([future.result() for future in futures])

    def as_drawn(self, request: ImageRequest) -> ImageRequest:
        """A request as the server has drawn it, without what it refuses."""
        return request

    def _retry(self, request: ImageRequest, on_preview: Callable[[Step], None]) -> Image.Image:
        """Try until there is an image, an error that will not pass, or no time left."""
        deadline = math.inf  # set by the first try: waiting for a slot does not count

        def attempt() -> Image.Image:
            nonlocal deadline
            with acquire(self._slots):
                deadline = min(deadline, time.monotonic() + self.options.timeout)
                image = self.make(request, deadline, on_preview)
            return decode_image(image, self.name) if isinstance(image, bytes) else image

        def paid() -> Image.Image:
            try:
                return attempt()
            except PassingError as error:  # another image would cost as much
                if error.rest is None:
                    raise
                return error.rest

        try:
            return _try_until(lambda: deadline, paid, _MAX_PAID_TRIES)
        except PassingError as error:
            notes = [f"{error.tries} tries in {self.options.timeout:g} s"] if error.tries > 1 else []
            if error.costly_tries:
                number = "it" if error.tries == 1 else f"{error.costly_tries} of them"
                notes.append(f"{number} may have been charged")
            raise BackendError(f"{error} ({', '.join(notes)})" if notes else str(error), retryable=False) from None

    def fetch_drawn(self, path: str, deadline: float, **arguments: Any) -> bytes:
        """The body of an answer about an image that is being drawn.

        A passing fault is tried again here: ``make`` would have the image drawn, and paid, again.
        """
        return self._fetch_again(lambda: _fetch_file(self, path, deadline, **arguments)[0], deadline)

    def fetch_image(self, path: str, deadline: float, **arguments: Any) -> Image.Image:
        """An image that was drawn. A torn copy, or a page in place of it, is fetched again, like ``fetch_drawn``."""

        def fetch() -> Image.Image:
            data, kind = _fetch_file(self, path, deadline, **arguments)
            data = _without_base64(data)
            if not is_image_file(data):
                raise PassingError(f"{self.name}: {self._host} sends no image, but {kind or 'nothing'}", may_cost=True)
            return decode_image(data, self.name)

        with _told_as_drawn(self.name):
            return self._fetch_again(fetch, deadline)

    def _fetch_again(self, fetch: Callable[[], _T], deadline: float) -> _T:
        try:
            return _try_until(lambda: deadline, fetch, _MAX_TORN)
        except PassingError as error:
            if isinstance(error.rest, Image.Image):  # no other copy is better
                return cast(_T, error.rest)
            raise BackendError(str(error), retryable=False) from None

    # --- talking to the server ----------------------------------------------------------------------------------------

    def fetch(self, method: str, path: str, deadline: float, **arguments: Any) -> tuple[bytes, str]:
        """The body and media type of a successful answer.

        Args:
            method: The HTTP method.
            path: Added to the server's address; or a complete address.
            deadline: When to give up, on the monotonic clock.
            **arguments: Further arguments of the httpx request.

        Raises:
            PassingError: The server is busy, broken, slow or unreachable.
            ContentRefusedError: The server refuses to draw the prompt.
            BackendError: The server rejects the request.
        """
        with self.exchange(method, path, deadline, **arguments) as response:
            body = read_body(response, deadline)
            self.check_status(response, body)
            return body, response.headers.get("content-type", "").partition(";")[0].strip().lower()

    @contextmanager
    def exchange(self, method: str, path: str, deadline: float, **arguments: Any) -> Iterator[httpx.Response]:
        """An answer whose body has not been read yet. Errors of the connection become a ``PassingError``."""
        seconds = max(_MIN_TIMEOUT, deadline - time.monotonic())
        timeout = httpx.Timeout(seconds, connect=min(seconds, _CONNECT_TIMEOUT))
        has_begun = False
        extensions = {"trace": limit_reads}
        try:
            with (
                _until(time.monotonic() + seconds),
                self._client.stream(
                    method, self._full(path), timeout=timeout, extensions=extensions, **arguments
                ) as response,
            ):
                has_begun = response.is_success
                yield response
        except httpx.RequestError as error:  # of the connection, or a body whose compression is damaged
            if isinstance(error, httpx.RemoteProtocolError) and not _LOSSES.search(str(error)):
                fault = f"{self._host} answers, and may charge, but its answer is no valid HTTP ({one_line(error)})"
                raise BackendError(f"{self.name}: {fault}", retryable=False) from None
            if _CERTIFICATE in str(error):
                raise BackendError(f"{self.name}: {self._host}: {one_line(error)}{TRUST}", retryable=False) from None
            is_sent = has_begun or not isinstance(error, _NOT_SENT)
            fault = _fault_of(error, self._host, seconds, is_sent=is_sent, has_begun=has_begun)
            raise PassingError(f"{self.name}: {fault}", may_cost=has_begun or (is_sent and method == "POST")) from None

    def _full(self, path: str) -> httpx.URL:
        if "://" in path:
            return httpx.URL(path)
        if not path:
            return self.url
        own_path, _, query = self.url.raw_path.partition(b"?")
        full_path = own_path.rstrip(b"/") + path.encode("ascii")
        if query:  # such as an API's version, which every request needs
            full_path += (b"&" if b"?" in full_path else b"?") + query
        return self.url.copy_with(raw_path=full_path)

    @property
    def _host(self) -> str:
        return self.url.netloc.decode("ascii").rpartition("@")[2]

    def check_status(self, response: httpx.Response, body: bytes) -> None:
        """Raise the error that a status other than 2xx stands for; see ``fetch``."""
        status = response.status_code
        if status in (204, 205) or (status == 202 and not body.strip()):
            fault = f"{self._host} answers {status}, without an image or a reason"
            raise BackendError(f"{self.name}: {fault}; give an address that answers with the image", retryable=False)
        if 200 <= status < 300:
            _require_unfiltered(self.name, response)
            return
        reason = self.reason(body)
        true_status = meant_status(status, reason)
        if is_passing_status(true_status) and (
            "retry-after" in response.headers or not is_unpaid(body[:4000].decode("utf-8", "replace"))
        ):
            raise PassingError(
                f"{self.name}: {self._host} answers {status}{reason}{_IMPATIENT if status == 524 else ''}",
                after=retry_after(response.headers),
                may_cost=response.request.method == "POST" and may_cost(true_status),
            )
        if 300 <= status < 400:
            raise BackendError(
                f"{self.name}: {self._host} redirects ({status}); give the final address as base_url", retryable=False
            )
        if is_refusal(body):
            raise ContentRefusedError(f"{self.name}: {self._host} refuses to draw this{reason}")
        hint = _KEY_HINT if status in (401, 403) else ""
        if status == 403 and not isinstance(json_body(body), Mapping):  # a page, such as a firewall's
            hint += _OWN_ADDRESS
        raise BackendError(f"{self.name}: {self._host} answers {status}{reason}{hint}", retryable=False)

    def reason(self, body: bytes) -> str:
        """The server's reason for an error, after a colon; empty if it gives none."""
        text = one_line(error_message(body))
        return f": {text}" if text else ""


def _client(name: str, concurrency: int, key: SecretStr | None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    try:
        # No redirects: they could take the key, and the request, to any host.
        return httpx.Client(headers=headers, limits=limits, follow_redirects=False, trust_env=True)
    except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:  # of proxies and certificates
        names = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE"
        raise InputError(f"{name}: the environment has a wrong {names}: {one_line(error)}") from None


def own_address(base: httpx.URL, url: httpx.URL) -> httpx.URL | None:
    """An address that a server gives of itself, as it is reached from here; None if it is another machine's.

    Behind a gateway, a server knows neither the scheme nor the port that its clients use.

    Args:
        base: The server's address from here.
        url: The address that it gives.
    """
    is_own = url.host == base.host or (url.host in _THIS_MACHINE and base.host in _THIS_MACHINE)
    return base.copy_with(raw_path=url.raw_path) if url.scheme in ("http", "https") and is_own else None


@contextmanager
def _told_as_drawn(name: str) -> Iterator[None]:
    """Let the error of an image that cannot be fetched say that it was drawn."""
    try:
        yield
    except ContentRefusedError:
        raise
    except BackendError as error:
        reason = str(error).removesuffix(_OWN_ADDRESS).removesuffix(_KEY_HINT).removeprefix(f"{name}: ")
        fault = f"an image was drawn, and may be charged, but cannot be fetched: {reason}"
        raise BackendError(f"{name}: {fault}", retryable=False) from None


def _require_unfiltered(name: str, response: httpx.Response) -> None:
    ending = response.headers.get("finish-reason", "")  # of Stability and Fireworks, beside a blurred image
    if finish_reason(ending) == "content_filter":
        raise ContentRefusedError(f"{name}: the server's filter stopped the image: {one_line(ending, 60)}")


def _fault_of(error: httpx.RequestError, host: str, seconds: float, *, is_sent: bool, has_begun: bool) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"{host} sends its answer too slowly" if has_begun else f"no answer from {host} in {seconds:.0f} s"
    reason = one_line(error) or type(error).__name__
    if has_begun:
        return f"the answer of {host} is damaged ({reason})"
    return f"{'the connection was lost to' if is_sent else 'cannot reach'} {host} ({reason})"


@contextmanager
def _until(end: float) -> Iterator[None]:
    end_reads_at(end)
    try:
        yield
    finally:
        end_reads_at(math.inf)


def _fetch_file(server: RemoteGenerator, path: str, deadline: float, **arguments: Any) -> tuple[bytes, str]:
    """A drawn image's file, also where the server says that it stands elsewhere on the server, or not yet there."""
    host = server.url.netloc.decode("ascii")
    for _ in range(_MAX_REDIRECTS):
        with server.exchange("GET", path, deadline, **arguments) as response:
            body = read_body(response, deadline)
            target = own_address(server.url, response.next_request.url) if response.next_request else None
            if response.next_request and (target is None or target == response.url):
                fault = f"the image is elsewhere ({one_line(response.next_request.url.copy_with(query=None), 80)})"
                raise BackendError(f"{server.name}: {fault}, which is not fetched; {_LET_BASE64}", retryable=False)
            if target is None:
                if response.status_code in _NOT_THERE_YET:
                    fault = f"{server.name}: {host} answers {response.status_code}{server.reason(body)}"
                    raise PassingError(fault, may_cost=True)
                server.check_status(response, body)
                return body, response.headers.get("content-type", "").partition(";")[0].strip().lower()
        path, arguments = str(target), {}
    raise BackendError(f"{server.name}: {host} redirects without end", retryable=False)


# --- reading answers ------------------------------------------------------------------------------------------------


def read_body(response: httpx.Response, deadline: float) -> bytes:
    """The body of an answer, if it is not too long and arrives in time.

    Raises:
        BackendError: It is longer than ``MAX_BYTES``.
        PassingError: It does not arrive before the deadline.
    """
    parts, size = list[bytes](), 0
    # Damage to the transfer does not matter if the answer is whole: it is paid, and another one would be too.
    try:
        for part in response.iter_raw():
            size += len(part)
            _limit(response, size)
            if time.monotonic() > deadline:
                raise PassingError(f"{response.url.host} sends its answer too slowly", may_cost=response.is_success)
            parts.append(part)
    except (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ReadTimeout):
        body = _unpacked(b"".join(parts))
        if not (_is_whole(body) or body.startswith(_JPEG)):  # how much of a JPEG is missing is seen when it is decoded
            raise
    else:
        body = _decoded(response, b"".join(parts))
    return _in_utf_8(body, response.headers.get("content-type", "")) or body


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
    if charset is None or is_image_file(body) or body.startswith(b"\x1f\x8b"):
        return None
    with suppress(UnicodeError):  # a header that tells wrongly of UTF-8
        body.decode()
        return None
    try:
        return body.decode(charset[1]).encode()
    except (LookupError, UnicodeError):
        return None


def _limit(response: httpx.Response, size: int) -> None:
    if size > MAX_BYTES:
        raise BackendError(f"{response.url.host} sends more than {MAX_BYTES >> 20} MB", retryable=False)


def _decoded(response: httpx.Response, raw: bytes) -> bytes:
    """A body without its compression, which its header may tell wrongly."""
    _require_known_compression(response, raw)
    packed = httpx.Response(200, headers=response.headers, stream=httpx.ByteStream(raw), request=response.request)
    parts, size = list[bytes](), 0
    try:
        for part in packed.iter_bytes():
            size += len(part)
            _limit(response, size)
            parts.append(part)
    except httpx.DecodingError:
        if not _is_whole(raw):
            raise
        return raw
    # The client's decoder reads the first of several parts of a file; two gateways may both have packed it.
    whole = _unpacked(raw)
    return _unpacked(whole if whole is not raw else b"".join(parts))


def _require_known_compression(response: httpx.Response, raw: bytes) -> None:
    """Refuse an answer in a compression that the client has not asked for, and cannot unpack; the next is no better.

    Raises:
        BackendError: It cannot be read, although it was paid.
    """
    accepted = {name.strip().lower() for name in response.request.headers.get("accept-encoding", "").split(",")}
    accepted |= {"", "identity", "x-gzip", "none", "utf-8", "aws-chunked"}
    names = [name.strip().lower() for name in response.headers.get("content-encoding", "").split(",")]
    unknown = [name for name in names if name not in accepted]
    if (
        response.is_success
        and unknown
        and not _is_whole(raw)
        and not is_image_file(raw)
        and not raw.startswith(b"\x1f\x8b")
    ):
        fault = f"{response.url.host} packs its answer ({one_line(unknown[0], 30)}) as nobody asked it to"
        raise BackendError(f"{fault}; install brotli, or let it send plain answers", retryable=False)


def _is_whole(body: bytes) -> bool:
    """Whether an answer is JSON, or an image, to its end."""
    if body.startswith((b"\x89PNG", _JPEG)):
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


def _without_base64(data: bytes) -> bytes:
    """An image file whose gateway has sent it as base64; anything else as it is."""
    try:
        decoded = base64.b64decode(data.strip(b' \t\r\n"'), validate=True)
    except ValueError:
        return data
    return decoded if is_image_file(decoded) else data


def _unpacked(body: bytes) -> bytes:
    """The body without a compression that its header does not tell; as it is if that is damaged or too large."""
    if not body.startswith(b"\x1f\x8b"):
        return body
    content, rest = b"", body
    while rest.startswith(b"\x1f\x8b"):  # a file may have several parts
        reader = zlib.decompressobj(wbits=31)
        try:
            content += reader.decompress(rest, MAX_BYTES)
        except zlib.error:
            return body
        if not reader.eof or len(content) > MAX_BYTES:
            return body
        rest = reader.unused_data
    return content


def decode_image(data: bytes, source: str) -> Image.Image:
    """Decode an image file completely, so that using the image later cannot fail.

    Args:
        data: The bytes of the image file.
        source: The server that sent the file, for error messages.

    Raises:
        PassingError: The file is torn.
        BackendError: The file is not a PNG, JPEG, WebP or AVIF image, or has more than ``MAX_PIXELS``.
    """
    too_large = BackendError(f"{source} sent an image of more than {MAX_PIXELS:,} pixels", retryable=False)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except Exception:  # the decoders raise whatever a damaged file leads them to
        raise BackendError(f"{source} did not send a {', '.join(_FORMATS)} image", retryable=False) from None
    if math.prod(image.size) > MAX_PIXELS:
        raise too_large
    if not math.prod(image.size):
        raise BackendError(f"{source} sent an image without pixels", retryable=False)
    try:
        image.load()
        return _visible(_upright(image), source)
    except BackendError:
        raise
    except Exception:  # as above
        rest = _visible(_upright(whole), source) if (whole := _completed(data, image)) else None
        raise PassingError(f"{source} sent a torn image", may_cost=True, rest=rest) from None


_LOST_ROWS: Final = 18
"""Rows that are not decoded if anything is missing from the last row of a JPEG's blocks, which are 16 pixels high."""


def _completed(data: bytes, torn: ImageFile.ImageFile) -> Image.Image | None:
    """A JPEG that lacks its last bytes, its missing blocks in the colour of the one before them.

    None if more may be missing than the end of its last row of blocks. Of a progressive one, that cannot be told.

    Args:
        data: The file.
        torn: The image as far as it was decoded.
    """
    if not data.startswith(_JPEG) or "progression" in torn.info or torn.height < 10 * _LOST_ROWS:
        return None
    try:
        torn.tile = []
        box = torn.getbbox()  # rows that were not decoded are black
        image = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=("JPEG",))
        image.load()
    except Exception:
        return None
    return image if box and box[3] >= torn.height - _LOST_ROWS else None


def _upright(image: Image.Image) -> Image.Image:
    """The image as viewers show it, which turn it as its EXIF data say."""
    try:
        return ImageOps.exif_transpose(image) if "exif" in image.info else image
    except Exception:  # of damaged EXIF data, which say nothing about the image
        return image


def _visible(image: Image.Image, source: str) -> Image.Image:
    """The image in RGB, if there is anything to see."""
    if "transparency" in image.info:  # one colour of a palette, or a grey or a colour, that stands for nothing
        image = image.convert("RGBA")
    if image.mode == "RGB":  # `convert` would copy it
        return image
    if "A" in image.mode and image.getchannel("A").getextrema() == (0, 0):
        raise BackendError(f"{source} sent an image that is transparent everywhere", retryable=False)
    if image.mode.startswith("I"):  # 16 bits for each pixel, which `convert` would cut off at 255
        image = image.convert("F").point(lambda value: value / 256 + 0).convert("L")
    return image.convert("RGB")


def _pause(state: RetryCallState) -> float:
    """Seconds to wait before the next try."""
    error = state.outcome.exception() if state.outcome else None
    return max(_WAIT(state), error.after if isinstance(error, PassingError) else 0.0)


# --- options --------------------------------------------------------------------------------------------------------


def explain_options(
    name: str, options: GeneratorOptions, supported: frozenset[str], refusals: Mapping[str, str] | None = None
) -> tuple[OptionEffect, ...]:
    """What each option does with a server.

    Args:
        name: The generator's name, for error messages.
        options: The options.
        supported: The names of the options that reach the server or decide how it is asked.
        refusals: Why supported options are refused, by name.

    Raises:
        RefusedOptionsError: An option would be ignored.
    """
    ignored = {
        option: f"it cannot honour the option {option}; it supports {', '.join(sorted(supported))}"
        for option in changed_options(options)
        if option not in supported
    }
    effects = effects_of(options, {**(refusals or {}), **ignored})
    require_honoured(name, effects)
    return effects


def checked_url(base_url: str) -> httpx.URL:
    """The address of a server. A password in it is a secret from now on.

    Raises:
        InputError: The text is not the address of a server.
    """
    address = base_url.rpartition("@")[2]  # an error does not repeat a login
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InputError(f"{address!r} is not the address of a server: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{address!r} is not the address of a server; give one such as http://localhost:8000/v1")
    for password in (url.password, url.userinfo.decode().partition(":")[2]):  # as it is sent, and as it is written
        remember_secret(SecretStr(password))
    return url
