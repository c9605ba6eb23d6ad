"""Runs ``gems serve`` with many keys in a process of its own, for the scripts that put load on it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import aiohttp

from gems.serve.keys import new_key

__all__ = ["ServiceProcess", "write_keys"]


def write_keys(file: Path, names: Sequence[str]) -> dict[str, str]:
    """Write a file of keys, the first of which may read the metrics; returns the key of each name."""
    keys = {name: new_key(name, metrics=name == names[0]) for name in names}
    file.write_text("".join(entry for _, entry in keys.values()))
    return {name: key for name, (key, _) in keys.items()}


class ServiceProcess:
    """A service that can be killed and started again on the same port, with pocket models and without memory.

    Args:
        home: Its home folder.
        port: Its port.
        options: More options of ``gems serve``.
    """

    def __init__(self, home: Path, port: int, *options: str) -> None:
        self._home, self._port, self._options = home, port, options
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Start it, without waiting until it listens."""
        self._home.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "gems", "serve", "--port", str(self._port), "--no-memory", "--grace", "0"]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command line
                [*command, "--log-level", "warning", *self._options],
                stdout=log,
                stderr=log,
                env={**os.environ, "GEMS_HOME": str(self._home)},
            )

    def end(self, how: signal.Signals) -> None:
        """Send a signal and wait for the process's end."""
        assert self._process is not None
        self._process.send_signal(how)
        self._process.wait(60)

    async def wait_until_ready(self, session: aiohttp.ClientSession) -> None:
        """Wait until it answers."""
        for _ in range(1200):
            try:
                async with session.get(f"{self.url}/healthz"):
                    return
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        raise SystemExit(f"the service did not start within two minutes; see {self._home}/log")
