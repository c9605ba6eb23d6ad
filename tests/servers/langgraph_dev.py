"""Runs ``langgraph dev``, the server behind LangGraph Studio, with the graph of this repository."""

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
from forked import Process
from servers.waiting import listening_port

__all__ = ["LANGGRAPH", "ROOT", "Studio", "langgraph_dev"]

ROOT = Path(__file__).parents[2]
LANGGRAPH = str(Path(sys.executable).with_name("langgraph"))
UNSTRICT = {"LANGGRAPH_STRICT_MSGPACK": "false"}
"""In strict mode the development server cannot restore our declared types, because it has no allow-list."""


@dataclass(frozen=True)
class Studio:
    """A running development server.

    Attributes:
        url: Its address.
        home: Its GEMS home folder.
        log: The file that holds its output.
        project: Its project folder, where it keeps what it stores.
    """

    url: str
    home: Path
    log: Path
    project: Path


@contextmanager
def langgraph_dev(base: Path, **variables: str) -> Iterator[Studio]:
    """Run the server with these environment variables, in a project folder of its own."""
    project, home, log = base / "project", base / "home", base / "log"
    project.mkdir()
    shutil.copy(ROOT / "langgraph.json", project)
    for name in ("graph", "serve", "pyproject.toml"):
        (project / name).symlink_to(ROOT / name)
    with log.open("w") as file:
        process = Process(
            [sys.executable, LANGGRAPH, "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", "0"],
            cwd=project,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GEMS_HOME": str(home), "LANGSMITH_TRACING": "false", **UNSTRICT, **variables},
        )
    try:
        url = f"http://127.0.0.1:{listening_port(process, log.read_text)}"
        assert httpx.get(f"{url}/ok", timeout=60).status_code == 200
        yield Studio(url, home, log, project)
    finally:
        process.terminate()
        process.wait(20)
