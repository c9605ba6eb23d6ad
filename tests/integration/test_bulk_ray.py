"""Bulk runs on a Ray cluster of two simulated nodes: the same results, exactly once, whatever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from gems.evals.prompts import fresh_prompts

CLUSTER = Path(__file__).parents[1] / "servers" / "ray_cluster.py"
SMALL = ("--max-rounds", "2", "--no-plan", "--no-skills", "--quiet")


class Nodes:
    """The cluster's process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._read()

    def tell(self, word: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._read()

    def workers(self) -> list[int]:
        return [int(pid) for pid in self.tell("workers").split()]

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    with subprocess.Popen(
        [sys.executable, str(CLUSTER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Nodes(process)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def prompts(path: Path, n: int, seed: int) -> Path:
    wishes = fresh_prompts(n, seed)
    path.write_text("".join(json.dumps({"prompt": wish.prompt}) + "\n" for wish in wishes))
    return path


def batch(file: Path, out: Path, *args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "gems", "batch", str(file), "--out", str(out), *SMALL, *map(str, args)]
    env = {**os.environ, "GEMS_HOME": str(out.parent / "home")}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    _, told = process.communicate(timeout=280)
    assert process.returncode == code, told
    return told


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def made(out: Path) -> dict[int, Any]:
    """What was drawn, by prompt."""
    return {row["index"]: [(a["prompt"], a["seed"], a["sha256"]) for a in row["attempts"]] for row in lines(out)}


def wait_for(out: Path, n: int, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        if len(lines(out)) >= n:
            return
        time.sleep(0.1)
    raise AssertionError(f"{n} results did not come")


def test_workers_and_a_node_die_and_every_prompt_comes_once_and_as_without_ray(nodes: Nodes, tmp_path: Path) -> None:
    file, out = prompts(tmp_path / "p.jsonl", 100, 4), tmp_path / "out"
    process = batch(file, out, "--ray", nodes.address, "--workers", 2, "--concurrency", 8)
    wait_for(out, 5, process)
    os.kill(random.choice(nodes.workers()), signal.SIGKILL)
    wait_for(out, 30, process)
    nodes.tell("kill-node")
    wait_for(out, 60, process)
    os.kill(random.choice(nodes.workers()), signal.SIGKILL)
    ended(process)
    table = pq.read_table(out / "index.parquet").to_pylist()
    assert Counter(row["index"] for row in table) == Counter(range(100))
    assert Counter(row["index"] for row in lines(out)) == Counter(range(100))
    assert all(len(row["attempts"]) == row["usage"]["images"] for row in table)

    ended(batch(file, tmp_path / "local", "--concurrency", 4))
    assert made(tmp_path / "local") == made(out)


def test_two_batches_share_the_generator_and_neither_starves(nodes: Nodes, tmp_path: Path) -> None:
    """The second one comes when the first is under way, with four times as many prompts in flight."""
    first, second = prompts(tmp_path / "a.jsonl", 240, 5), prompts(tmp_path / "b.jsonl", 24, 6)
    large = batch(first, tmp_path / "large", "--ray", nodes.address, "--workers", 1, "--concurrency", 16)
    wait_for(tmp_path / "large", 10, large)
    small = batch(second, tmp_path / "small", "--ray", nodes.address, "--workers", 1, "--concurrency", 4)
    wait_for(tmp_path / "small", 1, small)
    before = len(lines(tmp_path / "large"))
    ended(small)
    meanwhile = len(lines(tmp_path / "large")) - before
    assert large.poll() is None
    # Both went on, each with about half of the generator's images; first come, first served would be four to one.
    assert 0 < meanwhile < 3 * 24
    large.send_signal(signal.SIGINT)
    told = ended(large, 130)
    assert "finishing the prompts in flight" in told
    assert len(lines(tmp_path / "large")) < 240
    assert len(lines(tmp_path / "small")) == 24


def test_a_killed_driver_goes_on_and_limits_hold(tmp_path: Path) -> None:
    """With a cluster of its own, which ends with it."""
    file, out = prompts(tmp_path / "p.jsonl", 40, 7), tmp_path / "out"
    process = batch(file, out, "--ray", "local", "--workers", 1, "--concurrency", 4)
    wait_for(out, 6, process)
    process.kill()
    process.communicate()
    ended(batch(file, out, "--ray", "local", "--workers", 1, "--concurrency", 4, "--total-images", 40), 4)
    spent = sum(row["usage"]["images"] for row in lines(out))
    assert 40 <= spent < 42
    assert max(Counter(row["index"] for row in lines(out)).values()) == 1
    assert "checkpoints" not in ended(batch(file, out))  # the rest without Ray: the folder is the same
    assert Counter(row["index"] for row in lines(out)) == Counter(range(40))


def test_what_ray_cannot_do_is_said_in_a_line(tmp_path: Path) -> None:
    file = prompts(tmp_path / "p.jsonl", 2, 1)
    told = ended(batch(file, tmp_path / "o", "--ray", "ray://127.0.0.1:10001"), 2)
    assert "--ray auto" in told
    told = ended(batch(file, tmp_path / "o", "--ray", "127.0.0.1:1"), 3)
    assert "cannot work on the Ray cluster 127.0.0.1:1" in told
    assert "HOST:PORT" in ended(batch(file, tmp_path / "o", "--ray", "nowhere"), 2)
    assert "serve it" in ended(batch(file, tmp_path / "o", "--ray", "local", "--verifier", "transformers:x/y"), 2)
    assert len(told.strip().splitlines()) == 1
