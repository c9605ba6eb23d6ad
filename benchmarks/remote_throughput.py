"""Images per second from a server, against the ideal: requests in flight over the seconds that each of them takes.

    python benchmarks/remote_throughput.py --images 640 --concurrency 32 --latency 0.5 --runs 3

The server is a separate process on 127.0.0.1 that answers ``POST /v1/images/generations`` with a photo-like 512 x 512
PNG in base64, a fixed time after it has read the request. It reports how late its answers were, so that a slow client
can be told from a busy machine. The client is ``init_image_generator("openai:painter")``, used in three ways, beside
the least that any client would do:

- ``bare``: read each answer from a socket, and decode the PNG in it, on as many threads as there are processors. This
  is what the machine allows at that moment.
- ``async``: as many calls of ``agenerate`` as requests, one request each, as the graph does. No image is kept.
- ``threads``: a few more threads than ``concurrency``, each with one request at a time, as in ``gems batch``, so that
  others use the slots of those that are decoding. No image is kept.
- ``batch``: one call with all requests. Its result contains all images, 1 MB each.

The figures go to stdout as JSON, the progress to stderr.
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

from PIL import Image
from pydantic import SecretStr
from pydantic_core import from_json

from gems.authority import OPERATOR
from gems.models.generators import Asynchronous, GeneratedImage, ImageGenerator, ImageRequest
from gems.models.registry import init_image_generator
from gems.models.servers.base import RemoteGenerator
from gems.options import GeneratorOptions

SIZE: Final = 512
HOST: Final = "127.0.0.1"
PATH: Final = "/v1/images/generations"
IMAGES: Final = 8
"""Number of different images that the server returns."""

MAX_CONCURRENCY: Final = 64
MAX_REQUEST: Final = 2**20
"""The largest request that the server reads, in bytes."""

MAX_SECONDS: Final = 3600.0
"""The server ends after this time, whatever happens to the process that started it."""


# --- the server, in its own process ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """The server's figures since the last query; ``late_ms`` is how long after its time an answer was started."""

    answers: int
    most_in_flight: int
    late_ms_mean: float
    late_ms_max: float
    cpu_seconds: float


class _Server:
    """Answers every request ``latency`` seconds after reading it."""

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
        """The figures since the last call."""
        late = self._late or [0.0]
        cpu = time.process_time() - self._cpu
        figures = Served(len(self._late), self._most, 1000 * statistics.fmean(late), 1000 * max(late), cpu)
        self._clear()
        return figures

    async def run(self, parent: Connection) -> None:
        """Send the port, then serve until the parent closes its pipe or an hour has passed."""
        loop, stop_event = asyncio.get_running_loop(), asyncio.Event()

        def on_message() -> None:
            try:
                parent.recv()
                parent.send(self.served())
            except (EOFError, OSError):
                loop.remove_reader(parent.fileno())
                stop_event.set()

        server = await asyncio.start_server(self._talk, HOST, 0, backlog=2 * MAX_CONCURRENCY)
        loop.add_reader(parent.fileno(), on_message)
        parent.send(server.sockets[0].getsockname()[1])
        try:
            async with asyncio.timeout(MAX_SECONDS):
                await stop_event.wait()
        finally:
            server.close()
            for connection in self._connections:
                connection.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection, which may carry any number of requests."""
        task = asyncio.current_task()
        if task is None or len(self._connections) >= 2 * MAX_CONCURRENCY:
            writer.close()
            return
        self._connections.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
            pass  # the client has disconnected, or is not the benchmark
        except asyncio.CancelledError:
            pass  # the server ends; asyncio would report a cancelled connection as an error
        finally:
            self._connections.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Return whether another one may follow."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(fields.get("content-length", "0"))
        if not first.startswith(f"POST {PATH} ") or not 0 < length <= MAX_REQUEST:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            await writer.drain()
            return False
        await reader.readexactly(length)
        loop = asyncio.get_running_loop()
        answer_time = loop.time() + self._latency
        self._in_flight += 1
        self._most = max(self._most, self._in_flight)
        try:
            await asyncio.sleep(answer_time - loop.time())
            self._late.append(loop.time() - answer_time)
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
    """Drawn scenes with film grain, which makes them as large and as slow to decode as a model's images."""
    import numpy as np

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
    """Start a server that ends with the block or with this process."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit this process's state but not its threads
    parent_end, child_end = context.Pipe()
    process = context.Process(target=_serve, args=(child_end, latency), daemon=True)
    process.start()
    child_end.close()

    def receive() -> Any:
        if not parent_end.poll(60):
            raise SystemExit("the server does not answer")
        return parent_end.recv()

    def ask() -> Served:
        parent_end.send("served?")
        served: Served = receive()
        return served

    try:
        answer_bytes, port = receive(), receive()
        yield _Address(port, round(answer_bytes), ask)
    finally:
        parent_end.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


# --- the client, in this process --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One measurement. ``ratio`` is relative to the ideal; ``load`` is the machine's average over the last minute."""

    seconds: float
    images_per_second: float
    ratio: float
    client_cpu_ms_per_image: float
    load: float
    server: Served


