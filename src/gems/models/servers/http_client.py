"""The HTTP client of one image server: deadlines, limits on what the server may send, and protection of keys.

A server is somebody else's program: its answers may be slow, torn, huge or hostile. Whatever it does, an exchange ends
in time, with an answer or with one clear error.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, TypeVar, cast

import httpx
from PIL import Image
from pydantic import SecretStr

from gems.errors import (
    PAY_HINT,
    BackendError,
    ContentRefusedError,
    InputError,
    is_passing_status,
    is_unpaid,
    may_cost,
    meant_status,
)
from gems.faces import OWN_LOOP
from gems.models.endings import finish_reason
from gems.models.heads import is_whole_head, readable_head
from gems.models.public_names import public_name
from gems.models.servers.addresses import (
    INVALID_PROXY,
    PROXY_HINT,
    advice_on_certificates,
    advice_on_proxies,
    advice_on_schemes,
    checked_url,
    own_address,
)
from gems.models.servers.bodies import ACCEPTED, check_size, is_image_file, is_page, is_text, read_body, without_base64
from gems.models.servers.error_texts import error_message, is_refusal, json_of_error, text_of
from gems.models.servers.image_files import decode_image
from gems.models.servers.retries import PassingError, charged, try_until
from gems.models.servers.sockets import keep_what_arrives
from gems.models.servers.stated_waits import retry_after
from gems.secrets import one_line, remember_secret

__all__ = ["NotThereYetError", "RejectedError", "ServerClient", "UnreachedError", "advice_on"]

_CONNECT_TIMEOUT: Final = 15.0
"""Seconds to wait for a connection."""
_SHARE_OF_SENDING: Final = 0.9
"""The part of the time for an exchange that may pass before the request is sent: what ends then has cost nothing."""
_MIN_TIMEOUT: Final = 0.05
"""Seconds that a request may take even if its deadline has passed."""
_MAX_TORN: Final = 5
"""Torn copies of an image that was drawn, after which no other copy is fetched."""
_NOT_SENT: Final = (
    *(httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol),
    *(httpx.WriteError, httpx.WriteTimeout, httpx.LocalProtocolError),
)
"""What went wrong before a request was complete, so that no server has begun with it."""
_LOSSES: Final = re.compile("disconnected|closed")
"""How the client says that an answer was lost. Whatever else it finds wrong with HTTP, another try would not mend."""
_MAX_REDIRECTS: Final = 4
_IMPATIENT: Final = "; a gateway before the server waits too short a time: give the server's own address"
_LET_BASE64: Final = "let the server answer in base64"
_KEY_HINT: Final = "; set the right key (GEMS_IMAGE_API_KEY)"
_OF_KEYS: Final = re.compile(r"key|token|credential|auth|forbidden|denied|permi|not allowed|access", re.IGNORECASE)
"""How servers say that they do not take a key; others tell, with the same status, what an account lacks."""
_OWN_ADDRESS: Final = ", or the server's own address if a gateway before it refuses this machine"
_NOT_THERE_YET: Final = (202, 204, 404, 423)
"""What storage answers about an image that was drawn a moment ago, and gateways about one that is being drawn."""
_REJECTIONS: Final = (400, 404, 405, 415, 422, 501)
"""Statuses of a server that does not take a request as it is."""
_UNDER_WAY: Final = (202, 423)
"""Those that say that it will be there."""

_T = TypeVar("_T")


class NotThereYetError(PassingError):
    """A server has nothing yet of what was asked for.

    Attributes:
        is_under_way: Whether it says that it will have it.
    """

    def __init__(self, message: str, *, after: float, is_under_way: bool) -> None:
        super().__init__(message, after=after, may_cost=not is_under_way)
        self.is_under_way = is_under_way


class UnreachedError(PassingError):
    """Nothing listens at the server's address, which has not answered before either: it starts, or is a wrong one."""


class RejectedError(BackendError):
    """A server takes no such request, and says so with a status: nothing was drawn. ``reason`` has its own words."""


