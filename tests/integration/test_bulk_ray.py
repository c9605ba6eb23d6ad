"""Batches on a Ray cluster of two simulated nodes: the results are those without Ray, exactly once, whatever dies.

The models come from ``light_models.py``, so no process of the cluster imports torch, and a test can set the seconds per
image.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow.parquet as pq
import pytest
from forked import Process, environment, gems, gems_here, gems_process
from light_models import OPTIONS

from gems.evals.prompts import fresh_prompts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.xdist_group("ray"),
    pytest.mark.timeout(300),  # seconds; a busy machine is slow to start the dozen processes of a cluster
]

TESTS = Path(__file__).parents[1]
CLUSTER = TESTS / "servers" / "ray_cluster.py"
SMALL = ("--max-rounds", "2", "--no-plan", "--no-skills", "--quiet", *OPTIONS)
Start: TypeAlias = Callable[..., Process]
QUICK, SLOW = 0.1, 1.0
"""Seconds per image."""


class Nodes:
    """The process that runs the cluster."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self.pace, self.imports = process, folder / "pace", folder / "imports"
        self.address = self._read()

    def send(self, command: str) -> str:
        """Send a command and return the answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\n")
        self._process.stdin.flush()
        return self._read()

    def workers(self) -> list[int]:
        return [int(pid) for pid in self.send("workers").split()]

    def draw_at(self, seconds: float) -> None:
        """Set the seconds per image from now on."""
        set_pace(self.pace, seconds)

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


def set_pace(path: Path, seconds: float) -> None:
    new_file = path.with_suffix(".new")
    new_file.write_text(str(seconds))
    new_file.rename(path)  # a generator reads the old pace or the new one, never half of it


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "imports").mkdir()
    set_pace(folder / "pace", QUICK)
    variables = {"GEMS_HOME": folder / "home", "LIGHT_IMPORTS": folder / "imports", "LIGHT_PACE": folder / "pace"}
    with subprocess.Popen(
        [sys.executable, str(CLUSTER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS), **{name: str(path) for name, path in variables.items()}},
    ) as process:
        yield Nodes(process, folder)
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)


def prompts(path: Path, n: int, seed: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": p.prompt}) + "\n" for p in fresh_prompts(n, seed)))
    return path


@pytest.fixture
def batch() -> Iterator[Start]:
    """A function that starts a batch. After the test, batches that still run are killed."""
    processes = []

    def start(file: Path, out: Path, *args: object, **variables: str) -> Process:
        variables = {"PYTHONPATH": str(TESTS), **variables}
        home = out.parent / "home"
        processes.append(gems_process("batch", file, "--out", out, *SMALL, *args, home=home, **variables))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: Process, code: int = 0) -> str:
    """Wait for a batch to end with this exit code. Returns its standard error."""
    _, message = process.communicate(timeout=280)
    assert process.returncode == code, message
    return str(message)


def lines(out: Path) -> list[dict[str, Any]]:
    path = out / "results.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


def images_in(out: Path) -> dict[int, Any]:
    """The images drawn for each prompt index."""
    return {row["index"]: [(a["prompt"], a["seed"], a["sha256"]) for a in row["attempts"]] for row in lines(out)}


def wait_for(out: Path, n: int, process: Process) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end and process.poll() is None:
        if len(lines(out)) >= n:
            return
        time.sleep(0.1)
    raise AssertionError(f"{n} results were not written: {process.communicate() if process.poll() is not None else ''}")


def test_unsupported_uses_of_ray_give_a_one_line_error(batch: Start, tmp_path: Path) -> None:
    file, out = prompts(tmp_path / "p.jsonl", 2, 1), tmp_path / "o"

    def refusal(*options: str) -> str:
        result = gems_here("batch", file, "--out", out, *SMALL, *options, home=tmp_path / "home")
        assert result.returncode == 2, result.stderr
        return result.stderr

    assert "--ray auto" in refusal("--ray", "ray://127.0.0.1:10001")
    assert "HOST:PORT" in refusal("--ray", "nowhere")
    assert "serve it" in refusal("--ray", "local", "--verifier", "transformers:x/y")
    message = finish(batch(file, out, "--ray", "127.0.0.1:1"), 3)
    assert "cannot work on the Ray cluster 127.0.0.1:1" in message
    assert len(message.strip().splitlines()) == 1


def test_no_file_of_the_current_folder_is_taken_for_a_module(nodes: Nodes, tmp_path: Path) -> None:
    """Ray lets its workers import from the driver's current folder, before the installed packages."""
    (tmp_path / "here").mkdir()
    for module in ("gems", "langgraph", "structlog", "light_models", "colorsys"):
        (tmp_path / "here" / f"{module}.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'a').write(__name__)\n")
    file = prompts(tmp_path / "p.jsonl", 2, 1)
    nodes.draw_at(QUICK)
    command = Path(sys.executable).with_name("gems")  # with ``python -m``, Python itself imports from that folder
    words = [command, "batch", file, "--out", tmp_path / "o", *SMALL, "--ray", nodes.address]
    variables = environment(tmp_path / "home", PYTHONPATH=str(TESTS))
    result = subprocess.run(
        list(map(str, words)), cwd=tmp_path / "here", env=variables, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "was-run").exists()
    assert len(lines(tmp_path / "o")) == 2


