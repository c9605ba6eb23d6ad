"""Parses HTTP/1.1, and ignores that a client would rather speak another protocol."""

from __future__ import annotations

from typing import Final, Protocol

import httptools

__all__ = ["PlainParser"]

_UPGRADE: Final = b"upgrade"


class _Callbacks(Protocol):
    """What a parser reports to."""

    def on_message_begin(self) -> None: ...
    def on_url(self, url: bytes) -> None: ...
    def on_header(self, name: bytes, value: bytes) -> None: ...
    def on_headers_complete(self) -> None: ...
    def on_body(self, body: bytes) -> None: ...
    def on_message_complete(self) -> None: ...


class PlainParser:
    """httptools' parser without its upgrades.

    After a head with ``Upgrade``, httptools reports a request without a body and stops; what comes next, it would take
    for another request. A service that does not upgrade reads the body (RFC 9110, section 7.8): Java's HttpClient and
    ``curl --http2`` offer HTTP/2 along with requests that have one. So this parser begins again at such a request,
    without that header.

    Args:
        callbacks: What is parsed is reported to these.
    """

    def __init__(self, callbacks: _Callbacks) -> None:
        self._callbacks = callbacks
        self._parser = self._new_parser()
        self._url, self._headers = b"", list[tuple[bytes, bytes]]()

    def feed_data(self, data: bytes) -> None:
        """Parse the next bytes.

        Raises:
            httptools.HttpParserError: They are no HTTP.
        """
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._parser = self._new_parser()
            else:
                return

    def get_http_version(self) -> str:
        """The version of the message, such as 1.1."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """The method of the request."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Whether the connection stays open after the message."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """Never."""
        return False

    # --- callbacks ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url, self._headers = b"", []
        self._callbacks.on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A part of the path and query."""
        self._url += url
        self._callbacks.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer."""
        self._headers.append((name, value))
        self._callbacks.on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete. One with an upgrade is parsed again."""
        if not self._parser.should_upgrade():
            self._callbacks.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._callbacks.on_body(body)

    def on_message_complete(self) -> None:
        """The message is complete."""
        if not self._parser.should_upgrade():
            self._callbacks.on_message_complete()

    # -----------------------------------------------------------------------------------------------------------------

    def _new_parser(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        return parser

    def _head_without_upgrade(self) -> bytes:
        method = self._parser.get_method()
        if method == b"CONNECT":  # is an upgrade without the header
            raise httptools.HttpParserError("CONNECT is for proxies")
        lines = [b"%s %s HTTP/%s" % (method, self._url, self._parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self._headers if header[0].lower() != _UPGRADE]
        return b"\r\n".join([*lines, b"", b""])