def _threads(generator: ImageGenerator, requests: Sequence[ImageRequest], concurrency: int) -> int:
    """Request one image at a time, from enough threads that no slot is idle while images are decoded."""
    with ThreadPoolExecutor(concurrency + (os.cpu_count() or 1)) as pool:
        return sum(pool.map(lambda request: _count_images(generator.generate([request])), requests))


def _batch(generator: ImageGenerator, requests: Sequence[ImageRequest], _: int) -> int:
    """Request all images in one call. Return how many arrived."""
    return _count_images(generator.generate(requests))


def _async(generator: ImageGenerator, requests: Sequence[ImageRequest], _: int) -> int:
    """Request each image by a call of its own, all on one event loop."""
    assert isinstance(generator, Asynchronous)
    draw = generator.agenerate

    async def draw_all() -> int:
        async def draw_one(request: ImageRequest) -> int:
            return _count_images(await draw([request]))

        return sum(await asyncio.gather(*map(draw_one, requests)))

    return asyncio.run(draw_all())


def _bare(generator: ImageGenerator, requests: Sequence[ImageRequest], concurrency: int) -> int:
    """Do no more than any client has to. Return how many images arrived."""
    assert isinstance(generator, RemoteGenerator)
    body = json.dumps({"model": "painter", "prompt": requests[0].prompt, "response_format": "b64_json"}).encode()
    request = f"POST {PATH} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    port, left = generator.url.port, list(requests)

    async def talk(pool: ThreadPoolExecutor) -> int:
        reader, writer = await asyncio.open_connection(HOST, port, limit=2**20)
        decodings = []
        while left:
            left.pop()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            answer = await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split()[0]))
            decodings.append(asyncio.get_running_loop().run_in_executor(pool, _decode, answer))
        writer.close()
        return sum(await asyncio.gather(*decodings))

    async def talk_all() -> int:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return sum(await asyncio.gather(*(talk(pool) for _ in range(concurrency))))

    return asyncio.run(talk_all())


def _decode(answer: bytes) -> int:
    file = io.BytesIO(base64.b64decode(from_json(answer)["data"][0]["b64_json"]))
    Image.open(file, formats=("PNG",)).load()
    return 1


WAYS: Final = {"bare": _bare, "async": _async, "threads": _threads, "batch": _batch}
"""The order matters: ``batch`` keeps all its images, so its peak memory would hide that of ``threads``."""


def _count_images(results: Sequence[Any]) -> int:
    for result in results:
        if not isinstance(result, GeneratedImage):
            raise SystemExit(f"no image: {result}")
        if result.image.size != (SIZE, SIZE):
            raise SystemExit(f"an image of {result.image.size}")
    return len(results)


