"""An image server script that speaks every supported protocol and misbehaves on demand.

The first part of a path selects the behaviour: ``/fine/v1/images/generations`` works, ``/busy/v1/...`` answers 429
once, and so on (see ``_post``). A suffix after a tilde separates tests: ``/busy~mine`` is busy once, regardless of
other requests to ``/busy``. Images are flat colours that depend on prompt and seed. ``GET /log`` returns all requests.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

KEY = "sk-canary-5f3a"
REQUEST_LOG: list[dict[str, Any]] = []
QUEUED: list[str] = []
TRIES: Counter[str] = Counter()
IN_FLIGHT: Counter[str] = Counter()
MOST_IN_FLIGHT: Counter[str] = Counter()
LOCK = threading.Lock()


def png(prompt: str, seed: str, size: tuple[int, int] = (48, 32), kind: str = "PNG") -> bytes:
    color = tuple(hashlib.sha256(f"{prompt} {seed}".encode()).digest()[:3])
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that claims 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_HEAD(self) -> None:
        self._answer(405, b"", "text/plain")

    def do_GET(self) -> None:
        path = urlsplit(self.path)
        if path.path == "/log":
            return self._json(200, {"seen": REQUEST_LOG, "most_in_flight": MOST_IN_FLIGHT})
        name, _, rest = path.path.lstrip("/").partition("/")
        fault = name.partition("~")[0]
        query = dict(parse_qsl(path.query))
        if rest == "v1/models":
            if self.headers.get("Authorization") != f"Bearer {KEY}" and fault == "locked":
                return self._json(
                    401, {"error": {"message": f"Incorrect API key: {self.headers.get('Authorization')}"}}
                )
            return self._json(200, {"data": [{"id": "painter"}]})
        if rest == "queue":
            waiting = [] if fault == "dequeued" else [[0, run, {}, {}, []] for run in QUEUED]
            return self._json(200, {"queue_running": [], "queue_pending": waiting})
        if rest == "object_info":
            return self._json(200, {"KSampler": {}, "CLIPTextEncode": {}, "SaveImage": {}})
        if rest.startswith("history/"):
            return self._history(fault, rest.removeprefix("history/"))
        if fault in ("url-busy", "view-busy", "url-torn", "view-torn", "url-page", "view-page") and rest.startswith(
            ("files/", "view")
        ):
            with LOCK:
                TRIES[f"{name} files"] += 1
                is_first = TRIES[f"{name} files"] == 1
            if is_first and fault.endswith("busy"):
                return self._json(503, {"detail": "no worker"})
            if is_first and fault.endswith("page"):
                return self._answer(200, b"<html>Sign in</html>", "text/html")
            if is_first:
                return self._answer(200, png("a cat", "1")[:60], "image/png")
        if fault in ("url-always-torn", "view-always-torn") and rest.startswith(("files/", "view")):
            return self._answer(200, png("a cat", "1")[:60], "image/png")
        if rest == "view" and query.get("type", "output") not in ("output", "temp"):
            return self._answer(400, b"", "text/plain")
        if rest == "view" and query["filename"] == "gone.png":
            return self._answer(404, b"", "text/plain")
        if rest == "view":
            prompt, _, seed = bytes.fromhex(query["filename"]).decode().rpartition("|")
            return self._answer(200, png(prompt, seed), "image/png")
        if fault == "url-signed" and "Authorization" in self.headers:
            error = "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>"
            return self._answer(400, error.encode(), "application/xml")
        if rest.startswith("files/"):
            prompt, _, seed = bytes.fromhex(rest.removeprefix("files/")).decode().rpartition("|")
            return self._answer(200, png(prompt, seed), "image/png")
        return self._json(404, {"detail": "no such page"})

    def do_POST(self) -> None:
        name = self.path.lstrip("/").partition("/")[0]
        with LOCK:
            IN_FLIGHT[name] += 1
            MOST_IN_FLIGHT[name] = max(MOST_IN_FLIGHT[name], IN_FLIGHT[name])
        try:
            self._post()
        finally:
            with LOCK:
                IN_FLIGHT[name] -= 1

    def _post(self) -> None:
        path = urlsplit(self.path)
        name, _, rest = path.path.lstrip("/").partition("/")
        fault = name.partition("~")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request: dict[str, Any] = dict(parse_qsl(path.query))
        if self.headers.get("Content-Type", "").startswith("application/json"):
            request |= json.loads(body)
        elif body:
            request |= {"form": body.decode("latin-1")}
        with LOCK:
            REQUEST_LOG.append({"name": name, "path": rest, "request": request})
            TRIES[name] += 1
            n = TRIES[name]
        if rest == "prompt":
            return self._queue(fault, request)
        prompt, seed = str(request.get("prompt", "form")), str(request.get("seed", 0))
        image = png(prompt, seed)
        match fault:
            case "slow" | "slow-two":
                time.sleep(0.5)
            case "busy" if n == 1:
                return self._json(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.3"})
            case "busy-for-long":
                return self._json(429, {"error": {"message": "slow down"}}, {"Retry-After": "50"})
            case "shaky" if n <= 2:
                return self._json(500, {"detail": "worker died"})
            case "sinking" if n > 4:
                time.sleep(60)
            case "worn" | "sinking":
                return self._json(500, {"detail": "worker died"})
            case "broken":
                return self._json(503, {"detail": "no GPU left"})
            case "torn":
                image = image[: len(image) // 2]
            case "torn-once" if n == 1:
                image = image[: len(image) // 2]
            case "page":
                return self._answer(200, b"<html>Welcome</html>", "text/html")
            case "other-size":
                image = png(prompt, seed, (20, 10))
            case "moody":
                image = png(prompt, f"{seed} {n}")
            case "jpeg":
                image = png(prompt, seed, kind="JPEG")
            case "webp" | "avif":
                image = png(prompt, seed, kind=fault.upper())
            case "spent":
                details = {"code": "insufficient_quota", "message": "You exceeded your current quota"}
                return self._json(429, {"error": details})
            case "spent-402":
                return self._json(402, {"error": "Payment Required", "message": "top up"})
            case "spent-for-now" if n == 1:
                return self._json(429, {"error": {"code": "insufficient_quota"}}, {"Retry-After": "0.1"})
            case "as-text":
                return self._answer(200, base64.b64encode(image), "text/plain")
            case "as-json" if rest == "draw":
                return self._json(200, {"images": [base64.b64encode(image).decode()], "info": "{}"})
            case "error-body":
                return self._json(200, {"error": {"message": "out of memory"}})
            case "hung":
                time.sleep(30)
            case "trickle":
                return self._trickle()
            case "wrong":
                return self._json(400, {"error": {"message": "size must be 1024x1024"}})
            case "seed-is-wrong":
                return self._json(400, {"error": {"message": "no seed of a sunflower is drawn here"}})
            case "invalid":
                return self._json(422, {"detail": [{"loc": ["body", "n"], "msg": "must be 1"}]})
            case "locked":
                key = self.headers.get("Authorization")
                return self._json(401, {"error": {"message": f"Incorrect API key provided: {key}"}})
            case "prude":
                return self._json(400, {"error": {"code": "moderation_blocked", "message": "not safe"}})
            case "prude-once" if n == 1:
                return self._json(400, {"error": {"code": "content_policy_violation", "message": "not safe"}})
            case "huge":
                return self._flood()
            case "bomb":
                image = bomb()
            case "itself" if rest != "draw":
                return self._answer(200, image, "application/octet-stream")
            case "marked" | "utf-16":
                answer = json.dumps({"created": 1, "data": [{"b64_json": base64.b64encode(image).decode()}]})
                encoding = "utf-8-sig" if fault == "marked" else "utf-16"
                return self._answer(200, answer.encode(encoding), "application/json")
            case "endless-number":
                encoded = base64.b64encode(image).decode()
                answer = f'{{"created": {"9" * 5000}, "data": [{{"b64_json": "{encoded}"}}]}}'
                return self._answer(200, answer.encode(), "application/json")
            case "streams-unasked":
                return self._stream(prompt, seed)
            case "stream-refusal":
                error = {"type": "error", "error": {"code": "moderation_blocked", "message": "not safe"}}
                return self._answer(200, f"event: error\ndata: {json.dumps(error)}\n\n".encode(), "text/event-stream")
            case "strict" if refused := next((f for f in ("seed", "response_format") if f in request), None):
                return self._json(
                    422, {"detail": [{"loc": ["body", refused], "msg": "Extra inputs are not permitted"}]}
                )
            case "no-negatives" if "negative_prompt" in request:
                return self._json(
                    422, {"detail": [{"loc": ["body", "negative_prompt"], "msg": "Extra inputs are not permitted"}]}
                )
            case "in-a-list":
                return self._json(400, [{"error": {"code": 400, "message": "key not valid"}}])
            case "seedless" if "seed" in request:
                return self._json(400, {"error": {"message": "Unknown parameter: 'seed'."}})
            case "picky" if prompt == "b":
                return self._json(400, {"error": {"message": "not b"}})
            case "moved":
                return self._json(307, {}, {"Location": "http://example.com/"})
        if rest == "draw":
            return self._answer(200, image, "image/png")
        if fault == "stream":
            return self._stream(prompt, seed)
        data: dict[str, Any] = {"b64_json": base64.b64encode(image).decode()}
        if fault in ("url", "url-busy", "url-torn", "url-page", "url-always-torn"):
            data = {"url": self._file(prompt, seed)}
        if fault in ODD_ANSWERS:
            return self._json(200, ODD_ANSWERS[fault](data["b64_json"], self._file(prompt, seed)))
        if fault == "url-signed":
            data = {"url": f"{self._file(prompt, seed)}?X-Amz-Signature=5"}
        if fault == "elsewhere":
            data = {"url": "http://169.254.169.254/latest/meta-data"}
        return self._json(200, {"created": 1, "data": [data]})

    def _file(self, prompt: str, seed: str) -> str:
        name = self.path.lstrip("/").partition("/")[0]
        place = name if name.startswith("url") else "url"
        return f"http://{self.headers['Host']}/{place}/files/{f'{prompt}|{seed}'.encode().hex()}"

    # --- ComfyUI ---

    def _queue(self, fault: str, request: dict[str, Any]) -> None:
        if fault in ("node-errors", "node-errors-200"):
            fault_of_node = {
                "type": "value_not_in_list",
                "message": "Value not in list",
                "details": "ckpt: 'x' not in []",
            }
            node = {"errors": [fault_of_node, None], "class_type": "CheckpointLoaderSimple", "dependent_outputs": ["9"]}
            error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed\nvalidation"}
            answer = {"error": error, "node_errors": {"4": node, "5": None, "6": {"errors": None}}}
            return self._json(200 if fault.endswith("200") else 400, answer)
        if fault == "null-answer":
            return self._json(200, None)
        if fault == "half-refused":
            node = {
                "errors": [{"message": "Required input is missing", "details": "images"}],
                "class_type": "SaveImage",
            }
            return self._json(200, {"prompt_id": "half", "number": 1, "node_errors": {"9": node}})
        if fault == "refuses":
            return self._json(400, {"error": {"type": "invalid_prompt", "message": "Cannot execute: no outputs"}})
        nodes = request["prompt"]
        run = f"{nodes['6']['inputs']['text']}|{nodes['3']['inputs']['seed']}".encode().hex()
        QUEUED.append(run)
        return self._json(200, {"prompt_id": run})

    def _history(self, fault: str, run: str) -> None:
        with LOCK:
            TRIES[run] += 1
            n = TRIES[run]
        if fault == "slow" and n > 1:
            time.sleep(0.5)
        if fault == "history-busy" and n <= 2:
            return self._json(503, {"detail": "no worker"}) if n == 1 else self._answer(200, b"<html>", "text/html")
        if fault == "history-missing" and n <= 2:
            return self._json(404, {"detail": "not found"})
        if fault in ("never", "dequeued") or n == 1:
            return self._json(200, {})
        if fault == "crashes":
            details = {"node_id": "3", "node_type": "KSampler", "exception_message": "CUDA out of memory"}
            status = {"status_str": "error", "messages": [["execution_error", details]]}
            return self._json(200, {run: {"status": status, "outputs": {}}})
        if fault in ODD_HISTORIES:
            return self._json(200, ODD_HISTORIES[fault](run))
        if fault == "mute":
            return self._json(200, {run: {"status": {"status_str": "success", "completed": True}, "outputs": {}}})
        images = [
            {"filename": "70|30", "subfolder": "", "type": "temp"},
            {"filename": run, "subfolder": "", "type": "output"},
        ]
        return self._json(200, {run: {"status": {"status_str": "success"}, "outputs": {"9": {"images": images}}}})

    # --- answers ---

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self._write(body)

    def _json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps(answer).encode(), "application/json", headers)

    def _write(self, data: bytes) -> None:
        try:
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _flood(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        for _ in range(200):
            self._write(bytes(2**20))
            if self.close_connection:
                return
        self.close_connection = True

    def _trickle(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(1000):
            self._write(b"x")
            if self.close_connection:
                return
            time.sleep(0.1)

    def _stream(self, prompt: str, seed: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for i, kind in enumerate(["partial_image", "partial_image", "completed"]):
            image = png(prompt if kind == "completed" else f"{prompt} {i}", seed)
            event = {
                "type": f"image_generation.{kind}",
                "b64_json": base64.b64encode(image).decode(),
                "partial_image_index": i,
            }
            self._write(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
        self.close_connection = True


# --- answers in other shapes -----------------------------------------------------------------------------------------


def _in_lines(encoded: str) -> str:
    return "\n".join(encoded[at : at + 76] for at in range(0, len(encoded), 76)) + "\n"


ODD_ANSWERS: dict[str, Any] = {
    "null-item": lambda image, url: {"data": [None, {"b64_json": image}]},
    "bad-first": lambda image, url: {"data": [{"b64_json": "%%%"}, {}, 7, {"b64_json": image, "url": None}]},
    "single-item": lambda image, url: {"data": {"b64_json": image}},
    "bare-list": lambda image, url: [{"b64_json": image}],
    "bare-text": lambda image, url: {"data": [image]},
    "null-base64": lambda image, url: {"created": None, "data": [{"b64_json": None, "url": url}]},
    "torn-base64": lambda image, url: {"data": [{"b64_json": image[:-3] + "%", "url": url}]},
    "data-url": lambda image, url: {"data": [{"b64_json": f"data:image/png;base64,{image}"}]},
    "data-url-as-url": lambda image, url: {"data": [{"b64_json": "", "url": f"data:image/png;base64,{image}"}]},
    "lines": lambda image, url: {"data": [{"b64_json": _in_lines(image)}]},
    "url-safe": lambda image, url: {"data": [{"b64_json": image.translate(str.maketrans("+/", "-_")).rstrip("=")}]},
    "no-data": lambda image, url: {"created": 1, "data": None},
    "empty-data": lambda image, url: {"data": []},
    "null": lambda image, url: None,
    "error-text": lambda image, url: {"error": "the engine\ndied", "data": None},
    "error-busy": lambda image, url: {"error": {"code": 503, "message": "no worker"}},
    "error-refusal": lambda image, url: {"error": {"code": "moderation_blocked", "message": "not safe"}, "data": []},
    "detail": lambda image, url: {"detail": [{"loc": None, "msg": "must be 1"}, None]},
    "images-key": lambda image, url: {"images": [image], "info": "{}"},
    "image-object": lambda image, url: {"data": [{"image_url": {"url": f"data:image/png;base64,{image}"}}]},
    "json-text": lambda image, url: json.dumps({"data": json.dumps([{"B64_JSON": image}])}),
    "escaped": lambda image, url: {"data": [{"url": f"data:image/png;base64,{image.replace('+', '%2B')}"}]},
    "relative": lambda image, url: {"data": [{"url": f"../../../url/files/{url.rpartition('/')[2]}"}]},
    "artifacts": lambda image, url: {"artifacts": [{"base64": "x", "finishReason": "ERROR"}, {"base64": image}]},
    "blurred": lambda image, url: {"artifacts": [{"base64": image, "finishReason": "CONTENT_FILTERED"}]},
    "output-text": lambda image, url: {"output": image, "status": "succeeded"},
    "output-list": lambda image, url: {"output": [url], "status": "succeeded", "urls": {"get": "/x"}},
    "predictions": lambda image, url: {"predictions": [{"bytesBase64Encoded": image, "mimeType": "image/png"}]},
    "more": lambda image, url: {"data": [{"b64_json": image}, {"b64_json": image[:200]}, None]},
    "no-image-first": lambda image, url: {"data": [{"b64_json": "TWFu" * 40}, {"b64_json": image}]},
    "torn-first": lambda image, url: {"data": [{"b64_json": image[:80]}, {"b64_json": image}]},
    "sentence": lambda image, url: {"data": [{"b64_json": None}], "output": "we could not draw this picture, sorry"},
    "declines": lambda image, url: {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {"text": "The user wants a castle", "thought": True},
                        {"text": "I'm unable to create that image because it violates policies."},
                    ]
                },
                "finishReason": "STOP",
            }
        ]
    },
    "declines-chat": lambda image, url: {"choices": [{"message": {"content": "Sorry, I can’t draw that person."}}]},
    "asks-back": lambda image, url: {"candidates": [{"content": {"parts": [{"text": "Which style do you want?"}]}}]},
    "immoderate": lambda image, url: {"data": [{"url": "", "respect_moderation": False}]},
    "item-error": lambda image, url: {"data": [{"b64_json": None, "error": {"message": "the engine died"}}]},
    "error-list": lambda image, url: {"errors": ["the engine died", None, {"message": "twice"}]},
    "error-json": lambda image, url: {"error": json.dumps({"message": "the engine died"})},
    "error-spent": lambda image, url: {"error": {"code": 429, "message": "insufficient credits"}},
    "only-status": lambda image, url: {"status": "FAILED", "images": []},
    "bad-address": lambda image, url: {"data": [{"url": "http://[::1/x"}]},
}
"""What ``/v1/images/generations`` answers, given the image in base64 and its address."""

_IMAGE = {"filename": None, "subfolder": None, "type": None}
ODD_HISTORIES: dict[str, Any] = {
    "odd-history": lambda run: {
        run: {
            "status": None,
            "outputs": {
                "1": None,
                "2": {"images": None},
                "3": {"images": [None, {}, _IMAGE, _IMAGE | {"filename": run}]},
            },
        }
    },
    "null-outputs": lambda run: {run: {"status": {"completed": True, "messages": None}, "outputs": None}},
    "null-messages": lambda run: {run: {"status": {"status_str": "error", "messages": [None, [], ["x"], 3]}}},
    "interrupted-early": lambda run: {
        run: {
            "status": {
                "status_str": None,
                "completed": False,
                "messages": [["execution_interrupted", {"node_id": "3"}]],
            },
            "outputs": {},
        }
    },
    "other-messages": lambda run: {
        run: {
            "status": {
                "messages": [{"type": "execution_error", "data": {"node_id": 3, "exception_message": "no VRAM"}}]
            }
        }
    },
    "status-text": lambda run: {run: {"status": "Failed", "error": {"message": "no VRAM"}, "meta": {"9": {"a": "b"}}}},
    "null-status": lambda run: {run: {"status": None, "outputs": {}, "prompt": [1]}},
    "success-message": lambda run: {run: {"status": {"completed": None, "messages": [["execution_success", {}]]}}},
    "interrupted": lambda run: {run: {"status": {"status_str": "error", "messages": [["execution_interrupted", {}]]}}},
    "loud-error": lambda run: {
        run: {"status": {"status_str": "ERROR", "messages": [["execution_error", {"exception_message": "no memory"}]]}}
    },
    "null-details": lambda run: {
        run: {"status": {"status_str": "error", "messages": [["execution_error", {"exception_message": None}]]}}
    },
}
_DONE = {"status_str": "success", "completed": True}
_OOM = ["execution_error", {"node_id": "12", "node_type": "Upscale", "exception_message": "no memory"}]


def _history_of(run: str, *files: dict[str, Any], status: dict[str, Any] | None = None) -> dict[str, Any]:
    outputs = {str(number): {"images": [file]} for number, file in enumerate(files)}
    return {run: {"status": status or _DONE, "outputs": outputs}}


ODD_HISTORIES |= {
    "half-refused": _history_of,
    "video-first": lambda run: _history_of(run, {"filename": "v.mp4", "type": "output"}, {"filename": run}),
    "gone-first": lambda run: _history_of(run, {"filename": "gone.png", "type": "output"}, {"filename": run}),
    "no-type": lambda run: _history_of(run, {"filename": run, "subfolder": None, "type": None}),
    "shows-its-input": lambda run: _history_of(
        run, {"filename": "x.png", "type": "input"}, {"filename": run, "type": "temp"}
    ),
    "only-its-input": lambda run: _history_of(run, {"filename": run, "type": "input"}),
    "fails-later": lambda run: _history_of(
        run, {"filename": run, "type": "output"}, status={"status_str": "error", "completed": False, "messages": [_OOM]}
    ),
    "fails-before": lambda run: _history_of(
        run, {"filename": run, "type": "temp"}, status={"status_str": "error", "completed": False, "messages": [_OOM]}
    ),
    "without-its-id": lambda run: _history_of(run, {"filename": run, "type": "output"})[run],
    "gifs": lambda run: {run: {"status": _DONE, "outputs": {"9": {"gifs": [{"filename": run, "type": "output"}]}}}},
}
"""What ``/history/RUN`` answers."""


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)
