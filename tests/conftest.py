"""Settings that every test runs under."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Read by LangGraph and by the model loaders when they are imported, so set before anything else is.
os.environ["LANGGRAPH_STRICT_MSGPACK"] = "true"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LANGSMITH_TRACING"] = "false"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Two workers and the processes that they start share the cores: threads of one test would only take turns.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"

from forked import start_server

FIRST = ("ray", "studio", "service", "postgres", "skills_cli")
"""Groups of tests (``pytest.mark.xdist_group``) that take longest, longest first: they start the run."""


def pytest_configure(config: pytest.Config) -> None:
    """Start the fork server once for all workers, which find it in their environment."""
    if getattr(config.option, "numprocesses", None):
        start_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long groups first, so that no worker is left alone with one of them at the end."""

    def rank(item: pytest.Item) -> int:
        marker = item.get_closest_marker("xdist_group")
        name = (marker.args or (marker.kwargs.get("name"),))[0] if marker else None
        return FIRST.index(name) if name in FIRST else len(FIRST)

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own: no test sees or leaves anything in the user's."""
    home = tmp_path / "gems-home"
    monkeypatch.setenv("GEMS_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return home


# --- servers that the whole session shares --------------------------------------------------------------------------

from shared_servers import chat_server, database, image_server, postgres, service, studio  # noqa: E402, F401
