"""What chat servers write instead of a chat completion in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import pytest
from langchain_core.messages import AIMessage

from gems.errors import PAY_HINT, BackendError
from gems.graph.state import Requirement
from gems.models.form_reading import read_form
from gems.models.servers.completion_messages import read_content
from gems.models.servers.completions import read_completion, tidy_completion
from gems.models.servers.error_texts import error_message
from gems.models.unsupported_requests import is_not_understood
from gems.nodes.planner import Plan
from gems.nodes.question_ids import questions_of
from gems.nodes.verdict_forms import Verdicts

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
        b"".join(b"data: " + line + b"\n" for line in json.dumps(ANSWER, indent=1).encode().splitlines())
        + b"\ndata: [DONE]",
        json.dumps({"code": 0, "data": {"result": {"response": ANSWER}}}).encode(),
        b": OPENROUTER PROCESSING\n\n" + BODY,
        b"\xef\xbb\xbf" + BODY,
        json.dumps(ANSWER).encode("utf-16"),
        json.dumps(json.dumps(ANSWER)).encode(),
        b"[" + BODY + b"]",
        b"[" + BODY + b", " + BODY + b"]",
        json.dumps({"code": 0, "data": [ANSWER]}).encode(),
        json.dumps({"code": 0, "data": json.dumps(ANSWER)}).encode(),
        json.dumps({"data": {"result": ANSWER}}).encode(),
        json.dumps({"statusCode": 200, "body": json.dumps(ANSWER)}).encode(),
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


_COUNTED = {"prompt_tokens": 10, "completion_tokens": 5}
_IN = {"input_tokens": 7, "output_tokens": 5}
_THOUGHT = {"completion_tokens_details": {"reasoning_tokens": 3}}
_GOOGLE = {"promptTokenCount": 10, "candidatesTokenCount": 4}


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER | {"usage": _COUNTED},
        ANSWER | {"usage": {"input_tokens": 10, "output_tokens": 5}},
        ANSWER | {"usage": {"promptTokens": 10, "completionTokens": "5"}},
        ANSWER | {"usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 15}},
        ANSWER | {"usage": {"prompt_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 5, "total_tokens": 15}},
        ANSWER | {"usage": {"prompt_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 5}},
        ANSWER | {"usage": _IN | {"cache_creation_input_tokens": 2, "cache_read_input_tokens": 1}},
        ANSWER | {"usage": _IN | {"cacheReadInputTokens": 3, "cache_creation_input_tokens": None}},
        ANSWER | {"usage": {"prompt_tokens": 10, "cache_read_input_tokens": 3, "completion_tokens": 5}},
        ANSWER | {"usage": {"prompt_tokens": 10, "completion_tokens": 2, "reasoning_tokens": 3}},
        ANSWER | {"usage": _COUNTED | {"completion_tokens_details": {"reasoning_tokens": 3}}},
        ANSWER | {"usage": {"input_tokens": 10, "output_tokens": 1, "output_tokens_details": {"reasoningTokens": 4}}},
        ANSWER | {"usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12} | _THOUGHT},
        ANSWER | {"usage": None, "usageMetadata": _GOOGLE | {"thoughtsTokenCount": 1}},
        ANSWER | {"usage": {"prompt_tokens": 10, "total_tokens": 15}},
        ANSWER | {"usage": {"completion_tokens": 5, "total_tokens": 15}},
        ANSWER | {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "input_tokens": 10, "output_tokens": 5}},
        ANSWER | {"usage": None, "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 5}},
        ANSWER | {"usage": None, "x_groq": {"usage": _COUNTED}},
        ANSWER | {"usage": None, "choices": [ANSWER["choices"][0] | {"usage": _COUNTED}]},
        {"code": 0, "data": {"choices": ANSWER["choices"]}, "usage": _COUNTED},
        {"message": {"content": "a car"}, "done": True, "prompt_eval_count": 10, "eval_count": 5},
        {"content": "a car", "tokens_predicted": 5, "tokens_evaluated": 10, "stop": True},
        {"type": "message", "content": [{"text": "a car"}], "usage": {"input_tokens": 10, "output_tokens": 5}},
        (
            b'data: {"choices": [{"delta": {"content": "a car"}, '
            b'"usage": {"prompt_tokens": 10, "completion_tokens": 5}}]}\n\ndata: [DONE]'
        ),
        (
            b'data: {"choices": [{"delta": {"content": "a car"}}], "usage": {"prompt_tokens": 10, "total_tokens": 12}}'
            b'\n\ndata: {"choices": [{"finish_reason": "stop"}], "usage": {"prompt_tokens": 0, "completion_tokens": 5}}'
        ),
    ],
)
def test_tokens_are_counted_under_any_name(answer: Any) -> None:
    usage = tidy_completion(read_completion(answer) if isinstance(answer, bytes) else answer, "m")["usage"]
    assert {name: usage[name] for name in _COUNTED} == _COUNTED


def test_a_total_alone_is_counted_and_nothing_is_no_count() -> None:
    assert tidy_completion(ANSWER | {"usage": {"total_tokens": 15}}, "m")["usage"]["prompt_tokens"] == 15
    assert tidy_completion(ANSWER | {"usage": {"prompt_tokens": -3, "x": True}}, "m")["usage"]["total_tokens"] == 0
    assert tidy_completion({**ANSWER, "usage": None}, "m")["usage"] is None


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


# --- errors inside of a success -------------------------------------------------------------------------------------


def _failed(answer: object) -> BackendError:
    with pytest.raises(BackendError) as caught:
        tidy_completion(answer, "m")
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("answer", "says", "status", "passes"),
    [
        ({"choices": None, "base_resp": {"status_code": 1004, "status_msg": "login fail"}}, "login fail", 401, False),
        (
            {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
            "insufficient balance",
            402,
            False,
        ),
        ({"choices": [], "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, "rate limit", 429, True),
        (
            {"choices": None, "base_resp": {"status_code": 2013, "status_msg": "invalid params"}},
            "invalid params",
            None,
            False,
        ),
        ({"error": "the key is wrong"}, "the key is wrong", None, False),
        ({"error": {"msg": "the key is wrong", "code": 401}}, "the key is wrong", 401, False),
        ({"error_msg": "Access token invalid", "error_code": 110}, "Access token invalid", None, False),
        ({"errmsg": "no such app", "errcode": 4}, "no such app", None, False),
        ({"code": 401, "message": "unauthorized"}, "unauthorized", 401, False),
        ({"code": "InvalidApiKey", "message": "Invalid API-key provided."}, "Invalid API-key", 401, False),
        ({"code": 429, "msg": "slow down", "data": None}, "slow down", 429, True),
        ({"code": 1302, "msg": "too many requests", "success": False}, "too many requests", None, True),
        ({"detail": "Unauthorized"}, "Unauthorized", None, False),
        ({"detail": [{"loc": ["body", "model"], "msg": "no such model"}]}, "no such model", None, False),
        ({"status": 503, "title": "Service Unavailable", "detail": "no worker"}, "no worker", 503, True),
        ({"object": "error", "message": "the model is loading, try again", "code": 503}, "is loading", 503, True),
        ({"message": "Endpoint request timed out"}, "timed out", None, True),
        ({"errors": [{"message": "no route"}]}, "no route", None, False),
        ({"choices": None, "error": {"message": "You exceeded your current quota"}}, f"quota{PAY_HINT}", 402, False),
        ({"error": {"code": 402, "message": "Please top up"}}, f"Please top up{PAY_HINT}", 402, False),
        ({"error": "Incorrect API key provided"}, "Incorrect API key", 401, False),
        ({"error": {"code": 400, "message": "API key not valid"}}, "API key not valid", 401, False),
        ({"error": {"code": 413, "message": "Too much"}}, "give one with a larger context", 413, False),
        ({"error": {"code": 403, "message": "flagged"}}, "moderation refuses the words", 403, False),
        ({"object": "response", "status": "failed", "output": [], "error": {"message": "no"}}, "no", None, False),
        ({"error": {"code": 429, "message": "insufficient_quota"}}, "insufficient_quota", 429, False),
    ],
)
def test_an_error_inside_a_success_is_told_and_classed(
    answer: dict[str, Any], says: str, status: int | None, passes: bool
) -> None:
    error = _failed(answer)
    assert says in str(error)
    assert (error.status_code, error.retryable) == (status, passes)


@pytest.mark.parametrize(
    "extra",
    [
        {"base_resp": {"status_code": 0, "status_msg": ""}},
        {"base_resp": {"status_code": 0, "status_msg": "success"}},
        {"code": 0, "message": "success"},
        {"code": 200, "msg": "ok"},
        {"error": None},
        {"error": {}},
        {"error": {"code": 0, "message": ""}},
        {"error": {"code": 0, "message": "success"}},
        {"error": "None"},
        {"error": {"code": None, "message": None, "type": ""}},
        {"status": "completed", "detail": None},
    ],
)
def test_a_report_of_success_is_no_error(extra: dict[str, Any]) -> None:
    assert tidy_completion(ANSWER | extra, "m")["choices"][0]["message"]["content"] == "a red car"


@pytest.mark.parametrize("wrapper", ["data", "result", "output", "response"])
def test_a_completion_may_be_inside_of_a_report(wrapper: str) -> None:
    answer = tidy_completion({"code": 0, "msg": "ok", wrapper: ANSWER}, "m")
    assert answer["choices"][0]["message"]["content"] == "a red car"
    assert answer["usage"]["total_tokens"] == 7


@pytest.mark.parametrize(
    ("reason", "passes"),
    [
        ("abort", True),
        ("error", False),
        ("cancelled", True),
        ("ABORTED", True),
        ("engine_overloaded", True),
        ("server_error", True),
        ("MALFORMED_FUNCTION_CALL", False),
        ("network_error", True),
        ("repetition_stop", False),
    ],
)
@pytest.mark.parametrize("message", [{"content": ""}, {"content": None}, None, {"role": "assistant"}])
def test_an_answer_that_was_stopped_before_it_began_says_so(
    reason: str, passes: bool, message: dict[str, Any] | None
) -> None:
    error = _failed({"choices": [{"finish_reason": reason, "message": message}]})
    assert reason in str(error) or reason == "error"
    assert error.retryable is passes
    assert not is_not_understood(error)


@pytest.mark.parametrize(
    ("reason", "tidy"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("max_tokens", "length"),
        ("model_length", "length"),
        ("abort", "length"),
        ("eos", "stop"),
        ("STOP", "stop"),
        ("SAFETY", "content_filter"),
        ("sensitive", "content_filter"),
        (None, None),
        (7, None),
    ],
)
def test_a_reason_to_finish_has_other_names(reason: object, tidy: str | None) -> None:
    answer = {"choices": [{"finish_reason": reason, "message": {"content": "a red"}}]}
    assert tidy_completion(answer, "m")["choices"][0]["finish_reason"] == tidy


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c", "name": "Plan", "input": {"prompt": "a red car"}},
        {"type": "tool_use", "name": "Plan", "input": '{"prompt": "a red car"}'},
        {"function": {"name": "Plan", "input": {"prompt": "a red car"}}},
        {"function": {"name": "Plan", "arguments": None, "parameters": {"prompt": "a red car"}}},
        {"function": {"name": "Plan", "arguments": {"prompt": "a red car"}}},
        {"function": {"name": "Plan", "arguments": json.dumps(json.dumps({"prompt": "a red car"}))}},
        {"function": {"name": "Plan"}, "arguments": {"prompt": "a red car"}},
        {"function": "Plan", "args": {"prompt": "a red car"}},
        {"tool_name": "Plan", "parameters": {"prompt": "a red car"}},
    ],
)
@pytest.mark.parametrize("place", ["calls", "one", "content"])
def test_a_call_is_read_in_any_protocol(call: dict[str, Any], place: str) -> None:
    message: dict[str, Any] = {
        "calls": {"content": None, "tool_calls": [call]},
        "one": {"content": None, "tool_calls": call},
        "content": {"content": [{"type": "text", "text": ""}, {"type": "tool_use"} | call]},
    }[place]
    [choice] = tidy_completion({"choices": [{"message": message}]}, "m")["choices"]
    [tool_call] = choice["message"]["tool_calls"]
    assert tool_call["function"]["name"] == "Plan"
    assert json.loads(tool_call["function"]["arguments"]) == {"prompt": "a red car"}


FORM = '{"prompt": "a red car"}'


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": None, "parsed": {"prompt": "a red car"}}},
        {"message": {"content": "", "parsed": {"prompt": "a red car"}}},
        {"message": {"content": [{"type": "text", "text": FORM}]}},
        {"message": {"content": [{"type": "thinking", "thinking": "{}"}, {"type": "output_text", "text": FORM}]}},
        {"message": {"content": {"type": "text", "text": FORM}}},
        {"message": {"content": {"parts": [{"text": FORM}]}}},
        {"message": {"content": [{"type": "thinking", "thinking": "x"}, {"type": "text", "text": {"value": FORM}}]}},
        {"message": None, "delta": {"content": FORM}},
        {"message": {}, "text": FORM},
        {"message": {"content": None}, "delta": {"content": FORM}},
        {"text": FORM},
        {"content": FORM, "finish_reason": "stop"},
        {"messages": [{"role": "assistant", "content": FORM}]},
        {"message": FORM},
        {"message": {"role": "assistant", "text": FORM}},
    ],
)
def test_a_message_is_read_in_any_place(choice: dict[str, Any]) -> None:
    [tidy] = tidy_completion({"choices": [choice]}, "m")["choices"]
    assert read_form(AIMessage(tidy["message"]["content"]), Plan).prompt == "a red car"


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking", "reasoning_text"])
@pytest.mark.parametrize("value", [FORM, [{"type": "text", "text": FORM}], {"text": FORM}])
def test_an_answer_in_the_reasoning_alone_is_kept(name: str, value: object) -> None:
    [tidy] = tidy_completion({"choices": [{"message": {"content": "", name: value}}]}, "m")["choices"]
    thought = {"reasoning_content": tidy["message"]["reasoning_content"]}
    assert read_form(AIMessage("", additional_kwargs=thought), Plan).prompt == "a red car"


RAW_CALL = {"name": "Plan", "arguments": CALL["function"]["arguments"]}
REASONING = {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "I think"}]}
RESPONSE = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": FORM}]}


@pytest.mark.parametrize(
    "answer",
    [
        {"generated_text": FORM},
        [{"generated_text": FORM}],
        {"response": FORM, "done": True},
        {"result": {"response": FORM}, "success": True, "errors": []},
        {"output": {"text": FORM, "finish_reason": "stop"}},
        {"output_text": FORM},
        {"type": "message", "content": [{"type": "text", "text": FORM}], "stop_reason": "end_turn"},
        {"content": FORM, "stop": True},
        {"object": "response", "status": "completed", "output": [REASONING, RESPONSE]},
        {"object": "response", "status": "completed", "error": None, "output": [RESPONSE, REASONING]},
        {"data": {"object": "response", "status": "completed", "output": [REASONING, RESPONSE]}},
        {"candidates": [{"content": {"parts": [{"text": FORM}], "role": "model"}, "finishReason": "STOP"}]},
        {"candidates": [{"content": {"parts": [{"text": "I think", "thought": True}, {"text": FORM}]}}]},
    ],
)
def test_the_text_of_another_protocol_is_read(answer: Any) -> None:
    [tidy] = tidy_completion(answer, "m")["choices"]
    assert read_form(AIMessage(tidy["message"]["content"]), Plan).prompt == "a red car"


@pytest.mark.parametrize(
    "answer",
    [
        {"object": "response", "status": "completed", "output": [REASONING, {"type": "function_call", **RAW_CALL}]},
        {"candidates": [{"content": {"parts": [{"functionCall": RAW_CALL}]}, "finishReason": "STOP"}]},
    ],
)
def test_the_call_of_another_protocol_is_read(answer: Any) -> None:
    [tidy] = tidy_completion(answer, "m")["choices"]
    assert [call["function"] for call in tidy["message"]["tool_calls"]] == [CALL["function"]]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"object": "response", "output": [RESPONSE], "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
        ({"object": "response", "output": [], "incomplete_details": {"reason": "content_filter"}}, "content_filter"),
        ({"candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "MAX_TOKENS"}]}, "length"),
        ({"candidates": [{"finishReason": "SAFETY"}]}, "content_filter"),
        ({"promptFeedback": {"blockReason": "SAFETY"}}, "content_filter"),
    ],
)
def test_the_end_of_another_protocol_s_answer_is_read(answer: Any, reason: str) -> None:
    assert tidy_completion(answer, "m")["choices"][0]["finish_reason"] == reason


def test_a_refusal_of_the_responses_api_is_one() -> None:
    refusal = {"type": "message", "content": [{"type": "refusal", "refusal": "I will not do that."}]}
    [tidy] = tidy_completion({"object": "response", "output": [refusal]}, "m")["choices"]
    assert tidy["message"]["refusal"] == "I will not do that."


@pytest.mark.parametrize(
    "answer",
    [
        {"id": "r", "object": "response", "status": "completed", "output": []},
        {"id": "m", "type": "message", "role": "assistant", "content": []},
    ],
)
def test_what_an_empty_answer_is_called_is_no_error(answer: Any) -> None:
    assert "it has id" in str(_failed(answer))


def test_an_event_that_tells_of_an_error_is_one() -> None:
    body = b'event: error\ndata: {"type": "overloaded_error", "message": "too much to do"}\n\n'
    with pytest.raises(BackendError, match="too much to do"):
        tidy_completion(read_completion(body), "m")


@pytest.mark.parametrize("end", [b"", b"data: [DONE]\n\n"])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b'{"message": "upstream overloaded", "code": 529}', 529),
        (b'{"error": {"message": "upstream overloaded"}}', None),
        (b"upstream overloaded", None),
    ],
)
def test_an_event_of_an_error_amid_an_answer_is_told(data: bytes, status: int | None, end: bytes) -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": '{"prompt": "a re'}, "finish_reason": None}]}
    body = b"data: " + json.dumps(piece).encode() + b"\n\nevent: error\ndata: " + data + b"\n\n" + end
    with pytest.raises(BackendError, match="upstream overloaded") as caught:
        tidy_completion(read_completion(body), "m")
    assert caught.value.status_code == status
    assert caught.value.retryable


def test_an_event_of_an_error_behind_a_whole_answer_does_not_undo_it() -> None:
    piece = {"choices": [{"index": 0, "delta": {"content": FORM}, "finish_reason": "stop"}]}
    body = b"data: " + json.dumps(piece).encode() + b"\n\nevent: error\ndata: the client has gone\n\n"
    [choice] = tidy_completion(read_completion(body), "m")["choices"]
    assert choice["message"]["content"] == FORM


@pytest.mark.parametrize("name", ["functions.Plan", "functions.Plan:0", " Plan ", "tools.plan"])
def test_a_form_is_known_by_its_name_with_what_servers_put_around_it(name: str) -> None:
    message = AIMessage("", tool_calls=[{"name": name, "args": {"prompt": "a red car"}, "id": "c"}])
    assert read_form(message, Plan).prompt == "a red car"


def test_lines_of_json_are_a_stream() -> None:
    body = b"\n".join(
        json.dumps({"model": "m", "message": {"content": piece}, "done": piece == " car"}).encode()
        for piece in ("a", " red", " car")
    )
    [choice] = tidy_completion(read_completion(body), "m")["choices"]
    assert choice["message"]["content"] == "a red car"


FORM = '{"prompt": "a red car"}'


def _events(pieces: Sequence[str], name: str = "delta", last: str = "delta") -> bytes:
    choices = [{name: {"content": piece}, "finish_reason": None} for piece in pieces]
    choices[-1] = {last: {"content": pieces[-1]}, "finish_reason": "stop"}
    return b"".join(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n" for choice in choices)


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["a ", "car"], "a car"),
        (["a red", "a red car", "a red car at night"], "a red car at night"),
        (["{", '{"prompt": ', FORM], FORM),
        (["{", FORM], FORM),
        ([FORM[:9], FORM[9:], FORM], FORM),
        ([FORM, FORM], FORM),
        (["ha", "ha"], "haha"),
        (["1", "12"], "112"),
        (["a red car", "a red bus"], "a red cara red bus"),
        (["", "a ", "", "car"], "a car"),
    ],
)
@pytest.mark.parametrize("names", [("delta", "delta"), ("message", "message"), ("delta", "message")])
def test_a_stream_may_repeat_the_text_so_far(pieces: list[str], text: str, names: tuple[str, str]) -> None:
    completion = tidy_completion(read_completion(_events(pieces, *names)), "m")
    is_whole = names == ("delta", "message")  # the last event has the message itself
    assert completion["choices"][0]["message"]["content"] == (pieces[-1] if is_whole else text)


def test_streamed_arguments_may_repeat_what_came_before() -> None:
    for pieces in ([FORM[:9], FORM[9:]], [FORM[:9], FORM], [None, FORM], [FORM, ""], [json.loads(FORM), None]):
        calls = [[{"index": 0, "id": "c", "function": {"name": "Plan", "arguments": piece}}] for piece in pieces]
        events = [json.dumps({"choices": [{"delta": {"tool_calls": call}}]}).encode() for call in calls]
        completion = tidy_completion(read_completion(b"".join(b"data: " + event + b"\n\n" for event in events)), "m")
        [call] = completion["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == json.loads(FORM)


_VERDICTS = '{"verdicts": [{"id": "r1", "answer": "yes"}]}'


@pytest.mark.parametrize(
    "answer",
    [
        {"choices": [{"message": {"content": _VERDICTS}, "finish_reason": "error", "error": {"message": "lost"}}]},
        {"choices": [{"message": {"content": _VERDICTS}, "error": {"code": 502, "message": "the stream died"}}]},
        {"results": [{"text": _VERDICTS, "finish_reason": "stop"}]},
    ],
)
def test_an_error_after_a_whole_answer_does_not_undo_it(answer: dict[str, Any]) -> None:
    [choice] = tidy_completion(answer, "m")["choices"]
    assert choice["message"]["content"] == _VERDICTS


@pytest.mark.parametrize("lost", [1, 2, 3, 20])
def test_a_torn_completion_with_a_whole_answer_is_read(lost: int) -> None:
    answer = {"choices": [{"message": {"role": "assistant", "content": _VERDICTS}, "finish_reason": "stop"}]}
    body = json.dumps(answer).encode()[:-lost]
    [choice] = tidy_completion(read_completion(body), "m")["choices"]
    assert choice["message"]["content"] == _VERDICTS


@pytest.mark.parametrize(
    "pieces",
    [
        ["Sure! Here is what the"],
        ["Is there a car?\n", "Is the c"],
        ["I see [1] car"],
        [""],
    ],
)
def test_a_stream_of_prose_without_an_end_is_not_taken_for_a_whole_answer(pieces: list[str]) -> None:
    events = b"".join(_event({"content": piece}) for piece in pieces)
    with pytest.raises(BackendError, match="torn") as caught:
        tidy_completion(read_completion(events), "m")
    assert caught.value.retryable
    for end in (b"data: [DONE]\n\n", _event({}, "stop"), b'{"message": {"content": ""}, "done": true}\n'):
        [choice] = tidy_completion(read_completion(events + end), "m")["choices"]
        assert choice["message"]["content"] == "".join(pieces)


def test_a_torn_answer_says_so_and_nothing_of_roles() -> None:
    answer = {"choices": [{"message": {"role": "assistant", "content": _VERDICTS}, "finish_reason": "stop"}]}
    with pytest.raises(BackendError, match="torn") as caught:
        tidy_completion(read_completion(json.dumps(answer).encode()[:70]), "m")
    assert "role" not in caught.value.reason


FORM = json.dumps(
    {"requirements": [{"id": "r1", "question": "Is there a dog?"}, {"id": "r2", "question": "Is it red?"}]}
)


@pytest.mark.parametrize(
    "pieces",
    [
        [{"content": FORM[:20]}, {"content": FORM[20:60]}],
        [{"content": "```json\n" + FORM[:60]}],
        [{"tool_calls": [{"index": 0, "id": "c", "function": {"name": "Requirements", "arguments": FORM[:60]}}]}],
    ],
)
def test_a_stream_that_breaks_off_amid_an_answer_is_torn(pieces: list[dict[str, Any]]) -> None:
    with pytest.raises(BackendError, match="torn") as error:
        tidy_completion(read_completion(b"".join(map(_event, pieces))), "m")
    assert error.value.retryable


@pytest.mark.parametrize("end", [_event({}, "length"), b"data: [DONE]\n\n"])
def test_a_stream_that_ends_amid_an_answer_by_its_own_words_is_not_torn(end: bytes) -> None:
    answer = tidy_completion(read_completion(_event({"content": FORM[:60]}) + end), "m")
    assert answer["choices"][0]["message"]["content"] == FORM[:60]


def test_a_stream_without_an_end_is_taken_if_its_answer_is_whole() -> None:
    answer = tidy_completion(read_completion(_event({"content": FORM[:60]}) + _event({"content": FORM[60:]})), "m")
    assert answer["choices"][0]["message"]["content"] == FORM


_SPLIT: Final = [{"type": "text", "text": '{"prompt": '}, {"type": "text", "text": '"a cat"}'}]


@pytest.mark.parametrize(
    "parts",
    [
        [*_SPLIT, None],
        [None, *_SPLIT],
        [_SPLIT[0], None, _SPLIT[1], ""],
        [*_SPLIT, {"type": "text", "text": None}],
        [{"type": "reasoning", "text": 'I think {"prompt": "no"}'}, *_SPLIT],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, *_SPLIT],
        [*_SPLIT, None, {"type": "image_url", "image_url": {"url": "x"}}],
        [*_SPLIT, {"type": "unheard_of", "value": 7}],
        ['{"prompt": ', None, '"a cat"}'],
        [{"text": '{"prompt": '}, None, {"text": {"value": '"a cat"}'}}],
        [{"type": "thinking", "text": '{"prompt": "a cat"}'}],
    ],
)
def test_what_is_no_text_among_the_parts_of_an_answer_is_left_out(parts: list[Any]) -> None:
    assert read_content(parts) == '{"prompt": "a cat"}'


@pytest.mark.parametrize("parts", [[], [None], [{"type": "image_url", "image_url": {"url": "x"}}]])
def test_parts_without_a_text_are_no_answer(parts: list[Any]) -> None:
    assert read_content(parts) == ""


@pytest.mark.parametrize("rows", [[["r1", "yes", 0.9], None], [{"question": "Is it red?"}], [1, 2]])
def test_an_answer_that_was_parsed_already_is_no_list_of_parts(rows: list[Any]) -> None:
    assert json.loads(read_content(rows)) == rows
