"""Runs the service in a process of its own, and lets it end well."""

from __future__ import annotations

import logging
import sys
import threading
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
    """Told to stop, it first has the service put its runs to rest: requests that wait for them are then answered."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace, self._told = service, grace, False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal lets runs finish, a second one stops them at their next step, a third one at once."""
        if self._service.stopping:
            super().handle_exit(sig, frame)
            return
        threading.Thread(target=self._rest, daemon=True).start()

    def _rest(self) -> None:
        self._service.stop(self._grace)
        self.should_exit = True  # not by the signal itself: a stop that was asked for is no failure


def write_logs(level: str, *, as_json: bool) -> None:
    """Set up logs on stderr: lines of JSON, or for people."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
    ]
    last: list[Any] = (
        [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def run_server(settings: ServiceSettings) -> None:
    """Serve until a signal comes.

    Raises:
        InputError: A setting cannot be used.
    """
    app = make_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,  # the gate writes down every request
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
        lifespan="on",
    )
    _Server(config, app.state.service, settings.grace).run()
