"""Images from servers: what all of them share. Retries, deadlines, limits on what a server may send, and no secrets.

A server is somebody else's program: its answers may be slow, torn, huge or hostile. Whatever it does, a request ends
with one image or with one clear error, within ``timeout`` seconds.
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
from PIL import Image
from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_random_exponential

from gems.errors import BackendError, ContentRefusedError, InputError, is_passing_status
from gems.models.generators import GeneratedImage, ImageRequest, Step, StepCallback
from gems.options import GeneratorOptions
from gems.secrets import one_line, remember_secret

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "PassingError",
    "RemoteGenerator",
    "checked_url",
    "decode_image",
    "refuse_options",
]

MAX_BYTES: Final = 64 * 2**20
"""Bytes of one answer. A 4096 x 4096 PNG of noise has 50 MB; in base64 a third more, but no such image is noise."""

MAX_PIXELS: Final = 64 * 2**20
"""Pixels of one image: a small file can unfold into gigabytes (a decompression bomb)."""

_DECODERS: Final = os.cpu_count() or 1
_FORMATS: Final = ("PNG", "JPEG", "WEBP")
_WAIT: Final = wait_random_exponential(multiplier=0.5, max=20)
"""Exponential back-off with full jitter, so that many clients do not come back at once."""


class PassingError(BackendError):
    """Something that may be gone in a moment. ``after`` is how many seconds the server asks to be left alone."""

    def __init__(self, message: str, *, after: float = 0.0) -> None:
        super().__init__(message, retryable=True)
        self.after = after


class RemoteGenerator(ABC):
    """Base of the generators that ask a server. A subclass says how one try is made.

    Args:
        name: What to call this backend in records.
        base_url: Of the server; paths are added to it.
        options: How it is run.
        key: Sent as a bearer token, and shown to nobody else.
    """

    def __init__(self, name: str, base_url: str, options: GeneratorOptions, key: SecretStr | None = None) -> None:
        self.name = name
        self.options = options
        self.url = checked_url(base_url)
        remember_secret(key)
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        limits = httpx.Limits(max_connections=options.concurrency, max_keepalive_connections=options.concurrency)
        # No redirects: they could lead the key, and us, anywhere.
        self._client = httpx.Client(headers=headers, limits=limits, follow_redirects=False, trust_env=True)
        self._slots = threading.BoundedSemaphore(options.concurrency)

    @property
    def edits(self) -> bool:
        """See ``ImageGenerator.edits``."""
        return False

    @property
    def fingerprint(self) -> str:
        """Name and address: what weights a server runs, only the server knows."""
        return f"{self.name}@{self.url.copy_with(username=None, password=None)}"

    @abstractmethod
    def make(self, request: ImageRequest, deadline: float, on_preview: Callable[[Step], None]) -> bytes:
        """One try at one image, as a file. ``on_preview`` may be told of steps; their index is filled in."""

    @abstractmethod
    def check(self) -> str:
        """Tell whether the server can be used, without making an image.

        Raises:
            BackendError: It cannot.
        """

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``. Requests are sent at once, as many as ``concurrency`` allows."""
        if not requests:
            return []
        tell = on_step or (lambda _: None)

        def one(index: int) -> GeneratedImage | BackendError:
            try:
                image = self._persist(requests[index], lambda s: tell(Step(index, s.step, s.steps, s.preview)))
            except BackendError as error:
                return error
            tell(Step(index, 1, 1))
            return GeneratedImage(requests[index], image)

        if len(requests) == 1:
            return [one(0)]
        # A few more than there are slots: those that decode leave theirs to others.
        with ThreadPoolExecutor(min(len(requests), self.options.concurrency + _DECODERS)) as pool:
            # Each thread has a copy of this one's context, in which LangGraph keeps where events go.
            futures = [pool.submit(copy_context().run, one, index) for index in range(len(requests))]
            return [future.result() for future in futures]

    def _persist(self, request: ImageRequest, on_preview: Callable[[Step], None]) -> Image.Image:
        """Try until there is an image, a lasting fault, or no time left."""
        deadline = math.inf  # time begins with the first try: waiting for others is not the server's fault

        def attempt() -> Image.Image:
            nonlocal deadline
            with self._slots:
                deadline = min(deadline, time.monotonic() + self.options.timeout)
                data = self.make(request, deadline, on_preview)
            return decode_image(data, self.name)

        def give_up(state: RetryCallState) -> bool:
            return time.monotonic() + state.upcoming_sleep >= deadline

        tries = Retrying(retry=retry_if_exception_type(PassingError), stop=give_up, wait=_pause, reraise=True)
        try:
            return tries(attempt)
        except PassingError as fault:
            n = tries.statistics.get("attempt_number", 1)
            said = f"{fault} ({n} tries in {self.options.timeout:g} s)" if n > 1 else str(fault)
            raise BackendError(said, retryable=False) from None

    # --- talking to the server ----------------------------------------------------------------------------------------

    def fetch(self, method: str, path: str, deadline: float, **arguments: Any) -> tuple[bytes, str]:
        """The body and media type of an answer of status 2xx.

        Raises:
            PassingError: The server is busy, broken, slow or gone.
            ContentRefusedError: It will not draw that.
            BackendError: It cannot do what was asked.
        """
        with self.exchange(method, path, deadline, **arguments) as response:
            body = read_body(response, deadline)
            self.check_status(response, body)
            return body, response.headers.get("content-type", "").partition(";")[0].strip().lower()

    @contextmanager
    def exchange(self, method: str, path: str, deadline: float, **arguments: Any) -> Iterator[httpx.Response]:
        """An answer whose body is still to be read, with what may go wrong on the way put into our words."""
        left = max(0.05, deadline - time.monotonic())
        timeout = httpx.Timeout(left, connect=min(left, 15.0))
        try:
            with self._client.stream(method, self._full(path), timeout=timeout, **arguments) as response:
                yield response
        except httpx.TimeoutException:
            raise PassingError(f"{self.name}: no answer from {self._host} in {left:.0f} s") from None
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
        """Raise what a status other than 2xx means; see ``fetch``."""
        status = response.status_code
        if 200 <= status < 300:
            return
        said = self._said(body)
        if is_passing_status(status):
            raise PassingError(
                f"{self.name}: {self._host} answers {status}{said}", after=_retry_after(response.headers)
            )
        if 300 <= status < 400:
            raise BackendError(
                f"{self.name}: {self._host} redirects ({status}); give the final address as base_url", retryable=False
            )
        if _is_refusal(body):
            raise ContentRefusedError(f"{self.name}: {self._host} refuses to draw this{said}")
        hint = "; set the right key (GEMS_IMAGE_API_KEY)" if status in (401, 403) else ""
        raise BackendError(f"{self.name}: {self._host} answers {status}{said}{hint}", retryable=False)

    def _said(self, body: bytes) -> str:
        text = error_message(body)
        return f": {self.scrub(text)}" if text else ""

    def scrub(self, text: str) -> str:
        """A server's words on one line, without the key that it may repeat."""
        return one_line(text)