def test_two_batches_share_the_generator_and_neither_starves(nodes: Nodes, batch: Start, tmp_path: Path) -> None:
    """The first batch is already running, with four times as many prompts in flight, when the second one starts."""
    first, second = prompts(tmp_path / "a.jsonl", 120, 5), prompts(tmp_path / "b.jsonl", 18, 6)
    nodes.draw_at(QUICK)
    large = batch(first, tmp_path / "large", "--ray", nodes.address, "--workers", 1, "--concurrency", 16)
    wait_for(tmp_path / "large", 10, large)
    nodes.draw_at(SLOW)  # keep the first batch running until the second has started
    small = batch(second, tmp_path / "small", "--ray", nodes.address, "--workers", 1, "--concurrency", 4)
    wait_for(tmp_path / "small", 1, small)
    nodes.draw_at(QUICK)
    large_before, small_before = len(lines(tmp_path / "large")), len(lines(tmp_path / "small"))
    wait_for(tmp_path / "small", 18, small)
    meanwhile = len(lines(tmp_path / "large")) - large_before
    assert large.poll() is None
    finish(small)
    # Each batch got about half of the generator's images. First come, first served would give four to one.
    assert 0 < meanwhile < 3 * (18 - small_before)
    large.send_signal(signal.SIGINT)
    message = finish(large, 130)
    assert "finishing the prompts in flight" in message
    assert len(lines(tmp_path / "large")) < 120
    assert len(lines(tmp_path / "small")) == 18
    # No process of the cluster has imported a library that its models do not need.
    imported = {path.name.partition("-")[0]: path.read_text() for path in nodes.imports.iterdir()}
    assert imported == {"loaded": "", "drew": "", "chatted": ""}


def test_a_batch_continues_after_its_driver_was_killed_and_limits_hold(
    nodes: Nodes, batch: Start, tmp_path: Path
) -> None:
    """The driver is killed with its own cluster. The batch continues on another cluster, and then without Ray."""
    file, out = prompts(tmp_path / "p.jsonl", 14, 7), tmp_path / "out"
    nodes.draw_at(QUICK)
    local = batch(file, out, "--ray", "local", "--workers", 1, "--concurrency", 4, LIGHT_PACE=str(nodes.pace))
    wait_for(out, 4, local)
    local.kill()
    local.communicate()
    limit = ("--total-images", 14)
    finish(batch(file, out, "--ray", nodes.address, "--workers", 1, "--concurrency", 4, *limit), 4)
    status = json.loads(gems("batch", "status", out, "--json").stdout)
    # Images that were in flight when the driver was killed, at most one for each prompt, count as spent.
    assert status["spent"]["images"] + status["in_flight_at_a_kill_at_most"] == 14
    assert status["in_flight_at_a_kill_at_most"] <= 4
    assert max(Counter(row["index"] for row in lines(out)).values()) == 1
    assert "checkpoints" not in finish(batch(file, out))  # run the rest without Ray, in the same folder
    final_lines = [row for row in lines(out) if "stopped_by_total" not in row]
    assert Counter(row["index"] for row in final_lines) == Counter(range(14))


def test_when_workers_and_a_node_die_the_results_are_those_without_ray(
    nodes: Nodes, batch: Start, tmp_path: Path
) -> None:
    """This test must run last, because it kills a node of the cluster."""
    file, out, rng = prompts(tmp_path / "p.jsonl", 24, 4), tmp_path / "out", random.Random(4)
    nodes.draw_at(2 * QUICK)
    process = batch(file, out, "--ray", nodes.address, "--workers", 2, "--concurrency", 8)
    wait_for(out, 2, process)
    os.kill(rng.choice(nodes.workers()), signal.SIGKILL)
    wait_for(out, 7, process)
    nodes.send("kill-node")
    wait_for(out, 12, process)
    os.kill(rng.choice(nodes.workers()), signal.SIGKILL)
    finish(process)
    table = pq.read_table(out / "index.parquet").to_pylist()
    assert Counter(row["index"] for row in table) == Counter(range(24))
    assert Counter(row["index"] for row in lines(out)) == Counter(range(24))
    assert all(len(row["attempts"]) == row["usage"]["images"] for row in table)

    finish(batch(file, tmp_path / "local", "--concurrency", 4))
    assert images_in(tmp_path / "local") == images_in(out)
