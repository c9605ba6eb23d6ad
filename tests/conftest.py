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


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of the test's own: no test sees or leaves anything in the user's."""
    home = tmp_path / "gems-home"
    monkeypatch.setenv("GEMS_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return home
