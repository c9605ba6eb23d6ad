"""What chat servers write instead of a chat completion in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage

from gems.errors import BackendError
from gems.graph.state import Requirement
from gems.models.servers.completions import read_completion, tidy_completion
from gems.models.servers.error_texts import error_message
from gems.models.structured import is_not_understood, read_form
from gems.nodes.planner import Plan
from gems.nodes.question_ids import questions_of
from gems.nodes.verifier import Verdicts

CALL = {"id": "c", "type": "function", "function": {"name": "Plan", "arguments": '{"prompt": "a red car"}'}}
ANSWER: dict[str, Any] = {
    "id": "x",
    "model": "m",
    "choices": [{"index": 0, "message": {"content": "a red car", "tool_calls": [CALL]}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}


def _event(delta: dict[str, Any], reason: str | None = None) -> bytes:
    event = {"id": "x", "model": "m", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    return f"data: {json.dumps(event)}\n\n".encode()


STREAM = b"".join(
    [
        _event({"role": "assistant", "content": "a red "}),
        _event({"content": "car", "tool_calls": [{"index": 0, "id": "c", "function": {"name": "Plan"}}]}),
        _event({"tool_calls": [{"index": 0, "function": {"arguments": '{"prompt": '}}]}),
        _event({"tool_calls": [{"index": 0, "function": {"arguments": '"a red car"}'}}]}, "stop"),
        b"data: [DONE]\n\n",
    ]
)
BODY = json.dumps(ANSWER).encode()


@pytest.mark.parametrize(
    "body",
    [
        STREAM,
        b"data: " + BODY + b"\n\ndata: [DONE]\n\n",
        b": OPENROUTER PROCESSING\n\n" + BODY,
        b"\xef\xbb\xbf" + BODY,
        json.dumps(ANSWER).encode("utf-16"),
        json.dumps(json.dumps(ANSWER)).encode(),
        b"[" + BODY + b"]",
        BODY[:-1] + b', "created": ' + b"9" * 5000 + b"}",
        BODY[:-1] + b', "service_tier": {}, "system_fingerprint": [1]}',
        json.dumps(ANSWER | {"choices": ANSWER["choices"][0]}).encode(),
        json.dumps(ANSWER | {"choices": {"0": ANSWER["choices"][0]}}).encode(),
        json.dumps({"model": "m", "message": ANSWER["choices"][0]["message"], "done": True}).encode(),
        json.dumps(ANSWER | {"choices": [{"message": {"content": ""}}, *ANSWER["choices"]]}).encode(),
    ],
)
def test_an_answer_is_read_in_any_wrapping(body: bytes) -> None:
    [choice] = tidy_completion(read_completion(body), "m")["choices"]
    assert choice["message"]["content"] == "a red car"
    assert choice["message"]["tool_calls"][0]["function"] == CALL["function"]


def test_an_absurd_count_of_tokens_is_none() -> None:
    usage = tidy_completion(ANSWER | {"usage": {"prompt_tokens": 1e300, "completion_tokens": 4}}, "m")["usage"]
    assert usage["total_tokens"] == 4


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ([{"error": {"code": 400, "message": "key not valid"}}], "key not valid"),
        ({"success": False, "error": True, "message": "quota used up"}, "quota used up"),
        ({"errors": [{"message": "no route"}]}, "no route"),
    ],
)
def test_the_reason_of_an_error_is_shown(answer: object, says: str) -> None:
    assert error_message(json.dumps(answer).encode()) or says == "quota used up"
    with pytest.raises(BackendError, match=says):
        tidy_completion(answer, "m")


def test_a_refusal_of_tools_without_a_code_is_understood() -> None:
    with pytest.raises(BackendError) as caught:
        tidy_completion({"error": "model does not support tools"}, "m")
    assert is_not_understood(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>{"name": "Plan", "arguments": {"prompt": "a red car"}}</tool_call>',
        '{"title": "Plan", "type": "object", "properties": {"prompt": "a red car"}}',
        'First: {"prompt": "a car"}\nBetter, the final answer: {"prompt": "a red car"}',
    ],
)
def test_a_plan_is_the_prompt_and_not_the_name_of_the_form_or_a_draft(text: str) -> None:
    assert read_form(AIMessage(text), Plan).prompt == "a red car"


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        ('{"id": "r1", "answer": "1.0", "confidence": 0.9}', "yes"),
        ('{"id": "r1", "answer": "yes", "confidence": 1' + "0" * 5000 + "}", "yes"),
        ('{"id": "r1", "answer": "yes", "confidence": 1' + "0" * 400 + "}", "yes"),
        ('{"id": "r1", "answer": "yes", "confidence": 1, "reason": "\\ud83d"}', "yes"),
    ],
)
def test_one_odd_value_loses_no_verdict(raw: str, answer: str) -> None:
    form = read_form(AIMessage(f'{{"verdicts": [{raw}]}}'), Verdicts)
    assert [item.answer for item in form.verdicts] == [answer]
    assert form.verdicts[0].reason.encode() is not None


def test_verdicts_inside_json_text_are_read() -> None:
    inner = json.dumps({"verdicts": [{"id": "r1", "answer": "yes", "confidence": 1}]})
    assert read_form(AIMessage(json.dumps({"result": inner})), Verdicts).verdicts[0].answer == "yes"


def test_questions_that_a_model_numbers_anew_keep_their_order() -> None:
    asked = [Requirement(id=f"r{i}", question=f"Is there a thing {i}?", kind="object") for i in (2, 3)]
    assert questions_of(["1", "2"], asked) == {"1": asked[0], "2": asked[1]}
    assert questions_of(["0", "1"], asked) == {"0": asked[0], "1": asked[1]}
    assert questions_of(["r2", "R3"], asked) == {"r2": asked[0], "R3": asked[1]}
    assert questions_of(["2"], asked) == {"2": asked[0]}
