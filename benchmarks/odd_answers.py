"""A server whose chat and image answers are almost right: each has something that can be read among things that cannot.

It speaks OpenAI's chat and images protocols, the plain one, and ComfyUI's. Reasons of verdicts say what was meant, so
that a reader can be checked. ``benchmarks/answer_fuzz.py`` starts it; it prints its port, and ``GET /log`` tells how
many answers it gave, and for each prompt how many images, and how many of them could be read.
"""

from __future__ import annotations

import base64
import io
import json
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, Final
from urllib.parse import parse_qsl, urlsplit

from PIL import Image

QUESTIONS: Final = (
    "Are there any cars in the image?",
    "Are there exactly two cars in the image?",
    "Are the cars red?",
    "Is there a dog?",
)
PROMPT: Final = re.compile(r"two red cars and a dog, number \d+")

# --- odd values -----------------------------------------------------------------------------------------------------

WORDS: Final[dict[str, tuple[Any, ...]]] = {
    "yes": ("yes", "Yes", "YES.", " yes", True, 1, "true", "y", "**Yes**", "yes, two cars", "correct", "✅", ["yes"]),
    "no": ("no", "No", "NO!", False, 0, "false", "n", "No — three cars", "not present", "❌", {"value": "no"}),
    "unsure": (
        "unsure",
        "Partially",
        "maybe",
        "yes and no",
        None,
        [],
        {"yes": True},
        0.5,
        "yes?",
        "yes, but one",
        "not no",
    ),
}
CONFIDENCES: Final = (
    0.9,
    "0.9",
    "95%",
    95,
    "high",
    "0.95 (very sure)",
    None,
    "",
    -3,
    [],
    "9/10",
    "n/a",
    True,
    float("nan"),
)
NAMES: Final = (
    ("id", "answer"),
    ("id", "answer"),
    ("question_id", "verdict"),
    ("question", "result"),
    ("req", "passed"),
)
JUNK: Final = (None, 3, True, "", "?", [], {}, [[]], {"note": None}, {"id": None}, {"question": None}, -0.5, [None, {}])


def _id(random_: random.Random, name: str) -> Any:
    return random_.choice(
        [name, name.upper(), f" {name}. ", f"({name})", f"{name[0]} {name[1:]}", f"{name[0]}-{name[1:]}"]
    )


def _verdict(random_: random.Random, name: str) -> dict[str, Any]:
    meaning = random_.choices(["yes", "no", "unsure"], [4, 3, 1])[0]
    names = random_.choice(NAMES)
    item = {
        names[0]: _id(random_, name),
        names[1]: random_.choice(WORDS[meaning]),
        "reason": f"meant {meaning}",
    }
    if random_.random() < 0.8:
        item["confidence"] = random_.choice(CONFIDENCES)
    return _odd_keys(random_, item)


def _odd_keys(random_: random.Random, item: dict[str, Any]) -> dict[str, Any]:
    if random_.random() < 0.2:
        item = {key.title(): value for key, value in item.items()}
    return item | ({"extra": random_.choice(JUNK)} if random_.random() < 0.2 else {})


def _requirement(random_: random.Random, question: str) -> Any:
    kinds = ("object", "Count", "ATTRIBUTE", "colour", None, 7, [])
    return random_.choice([question, _odd_keys(random_, {"question": question, "kind": random_.choice(kinds)})])


def _items(random_: random.Random, items: list[Any]) -> list[Any]:
    """The items with junk among them."""
    mixed = [*items, *random_.choices(JUNK, k=random_.choice([0, 0, 1, 2]))]
    random_.shuffle(mixed)
    return mixed


# --- forms ----------------------------------------------------------------------------------------------------------


def fill(random_: random.Random, form: str, text: str) -> Any:
    """A form, almost as it was asked for; ``text`` is the last message of the conversation."""
    prompt = PROMPT.findall(text)
    words = prompt[-1] if prompt else "two red cars and a dog"
    match form:
        case "Verdicts":
            names = re.findall(r"^([rs]\d+): ", text, re.MULTILINE)
            return _list_form(random_, "verdicts", _items(random_, [_verdict(random_, name) for name in names]))
        case "Requirements":
            requirements = [_requirement(random_, q) for q in random_.sample(QUESTIONS, random_.randint(2, 4))]
            return _list_form(random_, "requirements", _items(random_, requirements))
        case "Refinement":
            fields = {"experience": random_.choice(["a lesson", None, ["a", "b"], 3]), "prompt": words}
            if random_.random() < 0.8:
                fields["strategy"] = random_.choice(["rewrite", "Re-seed", "RESTART", "improve", None, "edit", 4])
            return _odd_keys(random_, fields)
    return _odd_keys(random_, {"prompt": random_.choice([words, [words, "in daylight"], f" {words}\n"])})