class _Session:
    """What a client has on our event loop: connections, and slots for those who wait for one."""

    def __init__(self, name: str, concurrency: int, key: SecretStr | None) -> None:
        headers = {"Accept-Encoding": ACCEPTED}
        if key:
            headers["Authorization"] = f"Bearer {key.get_secret_value()}"
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        try:
            # No redirects: they could take the key, and the request, to any host.
            self.http = httpx.AsyncClient(headers=headers, limits=limits, follow_redirects=False, trust_env=True)
        except (ImportError, ValueError, OSError, httpx.InvalidURL) as error:  # of proxies and certificates
            fault = INVALID_PROXY if isinstance(error, httpx.InvalidURL) else one_line(error)
            names = "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY or SSL_CERT_FILE"
            raise InputError(f"{name}: the environment has a wrong {names}: {fault}") from None
        keep_what_arrives(self.http)
        self.slots = asyncio.Semaphore(concurrency)
        self.decoders = asyncio.Semaphore(max(1, (os.cpu_count() or 1) - 1))
        self.calls: set[Future[Any]] = set()
        self.process = os.getpid()


class ServerClient:
    """Talks to one server, on an event loop of ours.

    Args:
        name: The name of the backend. It may hold the address, with a key in it; errors name only its ``title``.
        base_url: The server's address, to which paths are added.
        concurrency: The most requests in flight.
        key: Sent as a bearer token, and never shown.
    """

    def __init__(self, name: str, base_url: str, concurrency: int, key: SecretStr | None = None) -> None:
        self.name, self.title = name, public_name(name)
        self.url, self._has_answered = checked_url(base_url), False
        self._host = self.url.netloc.decode("ascii").rpartition("@")[2]
        remember_secret(key)
        self._lock = threading.Lock()
        self._open = partial(_Session, self.title, concurrency, key)
        self._session = self._open()
        self._watch(self._session)

    # --- the event loop -----------------------------------------------------------------------------------------------

    def begin(self, body: Coroutine[Any, Any, _T]) -> Future[_T]:
        """Run a body that uses this client, with a copy of the caller's context. To cancel the future ends it."""
        with self._lock:
            if self._session.http.is_closed or self._session.process != os.getpid():
                self._session = self._open()
                self._watch(self._session)
            calls = self._session.calls
            call = OWN_LOOP.submit(self._session, body)
            calls.add(call)
        call.add_done_callback(calls.discard)
        return call

    def _watch(self, session: _Session) -> None:
        """Close the connections once nobody refers to this client. The system does so at the end of the process."""
        weakref.finalize(self, OWN_LOOP.leave, session, session.http.aclose).atexit = False

    async def decode(self, file: bytes) -> Image.Image:
        """See ``decode_image``. Threads, and one processor, are left for those who hold a slot."""
        async with self._session.decoders:
            return await asyncio.to_thread(decode_image, file, self.title)

    @property
    def slots(self) -> asyncio.Semaphore:
        """One for each request that may be in flight."""
        return self._session.slots

    def wait_for(self, body: Coroutine[Any, Any, _T]) -> _T:
        """Run a body that uses this client, and wait for it. Ctrl-C ends it."""
        call = self.begin(body)
        try:
            return call.result()
        finally:
            call.cancel()

    def close(self) -> None:
        """End the calls under way, and close all connections. A later call opens new ones."""
        with self._lock:
            for call in [*self._session.calls]:
                call.cancel()
            parting = OWN_LOOP.leave(self._session, self._session.http.aclose)
            thread = parting.result() if parting else None
        if thread:
            thread.join()

    # --- one exchange -------------------------------------------------------------------------------------------------

    async def fetch(self, method: str, path: str, deadline: float, **arguments: Any) -> tuple[bytes, str]:
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
        async with self.exchange(method, path, deadline, **arguments) as response:
            return await self.body_of(response), _media_type(response)

    async def body_of(self, response: httpx.Response) -> bytes:
        """The body of an answer, if its status is one of success; what is wrong with it after a POST may cost."""
        with charged() if response.request.method == "POST" and response.is_success else nullcontext():
            body = await read_body(response)
            self.check_status(response, body)
            return body

    @asynccontextmanager
    async def exchange(
        self, method: str, path: str, deadline: float, *, params: Mapping[str, Any] | None = None, **arguments: Any
    ) -> AsyncIterator[httpx.Response]:
        """An answer whose body has not been read yet. Errors of the connection become a ``PassingError``."""
        seconds = max(_MIN_TIMEOUT, deadline - time.monotonic())
        end = time.monotonic() + seconds
        until_sent = _SHARE_OF_SENDING * seconds
        timeout = httpx.Timeout(until_sent, connect=min(until_sent, _CONNECT_TIMEOUT), read=None)
        has_begun, begun_sends = False, list[bytes]()
        extensions = {"trace": partial(_watch, begun_sends)}
        request = self._request(method, path, params, timeout=timeout, extensions=extensions, **arguments)
        try:
            response = await _in_time(self._session.http.send(request, stream=True), end)
            self._has_answered = True
            has_begun = response.is_success
            try:
                response.stream = _LimitedStream(cast(httpx.AsyncByteStream, response.stream), end, self._host)
                yield response
            finally:
                await response.aclose()
        except httpx.RequestError as error:  # of the connection, or a body whose compression is damaged
            is_sent = bool(begun_sends) and (has_begun or not isinstance(error, _NOT_SENT))
            if is_sent and isinstance(error, httpx.RemoteProtocolError) and not _LOSSES.search(str(error)):
                fault = f"{self._host} answers, and may charge, but its answer is no valid HTTP ({_words_of(error)})"
                with charged():
                    raise BackendError(f"{self.title}: {fault}", retryable=False) from None
            advice = advice_on_certificates(str(error), is_sent=is_sent) or advice_on_proxies(error)
            if advice and not has_begun:
                fault = f"{self.title}: {self._host}: {one_line(error)}{advice}"
                raise BackendError(fault, retryable=False) from None
            fault = _fault_of(error, self._host, seconds, is_sent=is_sent, has_begun=has_begun)
            kind = UnreachedError if isinstance(error, httpx.ConnectError) and not self._has_answered else PassingError
            raise kind(f"{self.title}: {fault}", may_cost=has_begun or (is_sent and method == "POST")) from None

    def _request(
        self, method: str, path: str, params: Mapping[str, Any] | None, *, keyless: bool = False, **arguments: Any
    ) -> httpx.Request:
        """A request, which may hold what the server has said before, such as a file's name.

        Raises:
            BackendError: It cannot be written down.
        """
        try:
            # Given as parameters, they would replace those of the server's address, such as a token.
            url = self._full(path).copy_merge_params(params) if params else self._full(path)
            request = self._session.http.build_request(method, url, **arguments)
            return _without_key(request) if keyless else request
        except (httpx.InvalidURL, ValueError, TypeError) as error:
            fault = f"a request for it cannot be written ({one_line(error, 80) or type(error).__name__})"
            raise BackendError(f"{self.title}: {fault}", retryable=False) from None

    def _full(self, path: str) -> httpx.URL:
        if not path or "://" in path:
            return httpx.URL(path) if path else self.url
        own_path, _, query = self.url.raw_path.partition(b"?")
        full_path = own_path.rstrip(b"/") + path.encode("ascii")
        if query:  # such as an API's version, which every request needs
            full_path += (b"&" if b"?" in full_path else b"?") + query
        return self.url.copy_with(raw_path=full_path)

    def check_status(self, response: httpx.Response, body: bytes) -> None:
        """Raise the error that a status other than 2xx stands for; see ``fetch``."""
        status = response.status_code
        if status in (204, 205) or (status == 202 and not body.strip()):
            fault = f"{self._host} answers {status}, without an image or a reason"
            raise BackendError(f"{self.title}: {fault}; give an address that answers with the image", retryable=False)
        if 200 <= status < 300:
            _require_unfiltered(self.title, response)
            return
        reason = self.reason(body)
        true_status, after = meant_status(status, reason), retry_after(response.headers, body)
        if is_passing_status(true_status) and (
            "retry-after" in response.headers or after or not is_unpaid(body[:4000].decode("utf-8", "replace"))
        ):
            raise PassingError(
                f"{self.title}: {self._host} answers {status}{reason}{_IMPATIENT if status == 524 else ''}",
                after=after,
                may_cost=response.request.method == "POST" and may_cost(true_status),
            )
        if 300 <= status < 400:
            fault = f"{self.title}: {self._host} redirects ({status}); give the final address"
            raise BackendError(fault, retryable=False)
        if is_refusal(body):
            raise ContentRefusedError(f"{self.title}: {self._host} refuses to draw this{reason}")
        hint = advice_on_schemes(text_of(body[:2000])) or advice_on(true_status, reason)
        if status == 403 and not isinstance(json_of_error(body), Mapping):  # a page, such as a firewall's
            hint += _OWN_ADDRESS
        kind = RejectedError if status in _REJECTIONS else BackendError
        fault = f"{self.title}: {self._host} answers {status}{reason}{hint}"
        raise kind(fault, retryable=False, reason=reason.removeprefix(": "))

    def reason(self, body: bytes) -> str:
        """The server's reason for an error, after a colon; empty if it gives none."""
        text = one_line(error_message(body))
        return f": {text}" if text else ""

    # --- what was drawn -----------------------------------------------------------------------------------------------

    async def fetch_drawn(self, path: str, deadline: float) -> bytes | NotThereYetError:
        """The body of an answer about an image that is being drawn; or how the server says that it has none yet.

        A passing fault is tried again here: to ask for the image again would have it drawn, and paid, again.
        """

        async def fetch() -> bytes | NotThereYetError:
            try:
                return (await self._fetch_file(path, deadline))[0]
            except NotThereYetError as error:
                return error

        with _told_as_drawn(self.title, "an image was asked for"):
            return await _fetch_again(fetch, deadline)

    async def fetch_image(self, path: str, deadline: float, **arguments: Any) -> Image.Image:
        """An image that was drawn. A torn copy, or a page in place of it, is fetched again, like ``fetch_drawn``."""

        async def fetch() -> Image.Image:
            data, kind = await self._fetch_file(path, deadline, **arguments)
            data = await asyncio.to_thread(self.file_in, data)
            if not is_image_file(data):
                words = self.reason(data) if is_text(data) else ""
                kind = f"a page ({kind})" if is_page(data) else kind
                fault = f"{self._host} sends no image, but {kind or 'nothing'}{words}"
                if words and is_refusal(data):
                    raise ContentRefusedError(f"{self.title}: {fault}")
                raise PassingError(f"{self.title}: {fault}", may_cost=True)
            return await self.decode(data)

        with _told_as_drawn(self.title):
            return await _fetch_again(fetch, deadline)

    def file_in(self, body: bytes) -> bytes:
        """The image file in the answer to a request for it; the answer as it is if it has none."""
        return without_base64(body)

    async def _fetch_file(self, path: str, deadline: float, **arguments: Any) -> tuple[bytes, str]:
        """A drawn image's file, also where the server says that it is elsewhere on the server, or not yet there."""
        host = self.url.netloc.decode("ascii")
        for _ in range(_MAX_REDIRECTS):
            async with self.exchange("GET", path, deadline, **arguments) as response:
                body = await read_body(response)
                redirect = response.next_request
                target = own_address(self.url, redirect.url) if redirect else _signed_address(response)
                if redirect and (target is None or target == response.url):
                    fault = f"the image is elsewhere ({one_line(redirect.url.copy_with(query=None), 80)})"
                    raise BackendError(f"{self.title}: {fault}, which is not fetched; {_LET_BASE64}", retryable=False)
                if target is None:
                    if response.status_code in _NOT_THERE_YET:
                        fault = f"{self.title}: {host} answers {response.status_code}{self.reason(body)}"
                        is_under_way = response.status_code in _UNDER_WAY or "retry-after" in response.headers
                        after = retry_after(response.headers, body)
                        raise NotThereYetError(fault, after=after, is_under_way=is_under_way)
                    self.check_status(response, body)
                    return body, _media_type(response)
            path, arguments = str(target), {"keyless": not redirect}
        raise BackendError(f"{self.title}: {host} redirects without end", retryable=False)


