"""What all image servers share: retries, deadlines, limits on what a server may send, and protection of keys.

A server is somebody else's program: its answers may be slow, torn, huge or hostile. Whatever it does, a request ends
with one image or one clear error within ``timeout`` seconds.
"""

from __future__ import annotations

import io
import json
import math
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx
from langgraph.errors import GraphDrained
from PIL import Image
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from gems.errors import BackendError, ContentRefusedError, InputError, is_passing_status
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback
from gems.options import GeneratorOptions
from gems.secrets import one_line, remember_secret
from gems.stopping import acquire, pause

__all__ = [
    "CHECK_TIMEOUT",
    "MAX_BYTES",
    "MAX_PIXELS",
    "PassingError",
    "RemoteGenerator",
    "checked_url",
    "decode_image",
    "error_message",
    "read_body",
    "refuse_options",
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
_FORMATS: Final = ("PNG", "JPEG", "WEBP")
_WAIT: Final = wait_random_exponential(multiplier=0.5, max=20)
"""Exponential back-off in seconds, with full jitter, so that many clients do not return at the same time."""


class PassingError(BackendError):
    """A fault that may pass, so that a retry is worthwhile.

    Attributes:
        after: Seconds that the server asks to wait before the retry.
    """

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message, retryable=True)
        self.after = after


class RemoteGenerator(ABC):
    """Base class of the generators behind a server. A subclass defines a single try.

    Args:
        name: The name of this backend in records.
        base_url: The server's address, to which paths are added.
        options: How images are drawn.
        key: Sent as a bearer token, and never shown.
    """

    def __init__(self, name: str, base_url: str, options: GeneratorOptions, key: SecretStr | None = None) -> None:
        self.name = name
        self.options = options
        self.url = checked_url(base_url)
        remember_secret(key)
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        limits = httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
        # No redirects: they could take the key, and the request, to any host.
        self._client = httpx.Client(headers=headers, limits=limits, follow_redirects=False, trust_env=True)
        self._slots = threading.BoundedSemaphore(options.concurrency)

    @property
    def edits(self) -> bool:
        """See ``ImageGenerator.edits``."""
        return False

    @property
    def fingerprint(self) -> str:
        """Name and address, since only the server knows its weights."""
        return f"{self.name}@{self.url.copy_with(username=None, password=None)}"

    @abstractmethod
    def make(self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]) -> bytes:
        """Try once to get one image.

        Args:
            request: The image to draw.
            deadline: When to give up, on the monotonic clock.
            on_preview: May be called with steps; their ``index`` is ignored.

        Returns:
            The bytes of an image file.
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
            return GeneratedImage(requests[index], image)

        if len(requests) == 1:
            return _unless_stopped([draw(0)])
        # More threads than slots: while one decodes an image, another one uses its slot.
        with ThreadPoolExecutor(min(len(requests), self.options.concurrency + _DECODERS)) as pool:
            # Each thread gets a copy of this context, in which LangGraph keeps the stream for events.
            futures = [pool.submit(copy_context().run, draw, index) for index in range(len(requests))]
            return _unless_stopped([future.result() for future in futures])

    def _retry(self, request: ImageRequest, on_preview: Callable[[Step], None]) -> Image.Image:
        """Try until there is an image, an error that will not pass, or no time left."""
        deadline = math.inf  # set by the first try: waiting for a slot does not count

        def attempt() -> Image.Image:
            nonlocal deadline
            with acquire(self._slots):
                deadline = min(deadline, time.monotonic() + self.options.timeout)
                data = self.make(request, deadline, on_preview)
            return decode_image(data, self.name)

        def is_over(state: RetryCallState) -> bool:
            return time.monotonic() + state.upcoming_sleep >= deadline

        retrying = Retrying(
            retry=retry_if_exception_type(PassingError), stop=is_over, wait=_pause, sleep=pause, reraise=True
        )
        try:
            return retrying(attempt)
        except PassingError as error:
            tries = retrying.statistics.get("attempt_number", 1)
            message = f"{error} ({tries} tries in {self.options.timeout:g} s)" if tries > 1 else str(error)
            raise BackendError(message, retryable=False) from None

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
        try:
            with self._client.stream(method, self._full(path), timeout=timeout, **arguments) as response:
                yield response
        except httpx.TimeoutException:
            raise PassingError(f"{self.name}: no answer from {self._host} in {seconds:.0f} s") from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise PassingError(f"{self.name}: cannot reach {self._host} ({reason})") from None

    def _full(self, path: str) -> httpx.URL:
        if "://" in path:
            return httpx.URL(path)
        return self.url.copy_with(path=self.url.path.rstrip("/") + path) if path else self.url

    @property
    def _host(self) -> str:
        return self.url.netloc.decode("ascii").rpartition("@")[2]

    def check_status(self, response: httpx.Response, body: bytes) -> None:
        """Raise the error that a status other than 2xx stands for; see ``fetch``."""
        status = response.status_code
        if 200 <= status < 300:
            return
        reason = self._reason(body)
        if is_passing_status(status):
            raise PassingError(
                f"{self.name}: {self._host} answers {status}{reason}", after=_retry_after(response.headers)
            )
        if 300 <= status < 400:
            raise BackendError(
                f"{self.name}: {self._host} redirects ({status}); give the final address as base_url", retryable=False
            )
        if _is_refusal(body):
            raise ContentRefusedError(f"{self.name}: {self._host} refuses to draw this{reason}")
        hint = "; set the right key (GEMS_IMAGE_API_KEY)" if status in (401, 403) else ""
        raise BackendError(f"{self.name}: {self._host} answers {status}{reason}{hint}", retryable=False)

    def _reason(self, body: bytes) -> str:
        text = one_line(error_message(body))
        return f": {text}" if text else ""


def _unless_stopped(
    results: Sequence[GeneratedImage | BackendError | GraphDrained],
) -> list[GeneratedImage | BackendError]:
    """The results. If the run was stopped, the images that were made meanwhile are paid for, and kept.

    Raises:
        GraphDrained: The run was stopped before any image was made.
    """
    has_image = any(isinstance(result, GeneratedImage) for result in results)
    outcomes: list[GeneratedImage | BackendError] = []
    for result in results:
        if not isinstance(result, GraphDrained):
            outcomes.append(result)
        elif has_image:
            outcomes.append(BackendError(str(result), retryable=False))
        else:
            raise result
    return outcomes


# --- reading answers ------------------------------------------------------------------------------------------------


def read_body(response: httpx.Response, deadline: float) -> bytes:
    """The body of an answer, if it is not too long and arrives in time.

    Raises:
        BackendError: It is longer than ``MAX_BYTES``.
        PassingError: It does not arrive before the deadline.
    """
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        if size > MAX_BYTES:
            raise BackendError(f"{response.url.host} sends more than {MAX_BYTES >> 20} MB", retryable=False)
        if time.monotonic() > deadline:
            raise PassingError(f"{response.url.host} sends its answer too slowly")
        parts.append(part)
    return b"".join(parts)


def decode_image(data: bytes, source: str) -> Image.Image:
    """Decode an image file completely, so that using the image later cannot fail.

    Args:
        data: The bytes of the image file.
        source: The server that sent the file, for error messages.

    Raises:
        PassingError: The file is torn.
        BackendError: The file is not a PNG, JPEG or WebP image, or has more than ``MAX_PIXELS``.
    """
    too_large = BackendError(f"{source} sent an image of more than {MAX_PIXELS:,} pixels", retryable=False)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except (OSError, ValueError, SyntaxError):
        raise BackendError(f"{source} did not send a {', '.join(_FORMATS)} image", retryable=False) from None
    if math.prod(image.size) > MAX_PIXELS:
        raise too_large
    try:
        image.load()
    except (OSError, ValueError, SyntaxError):
        raise PassingError(f"{source} sent a torn image") from None
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy an RGB image


def error_message(body: bytes) -> str:
    """The message in the body of an error, in any server's format; empty if there is none that can be shown."""
    content = _json(body)
    if isinstance(content, Mapping):
        message = content.get("error") or content.get("detail") or content.get("message")
        if isinstance(message, Mapping):
            message = message.get("message") or message.get("details")
        if isinstance(message, list) and message and isinstance(message[0], Mapping):  # FastAPI's validation errors
            first = message[0]
            message = f"{'.'.join(map(str, first.get('loc', ())))}: {first.get('msg', '')}"
        return str(message or "")
    text = body[:300].decode("utf-8", "replace")
    return "" if "<html" in text.lower() else text