def measure(images: int, concurrency: int, latency: float, runs: int) -> dict[str, Any]:
    """Get ``images`` images from a server, ``runs`` times in each way."""
    # Nothing leaves this machine: no proxy is used, and the server gets none of the user's keys.
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = HOST
    ideal = concurrency / latency
    rss_before = _peak_mb()
    with _server(latency) as address:
        _say(
            f"{address.answer_bytes / 1000:.0f} kB an answer, ideal {ideal:.1f} images/s, load {os.getloadavg()[0]:.2f}"
        )
        generator = init_image_generator(
            "openai:painter",
            GeneratorOptions(
                base_url=f"http://{HOST}:{address.port}/v1", api_key=SecretStr("none"), concurrency=concurrency
            ),
            OPERATOR,
        )
        figures: dict[str, Any] = {}
        for name, way in WAYS.items():
            way(generator, _requests(concurrency), concurrency)  # connect
            action = partial(way, generator, _requests(images), concurrency)
            figures[name] = _summary([_run(f"{name} {i + 1}/{runs}", action, address, ideal) for i in range(runs)])
    return {
        "images": images,
        "concurrency": concurrency,
        "latency": latency,
        "ideal_images_per_second": ideal,
        "answer_bytes": address.answer_bytes,
        "processors": os.cpu_count(),
        "rss_mb_before": rss_before,
        "torch_imported": "torch" in sys.modules,
        **figures,
        "of_bare": {
            name: figures[name]["images_per_second_median"] / figures["bare"]["images_per_second_median"]
            for name in figures
            if name != "bare"
        },
    }


def _summary(runs: Sequence[Run]) -> dict[str, Any]:
    ratios = [run.ratio for run in runs]
    return {
        "images_per_second_median": statistics.median(run.images_per_second for run in runs),
        "ratio_median": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "ratio_spread": max(ratios) - min(ratios),
        "peak_rss_mb": _peak_mb(),
        "runs": [asdict(run) for run in runs],
    }


def _requests(images: int) -> list[ImageRequest]:
    return [ImageRequest("two red cars behind a dog", seed) for seed in range(images)]


def _run(name: str, action: Callable[[], int], address: _Address, ideal: float) -> Run:
    address.ask()  # reset the server's figures
    start, cpu_start = time.perf_counter(), time.process_time()
    images = action()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
    run = Run(
        seconds=seconds,
        images_per_second=images / seconds,
        ratio=images / seconds / ideal,
        client_cpu_ms_per_image=1000 * cpu / images,
        load=os.getloadavg()[0],
        server=address.ask(),
    )
    if run.server.answers != images:
        raise SystemExit(f"{run.server.answers} answers to {images} requests")
    _say(
        f"{name}: {run.images_per_second:.1f} images/s, ratio {run.ratio:.3f}, {run.client_cpu_ms_per_image:.1f} ms of "
        f"processor time per image, server late by {run.server.late_ms_mean:.1f} ms (at most "
        f"{run.server.late_ms_max:.1f}), load {run.load:.2f}"
    )
    return run


def _peak_mb() -> float:
    """The peak resident memory of this process so far, in MB."""
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
    parser.add_argument("--images", type=int, default=640, help="images of one run; a multiple of the concurrency")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency", type=float, default=0.5, help="seconds that the server takes for one image")
    parser.add_argument("--runs", type=int, default=3, help="number of measurements of each way")
    args = parser.parse_args()
    if not 1 <= args.concurrency <= MAX_CONCURRENCY:
        parser.error(f"the server handles up to {MAX_CONCURRENCY} requests at once")
    if args.images < 1 or args.images % args.concurrency:
        parser.error("--images must be a multiple of --concurrency, so that no slot is idle at the end")
    if args.latency <= 0 or args.runs < 1:
        parser.error("--latency and --runs must be positive")
    print(json.dumps(_rounded(measure(args.images, args.concurrency, args.latency, args.runs)), indent=2))


if __name__ == "__main__":
    main()
