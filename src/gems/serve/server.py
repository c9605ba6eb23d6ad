"""Runs the service in this process, and stops it cleanly."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TextIO, cast

import structlog
import uvicorn
from structlog.tracebacks import ExceptionDictTransformer

from gems.secrets import conceal
from gems.serve.connections import BoundedConnection, Deadlines
from gems.serve.process_memory import leave_to_collector_what_comes, return_freed_blocks
from gems.serve.service import Service
from gems.serve.settings import ServiceSettings
from gems.serve.web_app import make_app

__all__ = ["run_server", "write_logs"]

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


_TICKS_BETWEEN_RETURNS: Final = 100
"""Ten seconds between two returns of freed memory, each of which takes some milliseconds."""


class _Server(uvicorn.Server):
    """Stops the service before the HTTP server, so that requests that wait for runs get their responses."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        grace: float,
        deadlines: Deadlines | None = None,
        on_ready: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(config)
        self._service, self._grace, self._on_ready = service, grace, on_ready
        self._deadlines = deadlines or Deadlines()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and tell the address: with port 0, only now is it known."""
        await super().startup(sockets)
        if self.started and self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_ready(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second: look after the deadlines of all connections, and now and then after memory."""
        if counter % _TICKS_BETWEEN_RETURNS == 0:
            await asyncio.to_thread(return_freed_blocks)
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedConnection):
                connection.enforce(self._deadlines)
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets runs finish, the second stops them at their next step, the third at once."""
        if self._service.stopping:
            super().handle_exit(sig, frame)
            return
        threading.Thread(target=self._stop_service, daemon=True).start()

    def _stop_service(self) -> None:
        self._service.stop(self._grace)
        self.should_exit = True  # not through the signal's handler: a requested stop exits with 0


def write_logs(level: str, *, as_json: bool) -> None:
    """Set up logs on stderr, as lines of JSON or as text, for this package and for the libraries it uses.

    No traceback shows the values of local variables: they hold prompts and settings. Known secrets are replaced.
    """
    stream = cast(TextIO, _UnreliableStream(sys.stderr))
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    if as_json:
        tracebacks = structlog.processors.ExceptionRenderer(ExceptionDictTransformer(show_locals=False))
        final: list[Any] = [tracebacks, structlog.processors.JSONRenderer(), _without_secrets]
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        final = [renderer, _without_secrets]
    structlog.configure(
        processors=[*shared, *final],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    handler = logging.StreamHandler(stream)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=[remove_meta, *final], foreign_pre_chain=shared)
    )
    logging.basicConfig(handlers=[handler], level=max(_LEVELS[level], logging.WARNING), force=True)
    threading.excepthook = _log_thread_error


class _UnreliableStream:
    """A stream whose reader may be gone, or whose disk may be full: a line that cannot be written is lost.

    It decides nothing about the request, the run or the stop that it tells of.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError, ValueError):  # ValueError: it is closed
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _without_secrets(_: object, __: str, line: str) -> str:
    return conceal(line)


def _log_thread_error(error: threading.ExceptHookArgs) -> None:
    """Log an exception that ended a thread."""
    if error.exc_value is not None:
        logging.getLogger("gems.serve").error("thread_ended", exc_info=error.exc_value)


def run_server(settings: ServiceSettings, on_ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve until a signal comes.

    Args:
        settings: The settings of the service.
        on_ready: Called with the service's address once it listens.

    Raises:
        InputError: A setting cannot be used.
    """
    app = make_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=BoundedConnection,
        loop="asyncio",  # uvloop, where it is installed, raises an exception when a client has just gone
        ws="none",
        limit_concurrency=settings.max_connections,
        access_log=False,  # the middleware logs every request
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
        lifespan="on",
    )

    def listens(address: str) -> None:
        leave_to_collector_what_comes()
        on_ready(address)

    _Server(config, app.state.service, settings.grace, on_ready=listens).run()
