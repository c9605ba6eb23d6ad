"""Can any request make the service fail, log a traceback, or grow?

    python benchmarks/service_fuzz.py --requests 100000

Half-valid requests to every route of ``gems serve``: some by schemathesis from the service's own schema, most by a
grammar of HTTP (targets, headers, encodings, framing, chunks, requests sent ahead, connections cut off, streams) and of
JSON (null, depth, huge numbers, NaN, keys twice, half surrogate pairs, raw bytes). Most are sent with a key that may
make no image, so that runs are refused at once; the others make one image.

Counts statuses, faults (5xx) and tracebacks in the log, and follows the service's memory: when it is ready, and after
each quarter of the requests. The first half is warm-up. Memory is "flat" if its median over the last eighth of the
requests is at most 2% above its median over the eighth that follows the middle; otherwise it "grows". Printed as JSON;
the exit code is 1 if there was a fault or a traceback, or the service died.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
import requests

from gems.serve.keys import new_key

_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3}) ")
_RUN: Final = re.compile(rb"run-[0-9a-f]{32}")
_LINK: Final = re.compile(rb"/(?:artifacts|reports)/[A-Za-z0-9_.-]+")
_PATIENCE: Final = 10.0
"""Seconds that an exchange may take."""
_FLAT: Final = 0.02
"""Growth of the second half up to which memory is called flat."""


def main() -> None:
    """Fuzz, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000, help="how many to send at least")
    parser.add_argument("--schema-share", type=float, default=0.05, help="share of requests by schemathesis")
    parser.add_argument("--image-share", type=float, default=0.01, help="share of requests that may make an image")
    parser.add_argument("--clients", type=int, default=32, help="concurrent connections")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as target:
        schema_requests = schema_generated(target, round(args.requests * args.schema_share), args.seed)
        tally = asyncio.run(fuzz(target, schema_requests, args))
        report = summary(target, tally, args)
    print(json.dumps(report, indent=1))
    if report["faults"] or report["tracebacks"] or not report["alive"]:
        raise SystemExit(1)


# --- the service ----------------------------------------------------------------------------------------------------


@dataclass
class Target:
    """The running service."""

    url: str
    process: psutil.Process
    log: Path
    keys: dict[str, str]

    @property
    def memory_mib(self) -> float:
        """The memory that the process holds."""
        return round(self.process.memory_info().rss / 2**20, 1)