# --- reading answers ------------------------------------------------------------------------------------------------


def read_body(response: httpx.Response, deadline: float) -> bytes:
    """The body, as long as it is no longer than it may be and comes in time.

    Raises:
        BackendError: It is too long.
        PassingError: It comes too slowly.
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
    """The image in some bytes, decoded whole, so that nothing can go wrong with it later.

    Raises:
        PassingError: It is torn.
        BackendError: It is no image of a known kind, or too large.
    """
    too_large = BackendError(f"{source} sent an image of more than {MAX_PIXELS:,} pixels", retryable=False)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except (OSError, ValueError, SyntaxError):
        raise BackendError(f"{source} sent no {', '.join(_FORMATS)} image", retryable=False) from None
    if math.prod(image.size) > MAX_PIXELS:
        raise too_large
    try:
        image.load()
    except (OSError, ValueError, SyntaxError):
        raise PassingError(f"{source} sent a torn image") from None
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies even what is RGB already


def error_message(body: bytes) -> str:
    """What an error's body says, in any of the servers' dialects; empty if it says nothing that can be shown."""
    found = _json(body)
    if isinstance(found, Mapping):
        inner = found.get("error") or found.get("detail") or found.get("message")
        if isinstance(inner, Mapping):
            inner = inner.get("message") or inner.get("details")
        if isinstance(inner, list) and inner and isinstance(inner[0], Mapping):  # FastAPI's validation errors
            first = inner[0]
            inner = f"{'.'.join(map(str, first.get('loc', ())))}: {first.get('msg', '')}"
        return str(inner or "")
    text = body[:300].decode("utf-8", "replace")
    return "" if "<html" in text.lower() else text


_REFUSALS: Final = ("content_policy", "moderation_blocked", "safety system", "content policy", "responsibleai")


def _is_refusal(body: bytes) -> bool:
    text = body[:4000].decode("utf-8", "replace").lower()
    return any(sign in text for sign in _REFUSALS)


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
    fault = state.outcome.exception() if state.outcome else None
    return max(_WAIT(state), fault.after if isinstance(fault, PassingError) else 0.0)


# --- options --------------------------------------------------------------------------------------------------------


def refuse_options(name: str, options: GeneratorOptions, known: frozenset[str]) -> None:
    """Refuse options that would be ignored.

    Raises:
        InputError: One is set that the backend cannot honour.
    """
    defaults = GeneratorOptions()
    given = [f for f in GeneratorOptions.model_fields if getattr(options, f) != getattr(defaults, f)]
    for field in given:
        if field not in known:
            raise InputError(f"{name} cannot honour the option {field}; it knows {', '.join(sorted(known))}")


def checked_url(base_url: str) -> httpx.URL:
    """The address of a server.

    Raises:
        InputError: It is none.
    """
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise InputError(f"{base_url!r} is no address of a server: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{base_url!r} is no address of a server; give one such as http://localhost:8000/v1")
    return url
