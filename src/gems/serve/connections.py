"""Connections with bounds: on the size of what a client sends before it is read, on its pace, and on their number.

uvicorn's HTTP protocol buffers headers without a limit, and waits for ever for the rest of a request.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Final, Literal

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gems.serve.http_errors import add_safe_headers, error_response
from gems.serve.plain_parser import PlainParser

__all__ = ["BoundedConnection", "Deadlines"]

_MAX_TARGET: Final = 8 * 1024
"""Bytes of a request's path and query."""
_MAX_HEAD: Final = 32 * 1024
"""Bytes of a request's headers and trailers together, and of what the parser has not yet made sense of."""
_MAX_HEADERS: Final = 100
"""Headers and trailers of a request together."""
_MAX_PIPELINED: Final = 16
"""Requests that a client may send ahead of the response to its first."""
_MAX_DISCARDED: Final = 1024 * 1024
"""Bytes of a body that are read and dropped after its request was refused, so that the client sees the response."""


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds that a client has. A response may take as long as its run does."""

    head: float = 10
    """From the opening of the connection, or the end of the previous response, to the end of the headers."""
    body: float = 30
    """From the end of the headers to the end of the body."""
    reading: float = 60
    """To read some of the bytes that wait for it."""


class BoundedConnection(HttpToolsProtocol):
    """One client's connection. ``limit_concurrency`` of uvicorn's settings bounds the number of connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parser = PlainParser(self)  # type: ignore[assignment] # has what uvicorn calls of httptools' own
        self._max_connections, self.limit_concurrency = self.limit_concurrency, None  # checked here, not per request
        self._phase: Literal["idle", "head", "body", "response"] = "idle"
        self._since = self._last_progress = self.loop.time()
        self._unparsed = self._head = self._fields = self._discarded = self._unread = 0
        self._refusal: Response | None = None

    # --- size --------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # uvicorn's own is so
        """Refuse a connection beyond the limit at once."""
        super().connection_made(transport)
        if self._max_connections is not None and len(self.connections) > self._max_connections:
            self._refuse(503, "too many connections; try again soon", "too_many_connections")

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes, unless too many came without a header, chunk or body to show for them."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > _MAX_HEAD and not self.transport.is_closing():
            self._refuse(431, f"headers may have {_MAX_HEAD:,} bytes", "headers_too_large")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._enter("head")
        self._head = self._fields = self._discarded = 0

    def on_url(self, url: bytes) -> None:
        """A part of the path and query."""
        self._unparsed = 0
        super().on_url(url)
        if len(self.url) > _MAX_TARGET:
            self._reject(414, f"path and query may have {_MAX_TARGET:,} bytes", "uri_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; or a trailer after a body in chunks, which is ignored (RFC 9110, section 6.5.1).

        As a header it would go around what a proxy in front has checked: a proxy passes trailers on unread.
        """
        self._unparsed = 0
        if self._phase == "head":
            super().on_header(name, value)
        self._fields += 1
        self._head += len(name) + len(value)
        if self._head > _MAX_HEAD or self._fields > _MAX_HEADERS:
            self._reject(431, f"there may be {_MAX_HEADERS} headers with {_MAX_HEAD:,} bytes", "headers_too_large")

    def on_headers_complete(self) -> None:
        """The head of a request is complete."""
        self._unparsed = 0
        super().on_headers_complete()
        self._enter("body")
        if len(self.pipeline) > _MAX_PIPELINED:
            self._reject(400, f"at most {_MAX_PIPELINED} requests may be sent ahead", "too_many_requests_ahead")

    def on_body(self, body: bytes) -> None:
        """A part of a body."""
        self._unparsed = 0
        super().on_body(body)
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > _MAX_DISCARDED:
                self._abort()

    def on_message_complete(self) -> None:
        """The request is complete."""
        self._unparsed = 0
        super().on_message_complete()
        self._enter("idle" if self.cycle.response_complete else "response")

    def on_response_complete(self) -> None:
        """The response was handed to the operating system or waits in the buffer for it."""
        if self._phase == "response" and not self.pipeline:
            self._enter("idle")
        super().on_response_complete()

    # --- pace --------------------------------------------------------------------------------------------------------

    def enforce(self, deadlines: Deadlines) -> None:
        """End the connection if its client has exceeded a deadline. Called from time to time."""
        now = self.loop.time()
        self._end_if_unread(now, deadlines.reading)
        if self.transport.is_closing():
            return
        if self.flow.read_paused:  # the service is slow to read, not the client to send
            self._since = now
        elif self._phase == "idle" and now - self._since > deadlines.head:
            self.transport.close()
        elif self._phase == "head" and now - self._since > deadlines.head:
            self._refuse(408, f"the headers took longer than {deadlines.head:g} s", "timeout")
        elif self._phase == "body" and now - self._since > deadlines.body:
            self._refuse(408, f"the body took longer than {deadlines.body:g} s", "timeout")

    def _end_if_unread(self, now: float, seconds: float) -> None:
        """End a connection whose client has stopped reading, even one that only waits for its last bytes to go."""
        unread = self.transport.get_write_buffer_size()
        if unread != self._unread or unread == 0:
            self._unread, self._last_progress = unread, now
        elif now - self._last_progress > seconds:
            self._abort()

    def _enter(self, phase: Literal["idle", "head", "body", "response"]) -> None:
        self._phase, self._since = phase, self.loop.time()

    # --- refusals ----------------------------------------------------------------------------------------------------

    def _reject(self, status: int, message: str, code: str) -> None:
        """Stop the parser, from one of its callbacks. It calls ``send_400_response``."""
        self._refusal = error_response(status, message, code=code)
        raise httptools.HttpParserError(message)

    def _refuse(self, status: int, message: str, code: str) -> None:
        self._refusal = error_response(status, message, code=code)
        self.send_400_response(message)

    def send_400_response(self, msg: str) -> None:
        """Send the refusal in the form of all errors, and close the connection."""
        if not self._awaits_only_this():  # the client would take the refusal for another response, or a part of it
            self._abort()
            return
        response = self._refusal or error_response(400, "this is not a valid HTTP request", code="invalid_http")
        add_safe_headers(response.headers)
        self.transport.write(_as_bytes(response))
        self._forget_requests()
        self.transport.close()

    def _abort(self) -> None:
        self._forget_requests()
        self.transport.abort()

    def _forget_requests(self) -> None:
        """Send nothing more for requests that are being answered: the transport only learns later that it is closed."""
        for cycle in (self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        self.pipeline.clear()

    def _awaits_only_this(self) -> bool:
        """Whether the next response that the client expects is that to the request it is sending."""
        if self._phase == "body":
            return not self.pipeline and not self.cycle.response_started
        return self.cycle is None or self.cycle.response_complete


def _as_bytes(response: Response) -> bytes:
    headers = [*response.raw_headers, (b"connection", b"close")]
    head = b"".join(b"%s: %s\r\n" % header for header in headers)
    return b"HTTP/1.1 %d \r\n%s\r\n%s" % (response.status_code, head, bytes(response.body))