async def _fetch_again(fetch: Callable[[], Awaitable[_T]], deadline: float) -> _T:
    try:
        return await try_until(lambda: deadline, fetch, _MAX_TORN)
    except PassingError as error:
        if isinstance(error.rest, Image.Image):  # no other copy is better
            return cast(_T, error.rest)
        raise BackendError(str(error), retryable=False) from None


@contextmanager
def _told_as_drawn(name: str, what: str = "an image was drawn") -> Iterator[None]:
    """Let the error of an image that cannot be fetched say what has happened before."""
    try:
        yield
    except ContentRefusedError:
        raise
    except BackendError as error:
        reason = str(error).removesuffix(_OWN_ADDRESS).removesuffix(_KEY_HINT).removeprefix(f"{name}: ")
        fault = f"{what}, and may be charged, but cannot be fetched: {reason}"
        raise BackendError(f"{name}: {fault}", retryable=False) from None


def advice_on(status: int, reason: str) -> str:
    """What to do about an error, to be put after its message; empty if nothing is known."""
    if status == 402 or (status in (400, 403, 429) and is_unpaid(reason)):
        return PAY_HINT
    if status == 401 or (status == 403 and (not reason or _OF_KEYS.search(reason))):
        return _KEY_HINT
    return PROXY_HINT if status == 407 else ""