@contextmanager
def serving(folder: Path) -> Iterator[Target]:
    """``gems serve`` with a key that may make no image, one that may, and one for the metrics."""
    keys, entries = {}, []
    for name, limits in (("poor", "daily = { images = 0 }\n"), ("rich", ""), ("prometheus", "metrics = true\n")):
        keys[name], entry = new_key(name)
        entries.append(entry + limits)
    (folder / "keys.toml").write_text("".join(entries))
    options = ["--port", "0", "--log-format", "json", "--keys", str(folder / "keys.toml"), "--grace", "0"]
    options += ["--no-memory", "--max-rounds", "1", "--max-images", "1", "--concurrency", "1", "--queue", "2"]
    options += ["--cors-origin", "https://allowed.example"]
    environment = {**os.environ, "GEMS_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "gems", "serve", *options]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)  # noqa: S603 - our own command
    try:
        yield Target(_address(process), psutil.Process(process.pid), folder / "log", keys)
    finally:
        process.terminate()
        process.wait(60)


def _address(process: subprocess.Popen[bytes]) -> str:
    for _ in range(1200):
        if process.poll() is not None:
            raise SystemExit("the service did not start")
        listening = [c for c in psutil.Process(process.pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        if listening:
            return f"http://127.0.0.1:{listening[0].laddr.port}"
        time.sleep(0.1)
    raise SystemExit("the service did not start within two minutes")


# --- requests by schemathesis ---------------------------------------------------------------------------------------


def schema_generated(target: Target, count: int, seed: int) -> list[bytes]:
    """Requests that follow the service's schema, and some that break it."""
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode

    # LangServe's schemas describe any input of any agent: generating from them takes minutes.
    schema = schemathesis.openapi.from_url(f"{target.url}/openapi.json").exclude(path_regex="^/gems/")
    operations = [result.ok() for result in schema.get_all_operations()]
    raw_requests: list[bytes] = []
    each = max(1, count // (2 * len(operations)))
    for operation in operations if count else ():
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @hypothesis.seed(seed)
            @hypothesis.settings(
                max_examples=each,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            def collect(case: Any) -> None:
                with suppress(ValueError):  # what the requests library refuses to send, our own grammar sends
                    raw_requests.append(_raw(case, target))

            with warnings.catch_warnings(), suppress(hypothesis.errors.Unsatisfiable):
                warnings.simplefilter("ignore")
                collect()
        print(f"{len(raw_requests)} requests from the schema: {operation.label}", file=sys.stderr)
    return raw_requests


def _raw(case: Any, target: Target) -> bytes:
    """A request of schemathesis as bytes."""
    arguments = case.as_transport_kwargs(base_url=target.url)
    allowed = {name: arguments.get(name) for name in ("method", "url", "params", "headers", "data", "json", "cookies")}
    prepared = requests.Request(**allowed).prepare()
    body = prepared.body or b""
    body = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else bytes(body)
    headers = {**prepared.headers, "Host": "localhost", "Authorization": f"Bearer {target.keys['poor']}"}
    headers["Content-Length"] = str(len(body))
    head = f"{prepared.method} {prepared.path_url} HTTP/1.1\r\n"
    lines = (f"{name}: {value}\r\n" for name, value in headers.items())
    return (head + "".join(lines) + "Connection: close\r\n\r\n").encode("utf-8", "surrogatepass") + body


# --- requests by grammar --------------------------------------------------------------------------------------------

_SETTINGS: Final[dict[str, Any]] = {"seed": 3, "max_rounds": 1, "candidates": 1, "budget": {"images": 1}, "plan": True}
_VALID_BODIES: Final[dict[str, Any]] = {
    "/v1/runs": {"prompt": "two red cars", "settings": _SETTINGS, "thread": "t"},
    "/v1/images/generations": {"prompt": "a red dog", "n": 1, "size": "64x64", "response_format": "url", "seed": 1},
    "/v1/runs/RUN/review": {"action": "reject", "comment": "no", "requirements": [{"question": "Is it red?"}]},
    "/v1/runs/RUN/cancel": {},
    "/gems/invoke": {"input": {"prompt": "a red dog", "context": _SETTINGS}, "config": {}, "kwargs": {}},
    "/gems/batch": {"inputs": [{"prompt": "a red dog"}, {"prompt": "a cat"}], "config": [{}, {}]},
    "/gems/stream": {"input": {"prompt": "a red dog", "thread_id": "s", "context": _SETTINGS}},
    "/gems/stream_log": {"input": {"prompt": "a red dog"}, "include_names": ["gems"], "exclude_tags": []},
    "/gems/stream_events": {"input": {"thread_id": "s", "resume": {"action": "accept"}}},
    "/gems/c/N4XyA/invoke": {"input": {"prompt": "a red dog"}},
}
_PATHS: Final = (
    *("/", "/page.js", "/page.css", "/favicon.svg", "/healthz", "/readyz", "/metrics", "/openapi.json", "/docs"),
    *("/v1/models", "/v1/models/gems", "/v1/models/a%2Fb/%00", "/v1/runs", "/v1/runs/RUN", "/v1/runs/RUN/events"),
    *("LINK", "LINK?size=64", "/artifacts/x.png", "/artifacts/%ff.png", "/reports/x.html", "/v1/runs/%00%ed%a0%80"),
    *("/gems/playground/", "/gems/playground/assets/x.js", "/gems/playground/../../../etc/passwd", "//", "/%"),
    *("/gems/playground/%2e%2e%2f%2e%2e%2f%2e%2e%2fserver.py", "/gems/playground/%00", "/gems/input_schema"),
    *("/gems/output_schema", "/gems/config_schema", "/gems/c/N4XyA/input_schema", "/gems/c/!!/config_schema"),
    *(
        "/v1/runs?limit=7&before=9",
        "/v1/runs?limit=99999999999999999999999",
        "/v1/runs?before=%ff&limit=",
        "/?" + "a" * 9000,
    ),
    *("*", "http://other/healthz", "/nowhere/" + "x" * 300, "/gems/feedback", "/v1/\xe9"),
    *_VALID_BODIES,
)
_METHODS: Final = (
    "GET",
    "HEAD",
    "POST",
    "POST",
    "POST",
    "OPTIONS",
    "PUT",
    "PATCH",
    "DELETE",
    "TRACE",
    "CONNECT",
    "G\x00T",
    "",
)
_ODD_JSON: Final[tuple[bytes, ...]] = (
    *(b"null", b"true", b"-1", b"1e400", b"NaN", b"-Infinity", b"9" * 5000, b"1e-999", b"0.1", b"{}", b"[]", b'""'),
    *(b"[" * 20_000, b"[" * 500 + b"]" * 500, b'{"a":' * 40 + b"1" + b"}" * 40, b'"\\ud800"', b'"\\u0000"', b'"\x00"'),
    *(
        b'"\xff\xfe"',
        b'"\xed\xa0\x80"',
        b'"' + b"x" * 70_000 + b'"',
        b'{"a": 1, "a": 2}',
        b"9007199254740993",
        b"[null]",
    ),
    *('"\u202e\U0001f600"'.encode(), b'"2"', b"1.0", b"2147483648", b'{"__proto__": {}}', b"\xef\xbb\xbf{}", b"//"),
)
_HEADERS: Final[tuple[tuple[bytes, Sequence[bytes]], ...]] = (
    (b"host", (b"localhost", b"[::1]:80", b"evil", b"", b"a b", b"[", b"\xff", b"localhost:99999999")),
    (b"origin", (b"https://allowed.example", b"https://evil.example", b"null", b"http://[", b"http://localhost:x")),
    (b"sec-fetch-site", (b"same-origin", b"cross-site", b"none", b"")),
    (
        b"content-type",
        (b"application/json", b"text/plain", b"", b"application/json; charset=utf-16", b"multipart/form-data"),
    ),
    (b"content-encoding", (b"gzip", b"identity", b"\x80")),
    (b"accept", (b"text/event-stream", b"*/*", b"\xff")),
    (b"authorization", (b"Bearer", b"Bearer \xff", b"Basic eDp5", b"Bearer " + b"k" * 5000, b"")),
    (b"x-api-key", (b"", b"gems-x", b"\xe9")),
    (b"x-request-id", (b"mine-1", b"a b", b"x" * 300, b"\xff")),
    (b"idempotency-key", (b"same", b"", b"x" * 300, b"\xff", b"a/0")),
    (b"range", (b"bytes=0-10", b"bytes=9-1", b"bytes=-", b"bytes=0-0,2-2,4-4", b"bytes=99999999999999999999-")),
    (b"expect", (b"100-continue", b"x")),
    (b"upgrade", (b"websocket", b"h2c")),
    (b"connection", (b"keep-alive", b"close", b"upgrade", b"x" * 100)),
    (b"access-control-request-method", (b"POST", b"NONE", b"")),
    (b"access-control-request-headers", (b"authorization", b"\xff,")),
    (b"if-none-match", (b'"x"', b"*")),
    (b"if-modified-since", (b"yesterday", b"Sat, 01 Jan 2000 00:00:00 GMT")),
    (b"cookie", (b"a=b", b"\xff")),
    (b"x-large", (b"x" * 40_000,)),
    (b"bad name", (b"x",)),
    (b"x-control", (b"a\x01b", b"a\nb: c")),
)


@dataclass
class Exchange:
    """What is sent over one connection: pieces of bytes, and when the client leaves."""

    pieces: list[bytes]
    count: int
    """Requests in it."""
    leaves: bool = False
    """The client leaves before it has read everything."""


class Grammar:
    """Makes exchanges. It learns ids and addresses from responses.

    Args:
        rng: The source of all choices.
        keys: The API keys by name.
        image_share: The share of requests with a key that may make images.
    """

    def __init__(self, rng: random.Random, keys: dict[str, str], image_share: float) -> None:
        self._rng, self._keys, self._image_share = rng, keys, image_share
        self._runs: deque[bytes] = deque([b"run-" + b"0" * 32], maxlen=100)
        self._links: deque[bytes] = deque([b"/artifacts/x.png"], maxlen=100)

    def learn(self, answer: bytes) -> None:
        """Note down ids and addresses."""
        self._runs.extend(_RUN.findall(answer[:20_000])[:2])
        self._links.extend(_LINK.findall(answer[:20_000])[:2])

    def exchange(self) -> Exchange:
        """The next exchange: one request or several at once, whole or cut off."""
        rng = self._rng
        count = rng.choice((1, 1, 1, 1, 1, 2, 3, 8, 30)) if rng.random() < 0.1 else 1
        content = b"".join(self._request(last=k == count - 1) for k in range(count))
        leaves = rng.random() < 0.05
        if leaves:
            content = content[: rng.randrange(1, len(content) + 1)]
        if rng.random() < 0.02:
            position = rng.randrange(len(content))
            content = content[:position] + rng.randbytes(3) + content[position + 1 :]
        cuts = sorted(rng.sample(range(len(content)), min(3, len(content)))) if rng.random() < 0.1 else []
        pieces = [content[a:b] for a, b in zip([0, *cuts], [*cuts, len(content)], strict=True)]
        return Exchange(pieces, count, leaves)

    def _request(self, *, last: bool) -> bytes:
        rng = self._rng
        path = rng.choice(_PATHS) if rng.random() < 0.6 else rng.choice(list(_VALID_BODIES))
        method = rng.choice(_METHODS) if path not in _VALID_BODIES or rng.random() < 0.1 else "POST"
        target = (
            path.encode("latin-1").replace(b"RUN", rng.choice(self._runs)).replace(b"LINK", rng.choice(self._links))
        )
        body = self._body(path) if method in ("POST", "PUT", "PATCH", "DELETE") else b""
        version = b"HTTP/1.1" if rng.random() < 0.98 else rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b""))
        framing, framed = self._framed(body)
        headers = [*self._headers(), *framing]
        if last and rng.random() < 0.97:
            headers.append((b"connection", b"close"))
        rng.shuffle(headers)
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        return b"%s %s %s\r\n%s\r\n%s" % (method.encode(), target, version, lines, framed)

    def _headers(self) -> list[tuple[bytes, bytes]]:
        rng = self._rng
        weights = (0.98 - self._image_share, self._image_share, 0.02)
        key = self._keys[rng.choices(("poor", "rich", "prometheus"), weights)[0]].encode()
        headers = {b"host": b"localhost", b"authorization": b"Bearer " + key, b"content-type": b"application/json"}
        odd = [(name, rng.choice(values)) for name, values in rng.sample(_HEADERS, rng.choice((0, 0, 1, 1, 2, 5)))]
        if rng.random() < 0.3:
            headers |= dict(odd)
        elif rng.random() < 0.1:
            return [*headers.items(), *odd, *[(b"x", b"y")] * rng.choice((1, 99, 300))]
        return list(headers.items())

    def _body(self, path: str) -> bytes:
        rng, valid = self._rng, _VALID_BODIES.get(path, {})
        kind = rng.random()
        if kind < 0.3:
            return json.dumps(valid).encode()
        if kind < 0.85:
            return self._mutated(valid)
        if kind < 0.95:
            return rng.choice(_ODD_JSON)
        return rng.randbytes(rng.choice((0, 1, 50, 5000)))

    def _mutated(self, content: Any) -> bytes:
        """JSON in which some values are odd, keys are doubled or renamed, and bytes are changed."""
        rng = self._rng
        if rng.random() < 0.15:
            return rng.choice(_ODD_JSON)
        if isinstance(content, dict):
            pairs = [b"%s: %s" % (json.dumps(name).encode(), self._mutated(value)) for name, value in content.items()]
            if rng.random() < 0.1:
                pairs.append(rng.choice((b'"x": 1', b'"\\ud800": 1', b'"": {}', b'"seed": -1', b'"mllm": "openai:x"')))
            return b"{" + b", ".join(pairs) + b"}"
        if isinstance(content, list):
            return b"[" + b", ".join(self._mutated(part) for part in content * rng.choice((1, 1, 2))) + b"]"
        return json.dumps(content).encode()

    def _framed(self, body: bytes) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """The headers that say where the body ends, and the body with its framing. Some of them lie."""
        rng = self._rng
        kind = rng.random()
        if kind < 0.75:
            return ([(b"content-length", b"%d" % len(body))] if body else []), body
        if kind < 0.95:
            size = rng.choice((1, 7, 4096, 100_000)) if len(body) < 5000 else 4096
            parts = [body[k : k + size] for k in range(0, len(body), size)]
            extension = rng.choice((b"", b"", b";a=b", b";" + b"x" * 40_000))
            trailer = rng.choice((b"", b"", b"x: y\r\n", b"x: y\r\n" * 300))
            chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
            return [(b"transfer-encoding", b"chunked")], chunks + b"0\r\n" + trailer + b"\r\n"
        lie = rng.choice((b"0", b"-1", b"x", b"%d" % (len(body) + 5), b"9" * 30, b"70000", b"1, 1", b"\xb2"))
        headers = [(b"content-length", lie)]
        return headers + ([(b"transfer-encoding", b"chunked, x")] if rng.random() < 0.2 else []), body


# --- sending --------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came back."""

    sent: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[dict[str, str]] = field(default_factory=list)
    memory: list[tuple[int, float]] = field(default_factory=list)
    """Requests sent, and MiB."""
    unanswered: int = 0
    seconds: float = 0.0


async def fuzz(target: Target, schema_requests: list[bytes], args: argparse.Namespace) -> Tally:
    """Send requests over many connections."""
    await asyncio.to_thread(warm_up, target)
    rng, tally, started = random.Random(args.seed), Tally(), time.monotonic()
    grammar = Grammar(rng, target.keys, args.image_share)
    waiting = iter([Exchange([raw], 1) for raw in schema_requests])

    async def client() -> None:
        while tally.sent < args.requests:
            exchange = grammar.exchange() if rng.random() > args.schema_share else next(waiting, grammar.exchange())
            tally.sent += exchange.count
            answer = await converse(target, exchange)
            grammar.learn(answer)
            count(exchange, answer, tally)

    async def watch() -> None:
        last = -1
        while True:
            tally.memory.append((tally.sent, target.memory_mib))
            if (tenth := 10 * tally.sent // args.requests) != last:
                last = tenth
                speed = tally.sent / max(0.1, time.monotonic() - started)
                progress = f"{tally.sent} requests, {speed:.0f}/s, {target.memory_mib} MiB, {len(tally.faults)} faults"
                print(progress, file=sys.stderr, flush=True)
            await asyncio.sleep(1)

    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(client() for _ in range(args.clients)))
    watcher.cancel()
    tally.memory.append((tally.sent, target.memory_mib))
    tally.seconds = time.monotonic() - started
    return tally


def warm_up(target: Target) -> None:
    """Load everything that the service loads with its first runs."""
    for _ in range(3):
        for path in ("/v1/images/generations", "/gems/invoke"):
            key = {"authorization": f"Bearer {target.keys['rich']}"}
            httpx.post(f"{target.url}{path}", json=_VALID_BODIES[path], headers=key, timeout=120).raise_for_status()


async def converse(target: Target, exchange: Exchange) -> bytes:
    """Send an exchange; return what comes back until the service closes the connection or the client leaves."""
    answer = bytearray()
    port = int(target.url.rpartition(":")[2])
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(_PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                for piece in exchange.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                while part := await reader.read(65536):
                    answer += part
                    if exchange.leaves:
                        break
            finally:
                writer.transport.abort()
    return bytes(answer)


def count(exchange: Exchange, answer: bytes, tally: Tally) -> None:
    """Count the statuses of an exchange."""
    statuses = [status.decode() for status in _STATUS.findall(answer)]
    tally.statuses.update(statuses)
    tally.unanswered += not statuses and not exchange.leaves
    if any(status.startswith("5") for status in statuses):
        request = b"".join(exchange.pieces)
        tally.faults.append({"sent": repr(request[:2000]), "received": repr(answer[:1000])})


def summary(target: Target, tally: Tally, args: argparse.Namespace) -> dict[str, Any]:
    """The report."""
    lines = target.log.read_text(errors="replace").splitlines()
    tracebacks = [line for line in lines if '"exception"' in line or line.startswith("Traceback")]
    errors = [line for line in lines if '"level": "error"' in line and line not in tracebacks]
    with suppress(httpx.HTTPError):
        alive = httpx.get(f"{target.url}/healthz", timeout=10).status_code == 200
        return {
            "requests": tally.sent,
            "per_second": round(tally.sent / tally.seconds, 1),
            "statuses": dict(sorted(tally.statuses.items())),
            "faults": len(tally.faults),
            "first_faults": tally.faults[:5],
            "tracebacks": len(tracebacks),
            "first_tracebacks": [line[:3000] for line in tracebacks[:3]],
            "other_errors_in_log": errors[:5],
            "cut_off_without_a_response": tally.unanswered,
            "memory_mib": memory_summary(tally.memory, args.requests),
            "alive": alive,
        }
    return {"faults": len(tally.faults), "tracebacks": len(tracebacks), "alive": False}


def memory_summary(samples: Sequence[tuple[int, float]], count: int) -> dict[str, Any]:
    """The memory when ready and after each quarter, and whether it is flat after warm-up.

    Args:
        samples: Requests sent, and MiB; in the order of time, and not empty.
        count: The number of requests to send.
    """

    def median(begin: float, end: float) -> float:
        """Of the samples between two shares of the requests; if there are none, the last sample before them."""
        between = [mib for requests_sent, mib in samples if begin * count <= requests_sent <= end * count]
        before = [mib for requests_sent, mib in samples if requests_sent <= end * count]
        return statistics.median(between or before[-1:] or [samples[0][1]])

    growth = median(7 / 8, math.inf) / median(1 / 2, 5 / 8) - 1
    return {
        "ready": samples[0][1],
        **{f"after_{percent}%": median(percent / 100 - 0.01, percent / 100) for percent in (25, 50, 75)},
        "end": samples[-1][1],
        "most": max(mib for _, mib in samples),
        "growth_of_second_half_percent": round(100 * growth, 2),
        "verdict": "flat" if growth <= _FLAT else "grows",
    }


if __name__ == "__main__":
    main()
