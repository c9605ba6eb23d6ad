"""``gems serve`` in a process of its own, on a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

__all__ = ["Served", "serving", "write_keys"]


class Served:
    """A running service."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log

    def client(self, key: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def log(self) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, run: str, *statuses: str, key: str = "", seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        with self.client(key) as client:
            while time.monotonic() < end:
                view: dict[str, Any] = client.get(f"/v1/runs/{run}").json()
                if view.get("status") in (statuses or ("done", "failed", "cancelled")):
                    return view
                time.sleep(0.05)
        raise AssertionError(f"{run} is still {view['status']}")

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


@contextmanager
def serving(home: Path, *options: str) -> Iterator[Served]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    path = home.parent / f"{home.name}.log"
    command = [sys.executable, "-m", "gems", "serve", "--port", str(port), "--log-format", "json", *options]
    with path.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GEMS_HOME": str(home)})
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            assert process.poll() is None, path.read_text()
            try:
                if httpx.get(f"{url}/healthz", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        else:
            raise AssertionError(f"the service did not come up: {path.read_text()}")
        yield Served(process, url, path)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def write_keys(path: Path, **daily: str) -> dict[str, str]:
    """A file of keys, one for each name, with these limits. Returns the keys."""
    from gems.serve.keys import new_key

    keys = {}
    with path.open("w") as file:
        for name, limits in daily.items():
            keys[name], entry = new_key(name)
            file.write(entry + (f"daily = {limits}\n" if limits else ""))
    return keys
