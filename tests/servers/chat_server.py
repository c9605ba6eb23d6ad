"""A chat server script that speaks the OpenAI protocol and misbehaves on demand.

The first part of a path selects the behaviour: ``/fine/v1/chat/completions`` works, ``/busy/v1/...`` answers 429 once,
and so on (see ``_refusal`` and ``_complete``). A suffix after a tilde separates tests: ``/busy~mine`` is busy once,
regardless of other requests to ``/busy``. The pocket chat model writes the answers, so that whole runs work.
``GET /log/NAME`` returns the requests to one name.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
import threading
import time
import uuid
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage

from gems.models.pocket.chat import PocketChatModel

KEY = "sk-canary-9b1e"
"""The API key that ``locked`` accepts."""

CHANCES = {
    "yes": {"yes": 0.875, "no": 0.1, "unsure": 0.025},
    "no": {"no": 0.75, "yes": 0.2, "unsure": 0.05},
    "unsure": {"unsure": 0.5, "yes": 0.25, "no": 0.25},
}
"""The probability reported for each answer of a verifier, by the answer it gave. The pocket model states others."""

BRAIN = PocketChatModel()
REQUEST_LOG: list[dict[str, Any]] = []
TRIES: Counter[str] = Counter()
LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        name, _, rest = self.path.lstrip("/").partition("/")
        if name == "log":
            with LOCK:
                return self._json(200, [entry for entry in REQUEST_LOG if entry["name"] == rest])
        if rest == "v1/models":
            return self._json(200, {"object": "list", "data": [{"id": "pocket", "object": "model"}]})
        return self._json(404, {"detail": "no such page"})

    def do_POST(self) -> None:
        name, _, rest = self.path.lstrip("/").partition("/")
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key, schema = self.headers.get("Authorization", ""), _schema_name(request)
        with LOCK:
            REQUEST_LOG.append(
                {"name": name, "path": rest, "key": key, "way": way_of(request), "form": schema, "request": request}
                | {"team": self.headers.get("X-Team")}
            )
            TRIES[name] += 1
            TRIES[f"{name} {schema}"] += 1
            n, n_of_form = TRIES[name], TRIES[f"{name} {schema}"]
        if rest != "v1/chat/completions":
            return self._json(404, {"error": {"message": f"no such page: {rest}"}})
        fault = name.partition("~")[0]
        if refusal := self._refusal(fault, request, n):
            return self._json(*refusal)
        match fault:
            case "cuts-connection":
                self.close_connection = True
                return None
            case "slow":
                time.sleep(0.3)
            case "hung":
                time.sleep(30)
                return self._json(504, {})
            case "moved":
                return self._json(307, {}, {"Location": "/fine~moved-to/v1/chat/completions"})
            case "wrong-type":
                return self._answer(200, b"<html><body>Welcome to nginx!</body></html>", "text/html")
            case "error-body":
                return self._json(200, {"error": {"message": "the engine died", "code": 500}})
            case "error-text":
                return self._json(200, {"error": "model is not loaded"})
            case "choice-error":
                error = {"code": 400, "message": "The provider's\nfilter stopped this"}
                choice = {"index": 0, "finish_reason": "error", "message": {"content": ""}, "error": error}
                return self._json(200, {"id": "x", "model": "pocket", "choices": [choice]})
            case "choice-error-passing":
                choice = {"finish_reason": "error", "message": None, "error": {"code": "502", "message": "upstream"}}
                return self._json(200, {"id": "x", "model": "pocket", "choices": [choice]})
            case "null-choices":
                return self._json(200, {"id": "x", "model": "pocket", "choices": None})
            case "null-message":
                return self._json(200, {"id": "x", "model": "pocket", "choices": [{"message": None}, None]})
            case "no-choices":
                return self._json(200, {"id": "x", "object": "chat.completion", "model": "pocket", "choices": []})
        return self._complete(fault, request, schema, n_of_form)

    def _refusal(self, fault: str, request: dict[str, Any], n: int) -> tuple[Any, ...] | None:
        """The error response of this behaviour: status, body and headers. None if it has none."""
        way = way_of(request)
        if fault in ("no-schema", "no-schema-no-tools", "text-only", "no-schema-then-down") and way == "json_schema":
            return 400, _error("response_format of that kind is not known here")
        if fault in ("no-schema-no-tools", "text-only") and way == "tool":
            return 400, _error('"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set')
        if fault == "text-only" and way == "json_mode":
            return 422, {"detail": [{"loc": ["body", "response_format"], "msg": "extra fields not permitted"}]}
        if fault == "no-schema-then-down" and way == "tool":
            return 503, _error("no worker left")
        if fault == "text-only" and not _alternates(request):
            return 400, _error("Conversation roles must alternate user/assistant/user/assistant/...")
        has_system = any(message["role"] in ("system", "developer") for message in request["messages"])
        if fault == "no-system" and has_system:
            return 400, _error("System role not supported")
        if fault == "no-system-literal" and has_system:
            words = "Input should be 'user' or 'assistant'"
            return 422, {"detail": [{"loc": ["body", "messages", 0, "role"], "msg": words}]}
        if fault == "no-system-template" and has_system:
            return 500, _error("Jinja Exception: Conversation roles must alternate user/assistant/user/assistant/...")
        if fault == "router" and way in ("json_schema", "tool"):
            return 404, _error("No endpoints found that support tool use. Try disabling some.")
        if fault == "forbids-logprobs" and request.get("logprobs"):
            return 403, _error("You are not allowed to request logprobs from this model")
        if fault == "strict" and (request.get("logprobs") or way in ("json_schema", "tool", "json_mode")):
            return 422, {"message": "unknown field"}
        if fault == "no-logprobs" and request.get("logprobs"):
            return 400, _error("logprobs are not available for this model")
        if fault == "blind" and _images(request):
            return 500, _error("image input is not supported - hint: you may need to provide the mmproj")
        if (schema := _schema_name(request)) and fault == f"unpaid-{schema.lower()}":
            with LOCK:  # the first three only, as if somebody had paid then
                is_unpaid = TRIES[f"{self.path.lstrip('/').partition('/')[0]} {schema}"] <= 3
            return (402, _error("insufficient credits")) if is_unpaid else None
        if fault == "verdict-then-down" and _schema_name(request) == "Verdicts":
            with LOCK:
                is_first = TRIES[f"{self.path.lstrip('/').partition('/')[0]} Verdicts"] <= 1
            return None if is_first else (503, _error("no GPU left"))
        if fault == "busy" and n == 1:
            return 429, _error("slow down"), {"Retry-After": "0.2"}
        if fault == "busy-for-long":
            return 429, _error("slow down"), {"Retry-After": "50"}
        if fault == "shaky" and n <= 2:
            return 500, _error("worker died")
        if fault == "broken":
            return 503, _error("no GPU left\n  at all")
        if fault == "page":
            return 502, "<html>\n<h1>Bad Gateway</h1></html>"
        if fault == "invalid":
            return 422, {"detail": [{"loc": ["body", "model"], "msg": "no such model"}]}
        key = self.headers.get("Authorization", "")
        if fault == "echo-key" or (fault == "locked" and key != f"Bearer {KEY}"):
            return 401, _error(f"Incorrect API key provided: {key}.")
        return None

    def _complete(self, fault: str, request: dict[str, Any], schema: str, n: int) -> None:
        answer = think(request, schema)
        form = answer.tool_calls[0]["args"] if answer.tool_calls else None
        message: dict[str, Any] = {"role": "assistant", "content": str(answer.text)}
        if form is not None:
            message["content"] = json.dumps(form)
        reason, broken = "stop", ""
        match fault:
            case "cut":
                message["content"], reason = message["content"][: len(message["content"]) // 2], "length"
            case "endless" if form is not None and "requirements" in form:
                whole = json.dumps({"requirements": form["requirements"] * 20})
                message["content"], reason = whole[:-30], "length"
            case "prose":
                message["content"] = (
                    f"Sure [1]! Here is the {schema}:\n```json\n{message['content']}\n```\nAnything else?"
                )
            case "malformed":
                broken = message["content"] = '{"nothing": "of use"'
            case "malformed-once" if n == 1:
                broken = message["content"] = message["content"][:-1].replace('": ', '" ', 1)
            case "refuses":
                message |= {"content": None, "refusal": "I'm sorry,\nI can't help with that."}
            case "reasoning":
                message["reasoning_content"] = "Let me\nlook."
            case "reasoning-only":
                message |= {"reasoning_content": f"I think: {message['content']}", "content": None}
            case "thinks-aloud":
                message["content"] = f"<think>\nMaybe {_draft(form)}?\n</think>\n\n{message['content']}"
        if request.get("tools") and answer.tool_calls and fault not in ("refuses", "reasoning-only", "thinks-aloud"):
            message["content"] = None
            message["tool_calls"] = [
                {
                    "id": call["id"],
                    "type": "function",
                    "function": {"name": call["name"], "arguments": broken or json.dumps(call["args"])},
                }
                for call in answer.tool_calls
            ]
            reason = "tool_calls"
        usage = answer.usage_metadata
        assert usage is not None
        completion = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": request["model"],
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": reason,
                    "logprobs": {"content": logprobs(message["content"] or "")} if request.get("logprobs") else None,
                }
            ],
            "usage": {
                "prompt_tokens": usage["input_tokens"],
                "completion_tokens": usage["output_tokens"],
                "total_tokens": usage["total_tokens"],
            },
        }
        if fault == "truncated":
            return self._truncated(completion)
        if fault in ODDITIES:
            ODDITIES[fault](completion, completion["choices"][0]["message"])
        return self._json(200, completion)

    # --- answers ---

    def _json(self, status: int, answer: Any, headers: dict[str, str] | None = None) -> None:
        if isinstance(answer, str):
            return self._answer(status, answer.encode(), "text/html", headers)
        return self._answer(status, json.dumps(answer).encode(), "application/json", headers)

    def _answer(self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the client has hung up
            self.close_connection = True

    def _truncated(self, completion: dict[str, Any]) -> None:
        body = json.dumps(completion).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2])
        self.close_connection = True


# --- answers in other shapes than OpenAI's ---------------------------------------------------------------------------


def _each_call(change: Any) -> Any:
    def odd(completion: dict[str, Any], message: dict[str, Any]) -> None:
        for call in message.get("tool_calls") or ():
            change(call)

    return odd


def _object_arguments(call: dict[str, Any]) -> None:
    call["function"]["arguments"] = json.loads(call["function"]["arguments"])


def _doubled_arguments(call: dict[str, Any]) -> None:
    call["function"]["arguments"] = json.dumps(call["function"]["arguments"])


def _no_arguments(value: Any) -> Any:
    def change(call: dict[str, Any]) -> None:
        if call["function"]["arguments"] == "{}":
            call["function"]["arguments"] = value

    return change


def _flat_call(call: dict[str, Any]) -> None:
    call |= call.pop("function")
    call["id"] = None
    del call["type"]


def _single_call(completion: dict[str, Any], message: dict[str, Any]) -> None:
    if message.get("tool_calls"):
        message["function_call"] = message.pop("tool_calls")[0]["function"]


def _content_parts(completion: dict[str, Any], message: dict[str, Any]) -> None:
    if message["content"]:
        message["content"] = [{"type": "text", "text": message["content"]}]


def _parsed_content(completion: dict[str, Any], message: dict[str, Any]) -> None:
    if message["content"]:
        message["content"] = json.loads(message["content"])


def _sparse(completion: dict[str, Any], message: dict[str, Any]) -> None:
    for name in ("id", "object", "created", "model", "usage"):
        del completion[name]
    del completion["choices"][0]["finish_reason"], message["role"]
    completion["choices"] += [None, {}]


def _null_usage(completion: dict[str, Any], message: dict[str, Any]) -> None:
    completion["usage"] = {"prompt_tokens": None, "completion_tokens": "7", "prompt_tokens_details": {"x": None}}
    completion["choices"][0]["logprobs"] = []
    message |= {"tool_calls": message.get("tool_calls"), "refusal": None, "reasoning_content": None}


ODDITIES: dict[str, Any] = {
    "object-arguments": _each_call(_object_arguments),
    "doubled-arguments": _each_call(_doubled_arguments),
    "empty-arguments": _each_call(_no_arguments("")),
    "null-arguments": _each_call(_no_arguments(None)),
    "flat-calls": _each_call(_flat_call),
    "function-call": _single_call,
    "content-parts": _content_parts,
    "parsed-content": _parsed_content,
    "sparse": _sparse,
    "null-usage": _null_usage,
}
"""Behaviours that change a completion, and its message, in place."""


# --- from the protocol to the pocket model and back ------------------------------------------------------------------


def way_of(request: dict[str, Any]) -> str:
    """The way in which the request asks for a structured answer."""
    kind = (request.get("response_format") or {}).get("type")
    if kind == "json_schema":
        return "json_schema"
    if request.get("tools"):
        return "tool"
    return "json_mode" if kind == "json_object" else "text"


def _schema_name(request: dict[str, Any]) -> str:
    """The name of the requested form. If there are several tools, the form is the last one."""
    way = way_of(request)
    if way == "json_schema":
        return str(request["response_format"]["json_schema"]["name"])
    if way == "tool":
        return str(request["tools"][-1]["function"]["name"])
    for message in reversed(request["messages"]):
        last = _text(message["content"]).rstrip().rpartition("\n")[2]
        if last.startswith("{") and '"title"' in last:
            return str(json.loads(last)["title"])
    return ""


def think(request: dict[str, Any], schema: str) -> AIMessage:
    messages = [_message(message) for message in request["messages"]]
    offered = request.get("tools") or [{"type": "function", "function": {"name": schema}}]
    answer = BRAIN.bind(tools=offered).invoke(messages)
    assert isinstance(answer, AIMessage)
    return answer


def _message(message: dict[str, Any]) -> BaseMessage:
    content = message["content"]
    match message["role"]:
        case "system" | "developer":
            return SystemMessage(_text(content))
        case "assistant":
            return AIMessage(_text(content))
        case "tool":
            return ToolMessage(_text(content), tool_call_id=message["tool_call_id"])
        case "user":
            return HumanMessage(content if isinstance(content, str) else [_block(block) for block in content])
    raise AssertionError(message["role"])


def _block(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] != "image_url":
        return block
    head, _, data = block["image_url"]["url"].partition(";base64,")
    assert head == "data:image/png"
    base64.b64decode(data, validate=True)
    return {"type": "image", "base64": data, "mime_type": "image/png"}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(block.get("text", "") for block in content)
    return content or ""


def _alternates(request: dict[str, Any]) -> bool:
    """Whether user and assistant take turns, as many chat templates require."""
    roles = [message["role"] for message in request["messages"] if message["role"] != "system"]
    return roles == [("user", "assistant")[i % 2] for i in range(len(roles))]


def _images(request: dict[str, Any]) -> list[dict[str, Any]]:
    lists = [message["content"] for message in request["messages"] if isinstance(message["content"], list)]
    return [block for blocks in lists for block in blocks if block["type"] == "image_url"]


def _draft(form: Any) -> str:
    """A valid form that differs from the final answer."""
    if "prompt" in form:
        return json.dumps(form | {"prompt": "something else entirely"})
    if "verdicts" in form:
        return json.dumps({"verdicts": [v | {"answer": "unsure", "confidence": 0.5} for v in form["verdicts"]]})
    return json.dumps({"requirements": [{"question": "Is there anything in the image?", "kind": "object"}]})


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


_ANSWER = re.compile(r'(?<="answer": ")(?:yes|no|unsure)(?=")')


def logprobs(content: str) -> list[dict[str, Any]]:
    """The tokens of the content. Tokens that begin an answer have the alternatives in ``CHANCES``."""
    tokens, at = [], 0
    for match in [*_ANSWER.finditer(content), None]:
        end = match.start() if match else len(content)
        tokens += [_token(part) for part in re.findall(r"\w+|\W", content[at:end])]
        if match:
            answer = match[0]
            # As in real vocabularies, "unsure" is two tokens.
            first = {word: word.replace("unsure", "uns") for word in CHANCES}
            alternatives = [(first[word], math.log(p)) for word, p in CHANCES[answer].items()]
            tokens.append(_token(*alternatives))
            if answer == "unsure":
                tokens.append(_token("ure"))
            at = match.end()
    assert "".join(token["token"] for token in tokens) == content
    return tokens


def _token(token: str | tuple[str, float], *alternatives: tuple[str, float]) -> dict[str, Any]:
    first = (token, -0.01) if isinstance(token, str) else token
    entries = [{"token": t, "logprob": p, "bytes": list(t.encode())} for t, p in (first, *alternatives)]
    return {**entries[0], "top_logprobs": entries}


if __name__ == "__main__":
    BRAIN.load()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        sys.exit(0)
