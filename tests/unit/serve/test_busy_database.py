"""A ledger that another process holds is no fault of the service: the client is told to come back."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from gems.serve.ledger import Ledger
from gems.serve.settings import ServiceSettings
from gems.serve.web_app import make_app


@pytest.mark.slow
def test_a_locked_ledger_is_told_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = make_app(ServiceSettings(home=tmp_path))

    def locked(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database is locked")

    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        monkeypatch.setattr(Ledger, "accept", locked)
        answer = client.post("/v1/runs", json={"prompt": "two red cars"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_busy")
        assert int(answer.headers["retry-after"]) > 0
        monkeypatch.undo()
        assert client.post("/v1/runs", json={"prompt": "two red cars"}).status_code == 202
