"""Requests leave nothing behind, whatever they name; freed memory is returned; cycles of requests are collected."""

from __future__ import annotations

import ctypes
import gc
import logging
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from fastapi.testclient import TestClient
from PIL import Image

from gems.models.pocket.render import draw_scene
from gems.serve.keys import new_key
from gems.serve.settings import ServiceSettings
from gems.serve.web_app import make_app

_ROUNDS = 16
_REFUSED = "daily = { images = 0 }\n"


def _send_distinct(client: TestClient, keys: list[str], rounds: int) -> None:
    """Requests of which no two name the same path, run, thread, key, setting or id."""
    for n in range(rounds):
        name = uuid.uuid4().hex * 3  # pydantic keeps shorter texts in a cache of 16,384
        headers = {
            "authorization": f"Bearer {keys[n % len(keys)] if n % 4 else name}",
            "x-request-id": name,
            "idempotency-key": name,
            "origin": f"https://{name}.example",
        }
        run = {"prompt": f"two red cars {name}", "thread": name, "settings": {"seed": n}}
        agent = {"prompt": name, "thread_id": name}
        client.get(f"/{name}", headers=headers)
        client.get(f"/artifacts/{name}.png?{name}={name}", headers=headers)
        client.get(f"/v1/runs/run-{name}/events", headers=headers)
        del headers["origin"]
        client.post(f"/v1/runs/run-{name}/review", json={"action": "reject", "comment": name}, headers=headers)
        client.delete(f"/v1/runs/run-{name}", headers=headers)
        client.post("/v1/runs", json=run, headers=headers)
        client.post("/v1/runs", json={name: name}, headers=headers)
        client.post("/v1/images/generations", json={"prompt": name, "user": name}, headers=headers)
        client.post("/gems/invoke", json={"input": agent, "config": {"tags": [name]}}, headers=headers)
        client.post("/gems/stream_log", json={"input": agent, "config": {"metadata": {name: 1}}}, headers=headers)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Write no logs: drawing tracebacks in colour would take longer than the requests."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


def _objects() -> int:
    """Memory blocks of Python objects after a collection."""
    gc.collect()
    return sys.getallocatedblocks()


@pytest.mark.slow
@pytest.mark.usefixtures("quiet")
def test_requests_with_names_of_their_own_leave_nothing_behind(tmp_path: Path) -> None:
    keys, entries = zip(*(new_key(f"user-{n}") for n in range(4)), strict=True)
    (tmp_path / "keys.toml").write_text("".join(entry + _REFUSED for entry in entries))
    app = make_app(ServiceSettings(home=tmp_path, keys=tmp_path / "keys.toml"))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        _send_distinct(client, list(keys), _ROUNDS)
        metrics, growths = app.state.service.metrics.text().count(b"\n"), []
        for _ in range(10):
            before = _objects()
            _send_distinct(client, list(keys), _ROUNDS)
            growths.append(_objects() - before)
        assert app.state.service.metrics.text().count(b"\n") == metrics
    # What is kept of one kind of request alone makes every batch grow; caches of libraries fill only now and then.
    assert min(growths) < _ROUNDS, f"memory blocks were kept: {growths}"


def test_drawing_in_many_styles_keeps_few_images() -> None:
    def images() -> int:
        gc.collect()
        return sum(type(thing) is Image.Image for thing in gc.get_objects())

    draw_scene([], style=0, size=64)
    before = images()
    for style in range(1, 12):
        draw_scene([], style=style, size=64)
    assert images() - before <= 2


def _run(program: str) -> list[str]:
    """The words that a program prints in a process of its own."""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.split()


_FREED_BELOW_A_USED_BLOCK = """
import ctypes, psutil
from gems.serve.process_memory import return_freed_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(100_000) for _ in range(400)]
for block in blocks:
    ctypes.memset(block, 1, 100_000)
for block in blocks[:-1]:
    libc.free(block)
before = psutil.Process().memory_info().rss
return_freed_blocks()
print(before - psutil.Process().memory_info().rss > 20_000_000)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_freed_memory_below_a_used_block_is_returned() -> None:
    assert _run(_FREED_BELOW_A_USED_BLOCK) == ["True"]
    assert _run(_FREED_BELOW_A_USED_BLOCK.replace("return_freed_blocks()", "")) == ["False"], "the test cannot fail"


def test_the_collector_looks_only_at_what_comes_after_the_start() -> None:
    frozen, rest = _run(
        "import gc; from gems.serve.process_memory import leave_to_collector_what_comes as leave; "
        "before = len(gc.get_objects()); leave(); print(gc.get_freeze_count() > 0.5 * before, len(gc.get_objects()))"
    )
    assert frozen == "True"
    assert int(rest) < 1000
