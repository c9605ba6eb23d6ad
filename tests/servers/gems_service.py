"""Runs ``gems serve`` in a separate process, on a port that it chooses itself."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from forked import Process, command_line, environment
from servers.waiting import listening_port, wait_until

__all__ = ["ServiceProcess", "serving", "write_keys"]


class ServiceProcess:
    """A running ``gems serve``."""

    def __init__(self, process: Process, url: str, log: Path) -> None:
        self.process, self.url, self._log = process, url, log

    def client(self, key: str = "") -> httpx.Client:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def output(self) -> str:
        """Everything that the service has printed."""
        return self._log.read_text()

    def log(self) -> list[dict[str, Any]]:
        lines = self._log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def wait_for(self, run: str, *statuses: str, key: str = "", seconds: float = 60) -> dict[str, Any]:
        """Wait until the run has one of these statuses (by default: has ended) and return it."""

        def view() -> dict[str, Any]:
            answer: dict[str, Any] = client.get(f"/v1/runs/{run}").json()
            return answer

        def view_if_reached() -> dict[str, Any] | None:
            now = view()
            return now if now.get("status") in (statuses or ("done", "failed", "cancelled")) else None

        with self.client(key) as client:
            return wait_until(view_if_reached, lambda: f"{run} is still {view().get('status')}", seconds=seconds)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


@contextmanager
def serving(home: Path, *options: str) -> Iterator[ServiceProcess]:
    home.mkdir(parents=True, exist_ok=True)
    path = home.parent / f"{home.name}.log"
    command = command_line("serve", "--port", "0", "--log-format", "json", *options)
    with path.open("ab") as log:
        process = Process(command, stdout=log, stderr=log, env=environment(home))
    try:
        url = f"http://127.0.0.1:{listening_port(process, path.read_text)}"
        assert httpx.get(f"{url}/healthz", timeout=60).status_code == 200
        yield ServiceProcess(process, url, path)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(20)


def write_keys(path: Path, **daily: str) -> dict[str, str]:
    """Write a key file with one key per name and its daily limits. Returns the keys by name."""
    from gems.serve.keys import new_key

    keys = {}
    with path.open("w") as file:
        for name, limits in daily.items():
            keys[name], entry = new_key(name)
            file.write(entry + (f"daily = {limits}\n" if limits else ""))
    return keys
