"""Images a second from a server, against what it could give: requests in flight, over the seconds one of them takes.

    python benchmarks/remote_throughput.py --images 640 --concurrency 32 --latency 0.5 --runs 3

The server is a process of its own on 127.0.0.1 that answers ``POST /v1/images/generations`` with a photo-like
512 x 512 PNG in base64, so many seconds after it has read the request; it says how late it was, so that a slow client
is told from a busy machine. The client is ``init_image_generator("openai:painter")``, used in both ways:

- ``threads``: a few more callers than ``concurrency``, a request at a time, as ``gems batch`` has them, so that those
  which decode leave their places to others. No image is kept.
- ``batch``: one call with all the requests. Its result holds all the images, 1 MB each.

The figures go to stdout as JSON, what is going on to stderr.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

from pydantic import SecretStr

from gems.models.generators import GeneratedImage, ImageGenerator, ImageRequest
from gems.models.registry import init_image_generator
from gems.options import GeneratorOptions

SIZE: Final = 512
HOST: Final = "127.0.0.1"
PATH: Final = "/v1/images/generations"
IMAGES: Final = 8
"""Different images that the server has."""

MAX_CONCURRENCY: Final = 64
MAX_REQUEST: Final = 2**20
"""Bytes of a request that the server reads."""

MAX_SECONDS: Final = 3600.0
"""How long the server lives, whatever happens to the one who started it."""


# --- the server, in its own process ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """What the server saw since it was last asked; ``late_ms`` is from when an answer was due to when it was begun."""

    answers: int
    most_in_flight: int
    late_ms_mean: float
    late_ms_max: float
    cpu_seconds: float


class _Server:
    """Answers every request ``latency`` seconds after it was read."""

    def __init__(self, latency: float, answers: Sequence[bytes]) -> None:
        self._latency = latency
        self._answers = answers
        self._connections: set[asyncio.Task[Any]] = set()
        self._count = self._in_flight = 0
        self._clear()

    def _clear(self) -> None:
        self._late: list[float] = []
        self._most = self._in_flight
        self._cpu = time.process_time()

    def served(self) -> Served:
        """What was seen since the last call."""
        late = self._late or [0.0]
        cpu = time.process_time() - self._cpu
        told = Served(len(self._late), self._most, 1000 * statistics.fmean(late), 1000 * max(late), cpu)
        self._clear()
        return told

    async def run(self, parent: Connection) -> None:
        """Say the port, then serve until the parent says so, or is gone, or an hour has passed."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()

        def on_message() -> None:
            try:
                parent.recv()
                parent.send(self.served())
            except (EOFError, OSError):
                loop.remove_reader(parent.fileno())
                over.set()

        server = await asyncio.start_server(self._talk, HOST, 0, backlog=2 * MAX_CONCURRENCY)
        loop.add_reader(parent.fileno(), on_message)
        parent.send(server.sockets[0].getsockname()[1])
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await over.wait()
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept for as many requests as come."""
        task = asyncio.current_task()
        if task is None or len(self._connections) >= 2 * MAX_CONCURRENCY:
            writer.close()
            return
        self._connections.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            pass  # the client is gone, or is no client of ours
        except asyncio.CancelledError:
            pass  # the end; a cancelled connection would be reported as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; tells whether another one may follow."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(fields.get("content-length", "0"))
        if not first.startswith(f"POST {PATH} ") or not 0 < length <= MAX_REQUEST:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return False
        await reader.readexactly(length)
        loop = asyncio.get_running_loop()
        due = loop.time() + self._latency
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        try:
            await asyncio.sleep(due - loop.time())
            self._late.append(loop.time() - due)
        finally:
            self._in_flight -= 1
        self._count += 1
        writer.write(self._answers[self._count % len(self._answers)])
        await writer.drain()
        return True


def _serve(parent: Connection, latency: float) -> None:
    answers = []
    for png in _pngs():
        body = json.dumps({"created": 0, "data": [{"b64_json": base64.b64encode(png).decode()}]}).encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        answers.append(head.encode() + body)
    parent.send(statistics.fmean(map(len, answers)))
    asyncio.run(_Server(latency, answers).run(parent))


def _pngs() -> Iterator[bytes]:
    """Drawn scenes with a film's grain, which makes them as hard to decode, and as large, as what a model draws."""
    import numpy as np
    from PIL import Image

    from gems.models.pocket.render import draw_scene
    from gems.models.pocket.scene import layout, sample_spec

    rng = np.random.default_rng(0)
    for style in range(IMAGES):
        scene = np.asarray(draw_scene(layout(sample_spec(rng), rng).items, style=style, size=SIZE), np.float64)
        pixels = np.clip(np.rint(scene + rng.normal(0.0, 2.0, scene.shape)), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        yield buffer.getvalue()


@dataclass(frozen=True)
class _Address:
    port: int
    answer_bytes: int
    ask: Callable[[], Served]


@contextmanager
def _server(latency: float) -> Iterator[_Address]:
    """A server that ends with the block, or with this process."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit what this process has, its threads not
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, latency), daemon=True)
    process.start()
    theirs.close()

    def told() -> Any:
        if not ours.poll(60):
            raise SystemExit("the server does not answer")
        return ours.recv()

    def ask() -> Served:
        ours.send("served?")
        served: Served = told()
        return served

    try:
        answer_bytes, port = told(), told()
        yield _Address(port, round(answer_bytes), ask)
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


# --- the client, in this one ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run of one way: ``ratio`` is of the ideal, ``load`` the machine's average over the last minute."""

    seconds: float
    images_per_second: float
    ratio: float
    client_cpu_ms_per_image: float
    load: float
    server: Served


def _threads(generator: ImageGenerator, requests: Sequence[ImageRequest], concurrency: int) -> int:
    """Ask for one image at a time, from threads enough that none of the slots waits while images are decoded."""
    with ThreadPoolExecutor(concurrency + (os.cpu_count() or 1)) as pool:
        return sum(pool.map(lambda request: _came(generator.generate([request])), requests))


def _batch(generator: ImageGenerator, requests: Sequence[ImageRequest], _: int) -> int:
    """Ask for all the images in one call; gives how many came."""
    return _came(generator.generate(requests))


WAYS: Final = {"threads": _threads, "batch": _batch}
"""In this order: what the first needs at its peak is not hidden by the second, which keeps all its images."""


def _came(results: Sequence[Any]) -> int:
    for result in results:
        if not isinstance(result, GeneratedImage):
            raise SystemExit(f"no image: {result}")
        if result.image.size != (SIZE, SIZE):
            raise SystemExit(f"an image of {result.image.size}")
    return len(results)


def measure(images: int, concurrency: int, latency: float, runs: int) -> dict[str, Any]:
    """Get so many images from a server, ``runs`` times in each way."""
    # Nothing leaves this machine: no proxy is asked, and the server is given no key of the user's.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = HOST
    ideal = concurrency / latency
    at_start = _peak_mb()
    figures: dict[str, Any] = {}
    with _server(latency) as address:
        _say(
            f"{address.answer_bytes / 1000:.0f} kB an answer, ideal {ideal:.1f} images/s, load {os.getloadavg()[0]:.2f}"
        )
        generator = init_image_generator(
            "openai:painter",
            GeneratorOptions(
                base_url=f"http://{HOST}:{address.port}/v1", api_key=SecretStr("none"), concurrency=concurrency
            ),
        )
        for name, way in WAYS.items():
            way(generator, _requests(concurrency), concurrency)  # connects
            done: list[Run] = []
            for i in range(runs):
                run = _run(partial(way, generator, _requests(images), concurrency), address, ideal)
                done.append(run)
                if run.server.answers != images:
                    raise SystemExit(f"{run.server.answers} answers to {images} requests")
                _say(
                    f"{name} {i + 1}/{runs}: {run.images_per_second:.1f} images/s, ratio {run.ratio:.3f}, "
                    f"{run.client_cpu_ms_per_image:.1f} ms of processor an image, server late by "
                    f"{run.server.late_ms_mean:.1f} ms (at most {run.server.late_ms_max:.1f}), load {run.load:.2f}"
                )
            ratios = [run.ratio for run in done]
            figures[name] = {
                "images_per_second_median": statistics.median(run.images_per_second for run in done),
                "ratio_median": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "ratio_spread": max(ratios) - min(ratios),
                "peak_rss_mb": _peak_mb(),
                "runs": [asdict(run) for run in done],
            }
    return {
        "images": images,
        "concurrency": concurrency,
        "latency": latency,
        "ideal_images_per_second": ideal,
        "answer_bytes": address.answer_bytes,
        "processors": os.cpu_count(),
        "rss_mb_before": at_start,
        "torch_imported": "torch" in sys.modules,
        **figures,
    }


def _requests(images: int) -> list[ImageRequest]:
    return [ImageRequest("two red cars behind a dog", seed) for seed in range(images)]


def _run(action: Callable[[], int], address: _Address, ideal: float) -> Run:
    address.ask()  # forget what was before
    start, cpu_start = time.perf_counter(), time.process_time()
    images = action()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    return Run(
        seconds=seconds,
        images_per_second=images / seconds,
        ratio=images / seconds / ideal,
        client_cpu_ms_per_image=1000 * cpu / images,
        load=os.getloadavg()[0],
        server=address.ask(),
    )


def _peak_mb() -> float:
    """The most memory that this process has had resident so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB elsewhere


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) if isinstance(value, float) else value


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640, help="of one run; a multiple of the concurrency")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the server takes for one image")
    parser.add_argument("--runs", type=int, default=3, help="of each way")
    args = parser.parse_args()
    if not 1 <= args.concurrency <= MAX_CONCURRENCY:
        parser.error(f"the server handles up to {MAX_CONCURRENCY} requests at once")
    if args.images < 1 or args.images % args.concurrency:
        parser.error("give a multiple of the concurrency: of the last requests, as many as of the others are in flight")
    if args.latency <= 0 or args.runs < 1:
        parser.error("latency and runs have to be positive")
    print(json.dumps(_rounded(measure(args.images, args.concurrency, args.latency, args.runs)), indent=2))


if __name__ == "__main__":
    main()
