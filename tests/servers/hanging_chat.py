"""A chat server in a thread of the test's process that does what a test says with each request."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from servers.threaded import serving

__all__ = ["HangingChat", "hanging_chat"]

ANSWER: dict[str, Any] = {
    "id": "x",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "mumble"}}],
    "usage": {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000},
}


class HangingChat:
    """Counts what it was asked, and answers as ``status_of`` says of the n-th request.

    200 is an answer; 0 closes the connection instead; None waits until the test is over.
    """

    def __init__(self, status_of: Callable[[int], int | None]) -> None:
        self.status_of, self.asked, self.is_over = status_of, 0, threading.Event()
        self.address, self.answer = "", copy.deepcopy(ANSWER)
        self._lock = threading.Lock()

    def count(self) -> int:
        with self._lock:
            self.asked += 1
            return self.asked


@contextmanager
def hanging_chat(status_of: Callable[[int], int | None] = lambda n: None) -> Iterator[HangingChat]:
    """Run the server until the block ends."""
    chat = HangingChat(status_of)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            status = chat.status_of(chat.count())
            if not status:
                self.close_connection = True
                if status is None:
                    chat.is_over.wait(60)
                return
            body = json.dumps(chat.answer if status == 200 else {"error": {"message": "no"}}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with serving(Handler) as server:
        chat.address = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield chat
        finally:
            chat.is_over.set()
