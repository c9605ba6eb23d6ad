"""A chat server that speaks the wire format of each provider, with the pocket chat model behind it.

The first part of a path is a behaviour: ``fine``, or one of those in ``_fault`` and ``_ending``; the second names the
provider, so that one server serves them all. A suffix after a tilde separates tests. Formats are from the providers'
API references and from what their Python packages read.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from servers.chat_server import think

Json = dict[str, Any]


class Question(NamedTuple):
    """A request in OpenAI's form, and the name of the form that it asks for."""

    messages: list[Json]
    tools: list[Json]
    form: str
    way: str


class Answer(NamedTuple):
    """What the model writes: a text or calls of tools; ``ending`` is stop, cut or refused."""

    text: str
    calls: list[Json]
    ending: str


def _function(name: str, schema: Any) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": schema}}


def _image(data: str) -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _text(text: str) -> Json:
    return {"type": "text", "text": text}


# --- from and to each protocol ---------------------------------------------------------------------------------------


def _chat_question(request: Json) -> Question:
    schema = request.get("response_format") or {}
    tools = [tool for tool in request.get("tools") or [] if tool["type"] == "function"]
    if schema.get("type") == "json_schema":
        return Question(request["messages"], [], schema["json_schema"]["name"], "json_schema")
    return Question(request["messages"], tools, tools[-1]["function"]["name"] if tools else "", "tool")


def _chat_answer(answer: Answer) -> Json:
    reason = {"stop": "tool_calls" if answer.calls else "stop", "cut": "length", "refused": "content_filter"}
    message: Json = {"role": "assistant", "content": answer.text}
    if answer.calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": json.dumps(call["args"])},
            }
            for call in answer.calls
        ]
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "system_fingerprint": None,
        "choices": [{"index": 0, "message": message, "finish_reason": reason[answer.ending]}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14},
    }


