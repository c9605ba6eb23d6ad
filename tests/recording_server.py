"""A local web server that must not be contacted: it answers everybody, and writes down what it was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from servers.threaded import serving

__all__ = ["recorded_requests"]


@contextmanager
def recorded_requests(content: bytes) -> Iterator[tuple[str, list[str]]]:
    """Run the server until the block ends. Yields its host and port, and the list of paths that it was asked for."""
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(200)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 - the name that the library calls

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as server:
        yield f"127.0.0.1:{server.server_port}", requested