def _list_form(random_: random.Random, field: str, items: list[Any]) -> Any:
    shapes: list[Callable[[], Any]] = [
        lambda: {field: items},
        lambda: {field: items},
        lambda: {field.title(): items},
        lambda: {"result": {field: items}, "note": None},
        lambda: {field: json.dumps(items)},
        lambda: {field: [json.dumps(i) if isinstance(i, dict) else i for i in items]},
        lambda: {field: [[i] for i in items]},
    ]
    return random_.choice(shapes)()


# --- chat completions -----------------------------------------------------------------------------------------------


def completion(random_: random.Random, request: dict[str, Any]) -> Any:
    """An answer to ``POST /chat/completions``."""
    form, by_tool = _form_of(request)
    filled = fill(random_, form, _text(request["messages"]))
    message: dict[str, Any] = {"role": random_.choice(["assistant", None]), "content": None}
    if by_tool:
        message["tool_calls"] = [_call(random_, form, filled)]
    else:
        message["content"] = _content(random_, filled)
    choice = {"index": 0, "finish_reason": random_.choice(["stop", "tool_calls", None]), "message": message}
    usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
    answer = {
        "id": random_.choice(["x", None]),
        "choices": [choice, *random_.choices([None, {}, {"message": None}], k=random_.choice([0, 0, 0, 1]))],
        "usage": random_.choice([usage, None, {}, {"prompt_tokens": None, "completion_tokens": "7"}, []]),
    }
    for name in ("id", "usage"):
        if random_.random() < 0.1:
            del answer[name]
    return answer


def _form_of(request: dict[str, Any]) -> tuple[str, bool]:
    kind = (request.get("response_format") or {}).get("type")
    if kind == "json_schema":
        return str(request["response_format"]["json_schema"]["name"]), False
    if request.get("tools"):
        return str(request["tools"][-1]["function"]["name"]), True
    return str(re.findall(r'"title":"(Plan|Requirements|Verdicts|Refinement)"', _text(request["messages"]))[-1]), False


def _text(messages: list[dict[str, Any]]) -> str:
    content = messages[-1]["content"]
    if any("could not be read" in str(m["content"]) for m in messages[-1:]):  # a request to answer again
        content = [*_parts(messages[-3]["content"]), *_parts(content)]
    return "\n".join(str(part.get("text", "")) for part in _parts(content))


def _parts(content: Any) -> list[dict[str, Any]]:
    return content if isinstance(content, list) else [{"text": content or ""}]


def _call(random_: random.Random, form: str, filled: Any) -> dict[str, Any]:
    text = json.dumps(filled)
    arguments = random_.choice([text, text, filled, json.dumps(text)])
    function = {"name": random_.choice([form, form, form.lower()]), "arguments": arguments}
    return random_.choice(
        [{"id": "c1", "type": "function", "function": function}, {"id": None, "function": function}, function]
    )


def _content(random_: random.Random, filled: Any) -> Any:
    text = json.dumps(filled, indent=random_.choice([None, 1]))
    texts = [text, f"Sure [1]!\n```json\n{text}\n```\nAnything else?", f"<think>Hm {{1}}.</think>{text}", f"\n{text}\n"]
    answer = random_.choice(texts)
    return random_.choice([answer, answer, [{"type": "text", "text": answer}, {"type": "x"}], filled])


# --- images ---------------------------------------------------------------------------------------------------------


