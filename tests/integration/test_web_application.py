"""The README's web application, served by uvicorn in another process, under load."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from documentation import ROOT, Page
from forked import Process, environment
from servers.waiting import listening_port

pytestmark = pytest.mark.slow


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    blocks = [b.source for b in Page(ROOT / "README.md").blocks() if b.language == "python" and "Desk" not in b.source]
    (tmp_path / "application.py").write_text("\n\n".join(blocks), encoding="utf-8")
    log = tmp_path / "log"
    command = [sys.executable, "-m", "uvicorn", "application:app", "--port", "0", "--app-dir", str(tmp_path)]
    with log.open("w") as file:
        process = Process(command, stdout=file, stderr=subprocess.STDOUT, env=environment(tmp_path / "home"))
    try:
        yield f"http://127.0.0.1:{listening_port(process, log.read_text)}"
        process.terminate()
        assert process.wait(60) in (0, -15), log.read_text()
        assert "Application shutdown complete" in log.read_text()
    finally:
        process.kill()
        process.wait()


def test_it_draws_for_many_clients_and_answers_others_meanwhile(address: str) -> None:
    async def load() -> tuple[list[httpx.Response], int]:
        async with httpx.AsyncClient(base_url=address, timeout=120) as client:
            prompts = [
                f"two {colour} {thing}" for colour in ("red", "blue", "green") for thing in ("cars", "dogs", "cats")
            ]
            draws = [asyncio.create_task(client.post("/draw", params={"prompt": prompt})) for prompt in prompts]
            others = 0
            while not all(draw.done() for draw in draws):
                assert (await client.get("/openapi.json")).status_code == 200
                others += not any(draw.done() for draw in draws)
            return [await draw for draw in draws], others

    answers, others = asyncio.run(load())
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["image"].startswith("file://") for answer in answers)
    assert others > 0, "nobody else was answered before the first image was there"