def _responses_question(request: Json) -> Question:
    if "logprobs" in request or "top_logprobs" in request:
        raise AssertionError("the Responses API has no such parameter")
    messages = []
    for item in request["input"]:
        if item.get("type") == "function_call":
            messages.append({"role": "assistant", "content": ""})
        elif item.get("type") == "function_call_output":
            messages.append({"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]})
        elif "role" in item:
            parts = item["content"] if isinstance(item["content"], list) else [_text(item["content"])]
            blocks = [
                {"type": "image_url", "image_url": {"url": part["image_url"]}}
                if part["type"] == "input_image"
                else _text(part.get("text", ""))
                for part in parts
            ]
            messages.append({"role": item["role"], "content": blocks})
    kind = (request.get("text") or {}).get("format") or {}
    tools = [_function(tool["name"], tool["parameters"]) for tool in request.get("tools") or []]
    if kind.get("type") == "json_schema":
        return Question(messages, [], kind["name"], "json_schema")
    return Question(messages, tools, tools[-1]["function"]["name"] if tools else "", "tool")


def _responses_answer(answer: Answer) -> Json:
    refusal = {"type": "refusal", "refusal": "I will not do that."}
    content = (
        [refusal] if answer.ending == "refused" else [{"type": "output_text", "text": answer.text, "annotations": []}]
    )
    output: list[Json] = [
        {"type": "function_call", "id": f"fc_{call['id']}", "call_id": call["id"], "name": call["name"],
         "arguments": json.dumps(call["args"]), "status": "completed"}
        for call in answer.calls
    ]  # fmt: skip
    if not answer.calls:
        output.append({"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content})
    is_cut = answer.ending == "cut"
    return {
        "id": "r", "object": "response", "created_at": 1, "model": "m", "output": output, "error": None,
        "status": "incomplete" if is_cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "usage": {"input_tokens": 9, "output_tokens": 5, "total_tokens": 14,
                  "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}},
    }  # fmt: skip


def _anthropic_question(request: Json) -> Question:
    system = request.get("system") or ""
    text = system if isinstance(system, str) else "\n".join(part["text"] for part in system)
    messages = [{"role": "system", "content": text}] if text else []
    for message in request["messages"]:
        parts = message["content"] if isinstance(message["content"], list) else [_text(message["content"])]
        blocks = []
        for part in parts:
            if part["type"] == "tool_result":
                content = part["content"]
                inner = content if isinstance(content, str) else "\n".join(p["text"] for p in content)
                messages.append({"role": "tool", "content": inner, "tool_call_id": part["tool_use_id"]})
            elif part["type"] == "image":
                blocks.append(_image(part["source"]["data"]))
            elif part["type"] == "text":
                blocks.append(_text(part["text"]))
        if blocks or message["role"] == "assistant":
            messages.append({"role": message["role"], "content": blocks})
    tools = [_function(tool["name"], tool["input_schema"]) for tool in request.get("tools") or []]
    schema = ((request.get("output_config") or {}).get("format") or {}).get("schema")
    if schema:
        return Question(messages, [], schema.get("title") or _form_of(schema), "json_schema")
    return Question(messages, tools, tools[-1]["function"]["name"] if tools else "", "tool")


def _anthropic_answer(answer: Answer) -> Json:
    content = [{"type": "tool_use", "id": c["id"], "name": c["name"], "input": c["args"]} for c in answer.calls]
    reason = {"stop": "tool_use" if answer.calls else "end_turn", "cut": "max_tokens", "refused": "refusal"}
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_sequence": None,
        "content": content or ([_text(answer.text)] if answer.text else []), "stop_reason": reason[answer.ending],
        "usage": {"input_tokens": 9, "output_tokens": 5},
    }  # fmt: skip


def _google_question(request: Json) -> Question:
    system = request.get("systemInstruction") or {}
    messages = [{"role": "system", "content": part["text"]} for part in system.get("parts", [])]
    for content in request["contents"]:
        blocks = []
        for part in content["parts"]:
            if "functionResponse" in part:
                answer = json.dumps(part["functionResponse"]["response"])
                messages.append({"role": "tool", "content": answer, "tool_call_id": "x"})
            elif "inlineData" in part:
                data = part["inlineData"]["data"].replace("-", "+").replace("_", "/")
                blocks.append(_image(data))
            elif "text" in part:
                blocks.append(_text(part["text"]))
        if blocks or content.get("role") == "model":
            messages.append({"role": {"model": "assistant"}.get(content["role"], "user"), "content": blocks})
    declared = [d for tool in request.get("tools") or [] for d in tool.get("functionDeclarations", [])]
    tools = [_function(d["name"], d.get("parameters") or d.get("parametersJsonSchema") or {}) for d in declared]
    config = request.get("generationConfig") or {}
    schema = config.get("responseJsonSchema") or config.get("responseSchema")
    if schema:
        return Question(messages, [], schema.get("title") or _form_of(schema), "json_schema")
    return Question(messages, tools, tools[-1]["function"]["name"] if tools else "", "tool")


def _google_answer(answer: Answer) -> Json:
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 5, "totalTokenCount": 14}
    if answer.ending == "refused":
        return {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage, "modelVersion": "m"}
    parts = [{"functionCall": {"name": c["name"], "args": c["args"]}} for c in answer.calls] or [{"text": answer.text}]
    candidate = {
        "content": {"role": "model", "parts": parts},
        "finishReason": "MAX_TOKENS" if answer.ending == "cut" else "STOP",
        "index": 0,
    }
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m"}


def _ollama_question(request: Json) -> Question:
    messages = []
    for message in request["messages"]:
        images = [_image(data) for data in message.get("images") or []]
        messages.append({**message, "content": [_text(message.get("content") or ""), *images], "tool_call_id": "x"})
    tools = request.get("tools") or []
    if isinstance(request.get("format"), dict):
        return Question(messages, [], request["format"]["title"], "json_schema")
    return Question(messages, tools, tools[-1]["function"]["name"] if tools else "", "tool")


def _ollama_answer(answer: Answer) -> Json:
    message: Json = {"role": "assistant", "content": answer.text}
    if answer.calls:
        message["tool_calls"] = [{"function": {"name": c["name"], "arguments": c["args"]}} for c in answer.calls]
    return {
        "model": "m", "created_at": "2026-01-01T00:00:00Z", "message": message, "done": True,
        "done_reason": "length" if answer.ending == "cut" else "stop", "prompt_eval_count": 9, "eval_count": 5,
    }  # fmt: skip


def _bedrock_question(request: Json) -> Question:
    messages = [{"role": "system", "content": part["text"]} for part in request.get("system") or [] if "text" in part]
    for message in request["messages"]:
        blocks = []
        for part in message["content"]:
            if "toolResult" in part:
                text = "\n".join(p.get("text", "") for p in part["toolResult"]["content"])
                messages.append({"role": "tool", "content": text, "tool_call_id": part["toolResult"]["toolUseId"]})
            elif "image" in part:
                blocks.append(_image(part["image"]["source"]["bytes"]))
            elif "text" in part:
                blocks.append(_text(part["text"]))
        if blocks or message["role"] == "assistant":
            messages.append({"role": message["role"], "content": blocks})
    specs = [tool["toolSpec"] for tool in (request.get("toolConfig") or {}).get("tools", []) if "toolSpec" in tool]
    tools = [_function(spec["name"], spec["inputSchema"]["json"]) for spec in specs]
    output = ((request.get("outputConfig") or {}).get("textFormat") or {}).get("structure", {}).get("jsonSchema")
    if output:
        schema = json.loads(output["schema"])
        return Question(messages, [], schema.get("title") or _form_of(schema), "json_schema")
    return Question(messages, tools, tools[-1]["function"]["name"] if tools else "", "tool")


def _bedrock_answer(answer: Answer) -> Json:
    calls = [{"toolUse": {"toolUseId": c["id"], "name": c["name"], "input": c["args"]}} for c in answer.calls]
    reason = {"stop": "tool_use" if calls else "end_turn", "cut": "max_tokens", "refused": "guardrail_intervened"}
    return {
        "output": {"message": {"role": "assistant", "content": calls or [{"text": answer.text}]}},
        "stopReason": reason[answer.ending],
        "usage": {"inputTokens": 9, "outputTokens": 5, "totalTokens": 14},
        "metrics": {"latencyMs": 1},
    }


_FIELDS = {"prompt": "Plan", "requirements": "Requirements", "verdicts": "Verdicts", "diagnosis": "Refinement"}


def _form_of(schema: Json) -> str:
    """The form that a schema without a title is of."""
    names = set(schema["properties"])
    return next(form for field, form in reversed(_FIELDS.items()) if field in names)


class Protocol(NamedTuple):
    """How a provider's requests, answers and errors are written."""

    question: Callable[[Json], Question]
    answer: Callable[[Answer], Json]
    error: Callable[[int, str], Json]


def _openai_error(status: int, words: str) -> Json:
    return {"error": {"message": words, "type": "error", "code": str(status)}}


def _anthropic_error(status: int, words: str) -> Json:
    kinds = {429: "rate_limit_error", 401: "authentication_error", 503: "api_error"}
    return {"type": "error", "error": {"type": kinds.get(status, "invalid_request_error"), "message": words}}


def _google_error(status: int, words: str) -> Json:
    kinds = {429: "RESOURCE_EXHAUSTED", 401: "UNAUTHENTICATED", 503: "UNAVAILABLE"}
    return {"error": {"code": status, "message": words, "status": kinds.get(status, "INVALID_ARGUMENT")}}


PROTOCOLS: dict[str, Protocol] = {
    "chat": Protocol(_chat_question, _chat_answer, _openai_error),
    "vllm": Protocol(
        _chat_question,
        _chat_answer,
        lambda status, words: {"object": "error", "message": words, "type": "BadRequestError", "code": status},
    ),
    "sglang": Protocol(
        _chat_question, _chat_answer, lambda status, words: {"object": "error", "message": words, "code": status}
    ),
    "llama.cpp": Protocol(
        _chat_question, _chat_answer, lambda status, words: {"error": {"code": status, "message": words, "type": "x"}}
    ),
    "responses": Protocol(_responses_question, _responses_answer, _openai_error),
    "anthropic": Protocol(_anthropic_question, _anthropic_answer, _anthropic_error),
    "google": Protocol(_google_question, _google_answer, _google_error),
    "mistral": Protocol(_chat_question, _chat_answer, lambda status, words: {"object": "error", "message": words}),
    "openrouter": Protocol(
        _chat_question, _chat_answer, lambda status, words: {"error": {"code": status, "message": words}}
    ),
    "ollama": Protocol(_ollama_question, _ollama_answer, lambda status, words: {"error": words}),
    "bedrock": Protocol(_bedrock_question, _bedrock_answer, lambda status, words: {"message": words}),
}

FAULTS: dict[str, tuple[int, str]] = {
    "busy": (429, "slow down"),
    "down": (503, "no worker left"),
    "crashed": (500, "worker died"),
    "locked": (401, "that is no valid key"),
    "long": (400, "This model's maximum context length is 8192 tokens; your prompt is too long"),
    "moderated": (400, "The request was flagged by our content policy"),
}
"""Errors by behaviour; those of ``busy``, ``down`` and ``crashed`` go away after the first request."""

_AMAZON_ERRORS = {429: "ThrottlingException", 503: "ServiceUnavailableException", 401: "UnrecognizedClientException"}


class ProviderServer(ThreadingHTTPServer):
    """The server and the log of its requests."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        self.requests: dict[str, list[Json]] = {}
        self.tries: Counter[str] = Counter()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def endpoint(self, behaviour: str, protocol: str) -> Endpoint:
        """A unique endpoint with one behaviour and its own log."""
        return Endpoint(self, f"{behaviour}~{uuid.uuid4().hex[:8]}", protocol)


class Endpoint(NamedTuple):
    """A behaviour of the server in one protocol."""

    server: ProviderServer
    name: str
    protocol: str

    @property
    def url(self) -> str:
        return f"{self.server.url}/{self.name}/{self.protocol}"

    @property
    def log(self) -> list[Json]:
        """The requests, each with its path, headers and body."""
        return self.server.requests.get(self.name, [])


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ProviderServer

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        name, protocol, path = self.path.lstrip("/").split("/", 2)
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        behaviour = name.partition("~")[0]
        with self.server.lock:
            self.server.requests.setdefault(name, []).append(
                {"path": path, "headers": dict(self.headers), "body": body}
            )
            first = self.server.tries[name] == 0
            self.server.tries[name] += 1
        kind = PROTOCOLS[protocol]
        if behaviour in FAULTS and (first or behaviour not in ("busy", "down", "crashed")):
            status, words = FAULTS[behaviour]
            return self._send(status, kind.error(status, words), {"x-amzn-ErrorType": _AMAZON_ERRORS.get(status, "x")})
        if behaviour == "drips":
            return self._drip()
        question = kind.question(body)
        self.server.requests[name][-1] |= {"way": question.way, "form": question.form}
        if behaviour == "needs-reasoning" and (fault := _lacks_reasoning(body)):
            return self._send(400, kind.error(400, fault))
        if behaviour == "no-schema" and question.way == "json_schema":
            return self._send(400, kind.error(400, "A schema in the request contains too many states"))
        completion = kind.answer(_answer(question, behaviour))
        if behaviour == "needs-reasoning":
            completion["choices"][0]["message"]["reasoning_content"] = "Let me think."
        return self._send(200, completion)

    def _send(self, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Type": "application/json", "retry-after-ms": "10"}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _drip(self) -> None:
        """Send a piece of nothing every now and then, for ten seconds: the client never waits for long."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in range(100):
                self.wfile.write(b"1\r\n \r\n")
                self.wfile.flush()
                time.sleep(0.1)
        except OSError:  # the client has hung up
            self.close_connection = True


def _lacks_reasoning(body: Json) -> str:
    """What Kimi and DeepSeek say if an assistant's call of tools comes back without what was thought before it."""
    calls = [m for m in body["messages"] if m["role"] == "assistant" and m.get("tool_calls")]
    lacks = any(not message.get("reasoning_content") for message in calls)
    return "thinking is enabled but reasoning_content is missing in assistant tool call message" if lacks else ""


def _answer(question: Question, behaviour: str) -> Answer:
    if behaviour == "refused":
        return Answer("", [], "refused")
    tools = question.tools or [_function(question.form, {})]
    message = think({"messages": question.messages, "tools": tools}, question.form)
    calls = [{"id": f"call_{i}x", "name": c["name"], "args": c["args"]} for i, c in enumerate(message.tool_calls)]
    if question.way == "json_schema":
        text = json.dumps(calls[0]["args"]) if calls else str(message.text)
        return Answer(text[: len(text) * 2 // 3], [], "cut") if behaviour == "cut" else Answer(text, [], "stop")
    return Answer(str(message.text), calls, "stop")


@contextmanager
def serving_providers() -> Iterator[ProviderServer]:
    """Run the server in a thread until the block ends."""
    server = ProviderServer()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