_REFUSALS: Final = ("content_policy", "moderation_blocked", "safety system", "content policy", "responsibleai")
"""Phrases by which servers say that they refuse a prompt."""


def _is_refusal(body: bytes) -> bool:
    text = body[:4000].decode("utf-8", "replace").lower()
    return any(phrase in text for phrase in _REFUSALS)


def _json(body: bytes) -> object:
    try:
        return json.loads(body)
    except ValueError:
        return None


def _retry_after(headers: httpx.Headers) -> float:
    """Seconds to wait, from either form of the header (RFC 9110, 10.2.3)."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def _pause(state: RetryCallState) -> float:
    """Seconds to wait before the next try."""
    error = state.outcome.exception() if state.outcome else None
    return max(_WAIT(state), error.after if isinstance(error, PassingError) else 0.0)


# --- options --------------------------------------------------------------------------------------------------------


def refuse_options(name: str, options: GeneratorOptions, supported: frozenset[str]) -> None:
    """Refuse options that would be ignored.

    Raises:
        InputError: An option is set that the backend does not support.
    """
    defaults = GeneratorOptions()
    for field in GeneratorOptions.model_fields:
        if getattr(options, field) != getattr(defaults, field) and field not in supported:
            raise InputError(f"{name} cannot honour the option {field}; it supports {', '.join(sorted(supported))}")


def checked_url(base_url: str) -> httpx.URL:
    """The address of a server.

    Raises:
        InputError: The text is not the address of a server.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InputError(f"{base_url!r} is not the address of a server: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{base_url!r} is not the address of a server; give one such as http://localhost:8000/v1")
    return url
