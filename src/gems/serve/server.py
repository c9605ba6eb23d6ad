"""Runs the service in this process, and stops it cleanly."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import structlog
import uvicorn

from gems.serve.service import Service
from gems.serve.settings import ServiceSettings
from gems.serve.web_app import make_app

__all__ = ["run_server", "write_logs"]

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class _Server(uvicorn.Server):
    """Stops the service before the HTTP server, so that requests that wait for runs get their responses."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float, on_ready: Callable[[str], None]) -> None:
        super().__init__(config)
        self._service, self._grace, self._on_ready = service, grace, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and tell the address: with port 0, only now is it known."""
        await super().startup(sockets)
        if self.started and self.servers:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            self._on_ready(f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/")

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
    """Set up logs on stderr, as lines of JSON or as text."""
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    if as_json:
        processors += [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    else:
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


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
        access_log=False,  # the middleware logs every request
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
        lifespan="on",
    )
    _Server(config, app.state.service, settings.grace, on_ready).run()
