"""What is read out of the errors of servers, in whatever shape they come."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gems.errors import is_unpaid, meant_status
from gems.models.servers.comfyui_faults import failure_of, is_complete, node_faults
from gems.models.servers.error_texts import error_message, is_refusal, words_of


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b'{"detail": [{"msg": "too long", "input": "' + b"A" * 2**24, "too long"),
        (b'{"error": "flagged", "numbers": [' + b"1," * 2**23, "flagged"),
        (b"[" + b"{}," * 2**22, ""),
        (b"content policy " * 2**20, "content policy"),
    ],
    ids=["an echo", "numbers", "objects", "text"],
)
def test_of_a_very_long_error_the_beginning_is_read(body: bytes, says: str) -> None:
    began = time.process_time()
    assert error_message(body)[: len(says)] == says
    assert is_refusal(body) == (says in ("flagged", "content policy"))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"error": {"message": "bad key", "type": "auth", "code": None}}, "bad key"),
        (
            {"error": "OutOfMemoryError", "detail": "", "body": "", "errors": "CUDA out of memory"},
            "OutOfMemoryError: CUDA out of memory",
        ),
        (
            {"type": "about:blank", "title": "Bad Request", "detail": "width is odd", "status": 400},
            "Bad Request: width is odd",
        ),
        ({"error": "invalid_request", "error_description": "no such model"}, "invalid_request: no such model"),
        (
            {"errors": {"width": ["must be even", "is small"], "steps": "many"}},
            "width: must be even; is small; steps: many",
        ),
        ({"errors": [["deep"], None, 7]}, "deep; 7"),
        ({"ERROR": {"Message": "loud"}}, "loud"),
        ({"error": True, "message": "broken"}, "broken"),
        ({"error": json.dumps({"detail": [{"loc": ["body", "n"], "msg": "must be 1"}]})}, "body.n: must be 1"),
        ({"error": {"code": "InvalidParameter"}}, "InvalidParameter"),
        ({"error": {"message": "slow", "details": [{"@type": "type.googleapis.com/x"}]}}, "slow"),
        ([{"error": {"message": "in a list"}}], "in a list"),
        ("only a text", "only a text"),
        ({"error": "<html><body>502</body></html>"}, ""),
        ({"created": 1, "data": []}, ""),
        (None, ""),
    ],
)
def test_an_error_becomes_what_matters(answer: Any, says: str) -> None:
    assert error_message(json.dumps(answer).encode()) == says


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "type", "x", "node_id", "status"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(_JSON)
def test_no_shape_of_an_error_is_a_fault_of_ours(answer: Any) -> None:
    assert isinstance(error_message(json.dumps(answer).encode()) + words_of(answer), str)
    assert isinstance(node_faults(answer), list)
    assert isinstance(failure_of(answer), str)
    assert isinstance(answer, dict) is False or is_complete(answer) in (True, False)


@pytest.mark.parametrize(
    ("text", "spent"),
    [
        ("insufficient_quota", True),
        ("litellm.RateLimitError: Budget has been exceeded! Current cost: 10, Max budget: 5", True),
        ("RateLimitError: OpenAIException - You exceeded your current quota, please check your plan", True),
        ("the thinking budget of 64000 tokens is exceeded", False),
        ("You exceeded your current quota, please check your plan and billing details.", True),
        ("billing_hard_limit_reached", True),
        ("Insufficient credits. Add more", True),
        ("You are out of credits", True),
        ("Your credit balance is too low", True),
        ("quota has been exhausted", True),
        ("Rate limit reached, try again in 20s; add a payment method at /account/billing to raise it", False),
        ("You exceeded your current quota: 10 requests per minute, retryDelay 34s", False),
        ("User is locked. Reason: Exhausted balance. Top up your balance at fal.ai/dashboard/billing.", True),
        ("Your balance is exhausted", True),
        ("This model requires a paid plan.", True),
        ("Image generation is not included in your current free plan", True),
        ("only available on the Pro tier", True),
        ("Rate limit reached; upgrade to a paid plan for more", False),
        ("The free plan allows 5 requests per minute; more requires a paid plan", False),
        ("slow down", False),
        ("no GPU left", False),
    ],
)
def test_money_that_is_spent_is_told_from_a_pause(text: str, spent: bool) -> None:
    assert is_unpaid(text) is spent


@pytest.mark.parametrize(
    ("status", "text", "meant"),
    [
        (400, "Incorrect API key provided: xa***. You can obtain an API key from https://console.x.ai.", 401),
        (400, "API key not valid. Please pass a valid API key.", 401),
        (400, "API key expired. Please renew the API key.: API_KEY_INVALID", 401),
        (400, "the prompt has no key", 400),
        (400, "The key 'seed' is not valid", 400),
        (400, "Rate limit reached for this API key", 429),
        (500, "API key not valid", 500),
    ],
)
def test_a_wrong_key_is_told_from_a_bad_request(status: int, text: str, meant: int) -> None:
    assert meant_status(status, text) == meant


@pytest.mark.parametrize(
    ("node_errors", "faults"),
    [
        (
            {"4": {"errors": [{"message": "Value not in list", "details": "ckpt"}], "class_type": "Loader"}},
            ["node 4 (Loader): Value not in list: ckpt"],
        ),
        (
            {"4": {"exception_message": "no VRAM", "exception_type": "OOM", "class_type": "KSampler"}},
            ["node 4 (KSampler): no VRAM"],
        ),
        ({"4": {"errors": [], "exception_message": "no VRAM"}}, ["node 4: no VRAM"]),
        ({"4": "it is wrong"}, ["node 4: it is wrong"]),
        ({"4": ["wrong", "and again"]}, ["node 4: wrong", "node 4: and again"]),
        ({"4": {"errors": "wrong"}}, ["node 4: wrong"]),
        ({"4": {"errors": {"ckpt_name": ["not in list"]}}}, ["node 4: ckpt_name: not in list"]),
        ({"4": {"errors": ["wrong", None]}, "5": None, "6": {"errors": None, "class_type": "X"}}, ["node 4: wrong"]),
        ([{"node_id": 4, "class_type": "Loader", "message": "wrong"}], ["node 4 (Loader): wrong"]),
        ([{"class_type": "Loader", "message": "wrong"}], ["a node (Loader): wrong"]),
        ("all wrong", ["all wrong"]),
        (None, []),
        ({"4": {"class_type": "X", "dependent_outputs": ["9"], "errors": None}}, []),
    ],
)
def test_node_errors_in_any_shape(node_errors: Any, faults: list[str]) -> None:
    assert node_faults(node_errors) == faults


@pytest.mark.parametrize(
    ("entry", "failure", "complete"),
    [
        (
            {
                "status": {
                    "status_str": None,
                    "completed": False,
                    "messages": [["execution_interrupted", {"node_id": 1}]],
                }
            },
            "it was interrupted on the server",
            None,
        ),
        ({"status": {"status_str": "Cancelled"}}, "it was interrupted on the server", None),
        (
            {"status": {"status_str": "error", "messages": [["execution_error", {"exception_message": "no VRAM"}]]}},
            "no VRAM",
            None,
        ),
        (
            {"status": {"messages": [["execution_error", {"node_id": 3, "node_type": "K", "exception_type": "OOM"}]]}},
            "node 3 (K): OOM",
            None,
        ),
        ({"status": {"status_str": "error"}, "meta": {"9": {"x": "y"}}}, "no reason given", None),
        ({"status": "error", "error": "boom"}, "boom", None),
        ({"status": {"status_str": "running", "completed": False}, "outputs": {}}, "", False),
        ({"status": {"status_str": "queued"}}, "", False),
        ({"status": {"status_str": None, "completed": False, "messages": []}}, "", False),
        ({"status": {"status_str": "success"}, "outputs": {}}, "", True),
        ({"status": {"messages": ["execution_success"]}}, "", True),
        ({"status": None, "outputs": {}}, "", True),
        ({"status": {"completed": False}, "outputs": {"8": {"images": [{"filename": "half.png"}]}}}, "", False),
        ({"status": "running", "outputs": {"8": {"images": [{"filename": "half.png"}]}}}, "", False),
        ({"status": {}, "outputs": {"9": {"images": []}}}, "", True),
    ],
)
def test_what_is_over_is_told_from_what_goes_on(entry: Any, failure: str, complete: bool | None) -> None:
    assert failure_of(entry) == failure
    assert complete is None or is_complete(entry) is complete


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"code": "1301", "message": "\u7cfb\u7edf\u68c0\u6d4b\u5230\u654f\u611f\u5185\u5bb9"}},
        {"error": {"code": 1301, "message": "no"}},
        {"code": "DataInspectionFailed", "message": "Input data may contain inappropriate content."},
        {"error": {"code": "data_inspection_failed", "message": "no"}},
        {"base_resp": {"status_code": 1026, "status_msg": "input new_sensitive"}},
        {"base_resp": {"status_code": 1027, "status_msg": ""}},
        {"error": {"code": "InputTextSensitiveContentDetected", "message": "no"}},
        {"Response": {"Error": {"Code": "OperationDenied.TextIllegalDetected"}}},
        {"name": "content_moderation", "errors": ["Your request was flagged by our content moderation system"]},
        {"status": "Request Moderated"},
        {"error": "Generated image rejected by content moderation."},
        {"success": False, "error": "Prompt failed the initial safety check."},
        {"error": {"message": "The prompt contains words that violate Google's Responsible AI practices."}},
        {"message": "This request has been blocked by our content filters."},
        {"error": "NSFW content detected. Try running it again."},
        {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}},
    ],
)
def test_what_providers_say_of_prompts_that_they_do_not_draw(answer: Any) -> None:
    assert is_refusal(json.dumps(answer).encode())


@pytest.mark.parametrize(
    "answer",
    [
        {"error": {"message": "CUDA out of memory"}},
        {"base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}},
        {"error": {"code": 13010, "message": "no such model"}},
        {"error": {"message": "unknown parameter: safety_checker"}},
        {"error": {"message": "prompt is too long"}},
        {"error": {"message": "size must be 1024x1024", "request_id": "1301"}},
        {"error": {"message": "names of models are case-sensitive"}},
        {"error": {"message": "guidance must be moderate"}},
    ],
)
def test_other_faults_are_no_refusals(answer: Any) -> None:
    assert not is_refusal(json.dumps(answer).encode())
