"""Waits, with a deadline, for a condition or for a server to listen."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

import psutil

__all__ = ["listening_port", "wait_until"]

Value = TypeVar("Value")


def wait_until(state: Callable[[], Value | None], otherwise: Callable[[], object], *, seconds: float = 60) -> Value:
    """Return the first true value of ``state()``. At the deadline, fail with the message ``otherwise()``."""
    deadline = time.monotonic() + seconds
    while not (value := state()):
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)
    return value


def listening_port(process: subprocess.Popen[Any], output: Callable[[], object], *, seconds: float = 90) -> int:
    """The port of a server that was started on port 0.

    This is safer than choosing a port before the start: it may be taken by then.

    Args:
        process: A server that listens on one port.
        output: Returns the server's output so far, for the message if it does not start.
        seconds: The time limit.
    """

    def ports() -> list[int]:
        assert process.poll() is None, f"the server has ended: {output()}"
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = psutil.Process(process.pid).net_connections("tcp")
            return [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN]
        return []

    return wait_until(ports, lambda: f"the server does not listen: {output()}", seconds=seconds)[0]
