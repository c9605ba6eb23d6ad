"""How long commands take from their start: an image, its first line, bad input, the first request, a warm service.

    python benchmarks/cold_start.py
    python benchmarks/cold_start.py --repeat 7 --json cold.json

Everything runs in new processes, in turns, so that a machine that slows down slows all. The measure of an image is
``from diffusers import DiffusionPipeline``, which everybody who draws with diffusers waits for. Bytecode goes into a
folder of its own, and a first turn is not counted, as if the packages had been installed and used before. ``cpu`` is
processor time, user and system: on a machine with other work it says more than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

PROMPT: Final = "two red cars behind a dog"
IMPORT: Final = "from diffusers import DiffusionPipeline"


@dataclass(frozen=True)
class Times:
    """Seconds of one process: until its end, on processors, and until its first line or request, if it has one."""

    clock: float
    cpu: float
    first: float | None = None


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        name: As the table calls it.
        command: The command line.
        code: The exit code that it has to have.
    """

    name: str
    command: Sequence[str]
    code: int = 0


def timed(case: Case, environment: dict[str, str], first_request: Callable[[], float | None]) -> Times:
    """Run a command; what comes first is its first line on stderr, or the first request to the server."""
    started = time.monotonic()
    with subprocess.Popen(  # noqa: S603 - our own command line
        case.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None  # noqa: PT018 - for the type checker
        errors = process.stderr.readline()
        first = time.monotonic() - started if errors else None
        drained = threading.Thread(target=process.stdout.read)
        drained.start()
        errors += process.stderr.read()
        drained.join()
        _, status, usage = os.wait4(process.pid, 0)
        clock = time.monotonic() - started
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != case.code:
        raise SystemExit(f"{case.name} ended with {process.returncode}: {errors}")
    request = first_request()
    return Times(clock, usage.ru_utime + usage.ru_stime, first if request is None else request - started)


@contextmanager
def refusing_server() -> Iterator[tuple[str, Callable[[], float | None]]]:
    """A server that refuses every request. Yields its address, and a function for when the last first one came."""
    arrivals: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrivals.append(time.monotonic())
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = b'{"error": {"message": "this server only takes the time"}}'
            self.send_response(400)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    def take_first() -> float | None:
        first = arrivals[0] if arrivals else None
        arrivals.clear()
        return first

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", take_first
    finally:
        server.shutdown()


@contextmanager
def warm_service(environment: dict[str, str], folder: Path) -> Iterator[str]:
    """A ``gems serve`` with pocket models that has drawn an image already. Yields its address."""
    command = [sys.executable, "-m", "gems", "serve", "--port", "0", "--grace", "0"]
    log = folder / "service.log"
    with (
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603 - our own command line
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "GEMS_HOME": str(folder / "service")},
        ) as process,
    ):
        while not (address := re.search(r"listening at (http://[^/\s]+)", log.read_text())):
            if process.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        try:
            yield address[1]
        finally:
            process.terminate()


def cases(server: str, service: str, out: Path) -> list[Case]:
    """Everything that is measured."""

    def generate(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "gems", "generate", *arguments, "--out", str(out)]

    servers = ["--mllm", "openai:any", "--generator", "openai:any"]
    for option in (f"base_url={server}", "api_key=sk-x"):
        servers += ["--chat-option", option, "--generator-option", option]
    return [
        Case(IMPORT, [sys.executable, "-c", IMPORT]),
        Case("gems generate", generate(PROMPT)),
        Case("gems generate --no-memory", generate(PROMPT, "--no-memory")),
        Case("gems generate --service", generate(PROMPT, "--service", service)),
        Case("servers, until the first request", generate(PROMPT, *servers), code=3),
        Case("servers, --no-memory, until the first request", generate(PROMPT, *servers, "--no-memory"), code=3),
        Case("an empty prompt", generate(" "), code=2),
        Case("an unknown word", generate("two red catz"), code=2),
        Case("an unknown option", generate(PROMPT, "--colour"), code=2),
        Case("a bad size", generate(PROMPT, "--generator-option", "width=0"), code=2),
        Case("gems --help", [sys.executable, "-m", "gems", "--help"]),
    ]


def table(results: dict[str, list[Times]]) -> str:
    """A table in Markdown: medians, and the median of the ratios to the import in the same turn."""
    lines = [
        "| Command | clock, s | cpu, s | least clock, s | first line or request, s | clock to import | cpu to import |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    measure = results[IMPORT]
    for name, times in results.items():
        clock, cpu = (statistics.median(getattr(t, field) for t in times) for field in ("clock", "cpu"))
        first = [t.first for t in times if t.first is not None]
        ratios = [
            statistics.median(getattr(t, field) / getattr(m, field) for t, m in zip(times, measure, strict=True))
            for field in ("clock", "cpu")
        ]
        least = min(t.clock for t in times)
        when = f"{statistics.median(first):.2f}" if first else ""
        lines.append(f"| {name} | {clock:.2f} | {cpu:.2f} | {least:.2f} | {when} | {ratios[0]:.2f} | {ratios[1]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="turns that are counted")
    parser.add_argument("--json", type=Path, help="also write all times to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, refusing_server() as (server, first_request):
        folder = Path(name)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "GEMS_HOME": str(folder / "home")}
        with warm_service(environment, folder) as service:
            everything = cases(server, service, folder / "out")
            results: dict[str, list[Times]] = {case.name: [] for case in everything}
            for turn in range(args.repeat + 1):
                for case in everything:
                    times = timed(case, environment, first_request)
                    if turn:
                        results[case.name].append(times)
    print(table(results))
    if args.json:
        args.json.write_text(json.dumps({name: [asdict(t) for t in times] for name, times in results.items()}))


if __name__ == "__main__":
    main()
