"""``langgraph dev`` with the graph of this repository: what LangGraph Studio talks to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from servers.waiting import listening_port

__all__ = ["LANGGRAPH", "ROOT", "Studio", "langgraph_dev"]

ROOT = Path(__file__).parents[2]
LANGGRAPH = str(Path(sys.executable).with_name("langgraph"))
UNSTRICT = {"LANGGRAPH_STRICT_MSGPACK": "false"}
"""Told to be strict, the development server reads no declared type back: it knows of no allow-list."""


@dataclass(frozen=True)
class Studio:
    """A running development server.

    Attributes:
        url: Its address.
        home: The home folder of GEMS that it uses.
        log: What it has printed.
    """

    url: str
    home: Path
    log: Path


@contextmanager
def langgraph_dev(base: Path) -> Iterator[Studio]:
    """It runs in a project of its own, so that it leaves nothing (.langgraph_api) in the repository.

    It is a real start, not a fork: LangGraph reads ``UNSTRICT`` when it is imported.
    """
    project, home, log = base / "project", base / "home", base / "log"
    project.mkdir()
    shutil.copy(ROOT / "langgraph.json", project)
    for name in ("graph", "serve", "pyproject.toml"):
        (project / name).symlink_to(ROOT / name)
    with log.open("w") as file:
        process = subprocess.Popen(
            [LANGGRAPH, "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", "0"],
            cwd=project,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GEMS_HOME": str(home), "LANGSMITH_TRACING": "false", **UNSTRICT},
        )
    try:
        url = f"http://127.0.0.1:{listening_port(process, log.read_text)}"
        assert httpx.get(f"{url}/ok", timeout=60).status_code == 200
        yield Studio(url, home, log)
    finally:
        process.terminate()
        process.wait(20)