def image_file(random_: random.Random) -> bytes:
    """A small image in any format and mode."""
    buffer = io.BytesIO()
    image = Image.new("RGB", (16, 16), tuple(random_.randbytes(3)))
    kind, mode = random_.choice([("PNG", "RGB"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("PNG", "RGBA"), ("PNG", "L")])
    image.convert(mode).save(buffer, kind)
    return buffer.getvalue()


def bad_file(random_: random.Random) -> bytes:
    """What is no image."""
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(buffer, "PNG")
    return random_.choice(
        [b"", b"null", b"<html></html>", b"\x89PNG\r\n\x1a\n", buffer.getvalue(), b"{}", b'{"error": [1]}']
    )


def openai_answer(random_: random.Random, data: bytes) -> Any:
    """An answer to ``POST /images/generations`` with this file in it."""
    encoded = base64.b64encode(data).decode()
    lines = "\n".join(encoded[at : at + 60] for at in range(0, len(encoded), 60))
    text = random_.choice([encoded, lines, f"data:image/png;base64,{encoded}", encoded.rstrip("="), f" {encoded}\n"])
    item = random_.choice(
        [
            {"b64_json": text, "url": None},
            {"b64_json": text},
            {"b64_json": None, "url": f"data:image/png;base64,{encoded}"},
        ]
    )
    items = [*random_.choices([None, {}, {"b64_json": None}, {"url": ""}, 3], k=random_.choice([0, 0, 1])), item]
    return random_.choice(
        [{"created": 1, "data": items}, {"created": None, "data": items, "error": None}, {"data": item}]
    )


BAD_ANSWERS: Final = (
    {"data": None},
    {"data": []},
    {"data": [None, {}]},
    {"error": {"message": "out of memory", "code": None}},
    {"error": "the engine died"},
    {"detail": [{"loc": None, "msg": "x"}]},
    None,
    {"data": [{"b64_json": 3, "url": {}}]},
)


def history(random_: random.Random, run: str, *, is_good: bool) -> Any:
    """An answer of ComfyUI about a run that has ended."""
    if not is_good:
        status = {
            "status_str": "error",
            "messages": random_.choice([None, [], [None, ["x"]], [["execution_error", None]]]),
        }
        return {
            run: random_.choice(
                [{"status": status}, {"status": {"completed": True}, "outputs": {"9": {"images": None}}}]
            )
        }
    files = [
        None,
        {},
        {"filename": None},
        {"filename": run, "subfolder": None, "type": random_.choice(["output", None])},
    ]
    outputs = {"1": None, "2": {"images": None}, "3": {"images": files}}
    return {
        run: {"status": random_.choice([None, {}, {"status_str": "success", "completed": True}]), "outputs": outputs}
    }


# --- the server -----------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers requests; the class holds what it has answered so far."""

    protocol_version = "HTTP/1.1"
    random: ClassVar = random.Random(7)
    counts: ClassVar[Counter[str]] = Counter()
    images: ClassVar[Counter[str]] = Counter()
    readable: ClassVar[Counter[str]] = Counter()
    lock: ClassVar = threading.Lock()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        """History and files of ComfyUI, and the log."""
        path = urlsplit(self.path)
        if path.path == "/log":
            return self._json({"counts": self.counts, "images": self.images, "readable": self.readable})
        random_, query = self._next_random(), dict(parse_qsl(path.query))
        if path.path.startswith("/history/"):
            run = path.path.removeprefix("/history/")
            is_good = random_.random() < 0.7
            self._count_image(bytes.fromhex(run).decode(), is_good=is_good)
            return self._json(history(random_, run, is_good=is_good))
        assert query
        return self._send(image_file(random_), "image/png")

    def do_POST(self) -> None:
        """A chat completion or an image."""
        path, random_ = urlsplit(self.path), self._next_random()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = json.loads(body) if body else dict(parse_qsl(path.query))
        if path.path.endswith("/chat/completions"):
            with self.lock:
                self.counts["chat"] += 1
            return self._json(completion(random_, request))
        if path.path == "/prompt":
            nodes = request["prompt"]
            return self._json({"prompt_id": nodes["6"]["inputs"]["text"].encode().hex(), "node_errors": None})
        is_good = random_.random() < 0.7
        self._count_image(request["prompt"], is_good=is_good)
        data = image_file(random_) if is_good else bad_file(random_)
        if path.path == "/draw":
            kinds = ["image/png", "application/octet-stream", "text/plain"] if is_good else ["image/png", "text/html"]
            return self._send(data, random_.choice(kinds))
        in_file = is_good or random_.random() < 0.5
        return self._json(openai_answer(random_, data) if in_file else random_.choice(BAD_ANSWERS))

    def _next_random(self) -> random.Random:
        with self.lock:
            return random.Random(self.random.getrandbits(64))

    def _count_image(self, draft: str, *, is_good: bool) -> None:
        match = PROMPT.search(draft)
        with self.lock:
            self.counts["images"] += 1
            if match:
                self.images[match[0]] += 1
                self.readable[match[0]] += is_good

    def _json(self, answer: Any) -> None:
        self._send(json.dumps(answer).encode(), "application/json")

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until the process is ended; the argument is the seed."""
    Handler.random = random.Random(int(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
