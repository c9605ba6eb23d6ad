"""Waiting for other processes, with a deadline: until something is so, and until a server listens."""

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
    """The first true value of ``state()``. Past the deadline the test fails with what ``otherwise()`` says."""
    deadline = time.monotonic() + seconds
    while not (value := state()):
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)
    return value


def listening_port(process: subprocess.Popen[Any], output: Callable[[], object], *, seconds: float = 90) -> int:
    """The port of a server that was started on port 0.

    A port chosen before the server starts may be taken by the time it does.

    Args:
        process: A server that listens on one port.
        output: What it has printed so far, for the message if it does not come up.
        seconds: How long it may take.
    """

    def ports() -> list[int]:
        assert process.poll() is None, f"the server has ended: {output()}"
        with contextlib.suppress(psutil.NoSuchProcess):
            connections = psutil.Process(process.pid).net_connections("tcp")
            return [c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN]
        return []

    return wait_until(ports, lambda: f"the server does not listen: {output()}", seconds=seconds)[0]