def _signed_address(response: httpx.Response) -> httpx.URL | None:
    """An address that admits by itself, and may have been refused for the key beside it, as by S3 and Azure."""
    was_refused = response.status_code in (400, 401, 403)
    has_both = bool(response.url.query) and "authorization" in response.request.headers
    return response.url if was_refused and has_both else None


def _without_key(request: httpx.Request) -> httpx.Request:
    request.headers.pop("authorization", None)
    return request


def _media_type(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def _require_unfiltered(name: str, response: httpx.Response) -> None:
    ending = response.headers.get("finish-reason", "")  # of Stability and Fireworks, beside a blurred image
    if finish_reason(ending) == "content_filter":
        raise ContentRefusedError(f"{name}: the server's filter stopped the image: {one_line(ending, 60)}")


def _words_of(error: httpx.RequestError) -> str:
    return one_line(re.sub(r":? *bytearray\(b(.*)\)", r" \1", str(error), flags=re.DOTALL))


def _fault_of(error: httpx.RequestError, host: str, seconds: float, *, is_sent: bool, has_begun: bool) -> str:
    if isinstance(error, httpx.TimeoutException):
        return f"{host} sends its answer too slowly" if has_begun else f"no answer from {host} in {seconds:.0f} s"
    reason = _words_of(error) or type(error).__name__
    if has_begun:
        return f"the answer of {host} is damaged ({reason})"
    return f"{'the connection was lost to' if is_sent else 'cannot reach'} {host} ({reason})"


# --- time, and lines that nobody reads --------------------------------------------------------------------------------


async def _in_time(awaitable: Awaitable[_T], end: float) -> _T:
    """Await something until a time of the monotonic clock, which is the loop's.

    httpx limits each read by itself, so that a server that sends one byte at a time would never be too slow.
    """
    try:
        async with asyncio.timeout_at(end):
            return await awaitable
    except TimeoutError:
        raise httpx.ReadTimeout("too late") from None


class _LimitedStream(httpx.AsyncByteStream):
    """The body of an answer, until the exchange has to end, or the server has sent too much."""

    def __init__(self, stream: httpx.AsyncByteStream, end: float, host: str) -> None:
        self._stream, self._end, self._host = stream, end, host

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts, size = aiter(self._stream), 0
        while (part := await _in_time(anext(parts, None), self._end)) is not None:
            if time.monotonic() > self._end:  # what has arrived already is read without a wait
                raise httpx.ReadTimeout("too late")
            check_size(self._host, size := size + len(part))
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()


_IN_HEAD: Final = ContextVar("gems_in_head", default=False)
"""Whether the lines before the body of an answer are being read."""


async def _watch(begun_sends: list[bytes], event: str, details: Mapping[str, Any]) -> None:
    """Httpcore's "trace" extension of a request: leaves out lines before the body that no client reads.

    It notes that the request is being sent. What is asked of a proxy before that costs nothing.
    """
    if event.endswith(".send_request_headers.started") and details["request"].method != b"CONNECT":
        begun_sends.append(details["request"].method)
    if ".receive_response_headers." in event:
        _IN_HEAD.set(event.endswith(".started"))
    if not event.endswith(("connect_tcp.complete", "start_tls.complete")):
        return
    stream: Any = details["return_value"]
    read = stream.read

    async def read_lines(max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = await read(max_bytes, timeout)
        if not _IN_HEAD.get():
            return data
        while not is_whole_head(data) and (more := await read(max_bytes, timeout)):
            data += more
        return readable_head(data)

    stream.read = read_lines
