"""Settings that every test runs under."""

from __future__ import annotations

import faulthandler
import gc
import os
import sys
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key

# LangGraph and the model loaders read these when they are imported, so they are set before any other import.
os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ["LANGSMITH_TRACING"] = "false"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Most tests are about the agent, not about a model: the smallest and most settled models do for those.
os.environ["GEMS_MLLM"] = os.environ["GEMS_GENERATOR"] = "pocket"
# The workers and the processes that they start share the cores: more threads per test would only compete.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
# Hundreds of processes import the package: without bytecode, each would compile it again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

from forked import interpreter, start_server  # noqa: E402

FIRST = ("ray", "studio", "service", "postgres", "skills_cli")
"""The slowest groups of tests (``pytest.mark.xdist_group``), slowest first. They run before all other tests."""


def pytest_xdist_auto_num_workers() -> int:
    """Three workers more than there are cores: tests wait for a process, a server or a deadline half of the time."""
    return (os.cpu_count() or 1) + 3


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """End a process whose test hangs as pytest-timeout does, without a new Python thread for each test."""
    if settings.timeout > 0:
        stderr = item.config.stash[fault_handler_stderr_fd_key]  # pytest captures the usual one
        faulthandler.dump_traceback_later(settings.timeout, exit=True, file=stderr)
    return True


def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """Let the process live: the test has ended."""
    faulthandler.cancel_dump_traceback_later()
    return True


def pytest_configure(config: pytest.Config) -> None:
    """Fork the workers of xdist, and later the commands that they run, from a single server with all libraries."""
    if hasattr(config, "workerinput"):
        gc.disable()  # until all tests are collected: what is imported stays
    elif workers := getattr(config.option, "tx", None):
        start_server()
        config.option.tx = [f"{worker}//python={interpreter()}" for worker in workers]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run slow groups first, so that the run does not end with one worker on a slow group and the others idle."""

    def rank(item: pytest.Item) -> int:
        marker = item.get_closest_marker("xdist_group")
        name = (marker.args or (marker.kwargs.get("name"),))[0] if marker else None
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=rank)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare a worker's garbage collector the libraries and tests: each full collection would take half a second."""
    if hasattr(session.config, "workerinput"):
        gc.collect()
        gc.freeze()
        gc.enable()


_test_numbers = count()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """The name of a case, the same in all workers: a file of gzip holds the time at which it was packed."""
    return f"packed {argname}" if isinstance(val, bytes) and b"\x1f\x8b" in val else None


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A separate GEMS home folder for each test: no test reads or changes the user's.

    Its path is new, and most tests never create it: a ``tmp_path`` for each would cost more than many tests do.
    """
    folder = tmp_path_factory.getbasetemp() / "homes" / str(next(_test_numbers))
    monkeypatch.setenv("GEMS_HOME", str(folder / "gems-home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
    return folder / "gems-home"


def pytest_sessionfinish() -> None:
    """Plugins import further modules for their summary, and look for who refers to an object."""
    gc.unfreeze()  # also what a command has frozen, since most processes end with it


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short waits between the tries of clients, for tests of what a server answers rather than when."""
    from tenacity import wait_random_exponential

    from gems.models.servers import providers
    from gems.stopping import pause

    monkeypatch.setattr(providers, "pause", lambda seconds: pause(seconds / 100))
    monkeypatch.setattr("gems.models.servers.retries._WAIT", wait_random_exponential(multiplier=0.02, max=20))
    monkeypatch.setattr("gems.models.servers.comfyui._POLL_SECONDS", 0.02)


# --- servers shared by the whole session ----------------------------------------------------------------------------

from shared_servers import (  # noqa: E402, F401
    browser,
    chat_server,
    chromium,
    database,
    image_server,
    postgres,
    service,
    studio,
    trusting_studio,
)
