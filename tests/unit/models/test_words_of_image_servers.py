"""What image servers say with status 200 in place of an image, and beside one; and what may be repeated of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import ScriptedChatModel
from langgraph.checkpoint.sqlite import SqliteSaver
from PIL import Image
from servers.scripted_images import ScriptedServer, answering, draw, encoded, file_of, in_json, spent_images

import gems
from gems.errors import BackendError
from gems.memory.image_store import ImageStore
from gems.models.generators import GeneratedImage
from gems.models.servers.completion_errors import server_error

FINAL = encoded(Image.linear_gradient("L").resize((32, 24)))
EARLY = encoded(Image.radial_gradient("L").resize((16, 16)))
GOOD = in_json({"data": [{"b64_json": FINAL}]})
KEY = "s3cr3t-canary-09"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits between tries."""
    monkeypatch.setattr("gems.models.servers.retries._WAIT", lambda _: 0.01)


# --- busy, unpaid, locked -------------------------------------------------------------------------------------------

BUSY = [
    {"error": {"message": "Wait a bit", "type": "rate_limit_error", "code": "rate_limit_exceeded"}},
    {"error": {"message": "Wait a bit", "type": "server_overloaded"}},
    {"error": {"message": "Wait a bit", "code": "TooManyRequests"}},
    {"error": {"message": "Wait a bit", "code": "ServerBusy"}},
    {"error": {"message": "Wait a bit", "status": "RESOURCE_EXHAUSTED"}},
    {"error": {"message": "You have exceeded your rate limit"}},
    {"error": {"message": "Request was throttled. Expected available in 1 second."}},
    {"error": "quota: too many requests"},
    {"error": "Please slow down"},
    {"error": "GPU out of capacity, try later"},
    {"error": "rate_limit_exceeded"},
    {"id": "x", "error": "server_overloaded"},
    {"status": 429, "message": "Wait a bit"},
    {"code": 429, "msg": "Wait a bit"},
    {"code": "429", "msg": "Wait a bit"},
    {"data": {"error": {"code": 429}}},
    [{"error": {"code": 503, "message": "Wait a bit"}}],
    {"base_resp": {"status_code": 1002, "status_msg": "Wait a bit"}},
]


@pytest.mark.parametrize("fault", BUSY)
@pytest.mark.parametrize("kind", ["openai", "http"])
def test_a_server_that_says_that_it_is_busy_is_asked_again(fault: Any, kind: str) -> None:
    with answering(in_json(fault), in_json(fault), in_json(fault), in_json(fault), GOOD) as server:
        result = draw(server.openai() if kind == "openai" else server.plain())
    assert isinstance(result, GeneratedImage), result
    assert len(server.posts) == 5, "nothing was drawn for those before, so that they do not count as lost images"


@pytest.mark.parametrize(
    ("fault", "advice"),
    [
        ({"error": {"message": "insufficient balance", "code": 402}}, "pay for more"),
        ({"error": {"message": "Insufficient balance", "type": "rate_limit_error"}}, "pay for more"),
        ({"error": {"message": "Insufficient balance", "code": "rate_limit_exceeded"}}, "pay for more"),
        ({"error": {"message": "Insufficient credits", "code": 429}}, "pay for more"),
        ({"error": "You are out of credits"}, "pay for more"),
        ({"base_resp": {"status_code": 1008, "status_msg": "no"}}, "pay for more"),
        ({"error": {"message": "Invalid API key", "code": 401}}, "set the right key"),
        ({"error": "Incorrect API key provided"}, "set the right key"),
        ({"code": 403, "msg": "token expired"}, "set the right key"),
        ({"base_resp": {"status_code": 1004, "status_msg": "login fail"}}, "set the right key"),
        ({"error": "cannot draw 'a throttled engine'"}, ""),
        ({"error": {"message": "cannot draw it", "code": 400}}, ""),
        ({"id": "j1", "status": "queued", "message": "no idle worker"}, ""),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "http"])
def test_a_fault_that_does_not_pass_is_told_at_once_with_what_to_do(fault: Any, advice: str, kind: str) -> None:
    with answering(in_json(fault)) as server:
        result = draw(server.openai() if kind == "openai" else server.plain())
    assert isinstance(result, BackendError)
    assert len(server.posts) == 1
    assert advice in str(result)
    assert bool(advice) is ("; " in str(result)), result


@pytest.mark.parametrize(
    ("status", "answer"),
    [
        (202, {"id": "j1", "status": "queued"}),
        (200, {"id": "j1", "status": "queued", "message": "no idle worker"}),
        (200, {"id": "j1", "polling_url": "/j1"}),
        (200, {"id": "j1", "status": "starting", "error": None, "urls": {"get": "/j1"}}),
        (200, {"code": 0, "message": "success", "data": {"task_id": "j1"}}),
        (200, {"code": 200, "message": "success", "data": {"id": "j1", "status": "created", "error": ""}}),
        (200, {"code": 200, "data": [{"task_id": "j1", "status": "submitted"}]}),
        (200, {"code": 200, "msg": "success", "data": {"taskId": "j1", "error": {"code": 0, "message": ""}}}),
        (200, {"output": {"task_id": "j1", "task_status": "PENDING"}, "request_id": "r"}),
        (200, {"task_id": "j1", "base_resp": {"status_code": 0, "status_msg": "success"}}),
        (200, {"id": "j1", "status": "pending", "usage": {"billing_rule": "per_call", "credits_reserved": 20}}),
        (200, {"id": "j1", "message": "Queued. Billing: 2 credits.", "input": "a bill of an insufficient balance"}),
        (200, {"code": 1, "description": "提交成功", "result": "1320098173412546"}),
        (200, {"code": 22, "description": "排队中，前面还有1个任务", "result": "0741798445574458"}),
        (200, {"id": "j1", "kudos": 10.5, "message": "Your request has been queued, 12 ahead of you"}),
        (200, {"id": "j1", "message": "Your request is taken care of"}),
        (200, {"requestId": "abc", "message": "Task created successfully"}),
        (200, {"request_id": "abc", "gateway_request_id": "abc"}),
        (200, {"success": True, "message": "Request accepted", "id": "x"}),
        (200, {"result": {"requestId": "123"}, "ok": True}),
        (200, {"sdGenerationJob": {"generationId": "123-456", "apiCreditCost": 11}}),
        (200, {"uuid": "3fa85f64-5717-4562-b3fc-2c963f66afa6"}),
        (200, "3fa85f64-5717-4562-b3fc-2c963f66afa6"),
        (200, {"message": "Workflow was started"}),
        (200, {"message": "Job enqueued. If it fails, you will not be charged."}),
        (200, {"message": "Your image is being generated. Check back soon.", "generationId": "x"}),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "plain"])
def test_a_request_that_was_taken_as_a_job_counts_as_an_image_and_is_told_as_one(
    status: int, answer: Any, kind: str
) -> None:
    with answering(in_json(answer, status)) as server:
        assert "it draws in the background" in str(draw(getattr(server, kind)()))
        assert spent_images(getattr(server, kind)()) == 1
        assert len(server.posts) == 2


@pytest.mark.parametrize(
    "fault",
    [
        {"id": "j1", "status": "failed"},
        {"id": "j1", "message": "the prompt is too long"},
        {"task_id": "j1", "error": {"message": "no such model"}},
        {"task_id": "", "base_resp": {"status_code": 2013, "status_msg": "invalid params"}},
        {"error": {"message": "no such model", "type": "invalid_request_error"}},
        {"id": "j1", "message": "You are out of credits"},
        {"id": "j1", "message": "The task could not be created"},
        {"success": False, "message": "余额不足", "id": "j1"},
        {"success": False, "message": "Come back tomorrow", "id": "j1"},
        {"code": 1102, "msg": "The credits are insufficient, please recharge"},
        {"status": "NOT_FOUND", "message": "job not found", "id": "x"},
        {"code": 4, "description": "任务提交失败", "result": "1320098173412546"},
    ],
)
def test_a_fault_counts_as_no_image(fault: Any) -> None:
    with answering(in_json(fault)) as server:
        assert "in the background" not in str(draw(server.openai()))
        assert spent_images(server.openai()) == 0
        assert len(server.posts) == 2


@pytest.mark.parametrize(
    "fault",
    [
        {"error": {"message": "The server had an error while processing your request", "type": "server_error"}},
        {"error": {"message": "Wait a bit", "code": "InternalServerError"}},
        {"error": {"message": "Wait a bit", "status": "INTERNAL"}},
        {"error": "Internal server error"},
    ],
)
@pytest.mark.parametrize("kind", ["openai", "plain"])
def test_an_error_of_the_servers_own_is_one_of_status_500(fault: Any, kind: str) -> None:
    with answering(in_json(fault), GOOD) as server:
        assert isinstance(draw(getattr(server, kind)()), GeneratedImage)
        assert len(server.posts) == 2
    with answering(in_json(fault)) as server:
        assert spent_images(getattr(server, kind)()) == len(server.posts) == 3, "each may have been charged"


BLANK = encoded(Image.new("RGBA", (32, 24)))


@pytest.mark.parametrize(
    "answer",
    [
        (202, b"", "text/plain"),
        (204, b"", "text/plain"),
        (200, b"\x00\x01\x02\x00", "application/pdf"),
        (200, b"<html>Sign in</html>", "text/html"),
        in_json({"data": []}),
        in_json({"data": None, "message": "success"}),
        in_json({"message": "Thank you"}),
        in_json({"message": "See you soon", "usage": {"billing_rule": "per_call"}}),
        in_json("thank you"),
        in_json({"data": [{"b64_json": BLANK}], "nsfw": True}),
        in_json({"data": [{"b64_json": BLANK}]}),
        in_json({"data": [{"url": "http://images.example.com/a.png"}]}),
        in_json({"data": [{"url": "http://[/a.png"}]}),
        (200, file_of(Image.new("L", (32, 24)), "GIF"), "image/gif"),
    ],
)
@pytest.mark.parametrize("kind", ["openai", "plain"])
def test_what_a_server_has_accepted_counts_for_each_request(answer: Any, kind: str) -> None:
    with answering(answer) as server:
        assert spent_images(getattr(server, kind)()) == len(server.posts) >= 1


@pytest.mark.parametrize("answer", [in_json({"id": "j1", "status": "queued"}), in_json({"data": []})])
def test_a_budget_of_images_bounds_the_requests_that_bring_none(answer: Any) -> None:
    with answering(answer) as server:
        assert spent_images(server.openai(), total=2, rounds=5) == len(server.posts) <= 2


@pytest.mark.parametrize(("status", "says"), [(401, "set the right key"), (402, "pay for more")])
def test_a_check_of_a_server_that_does_not_take_the_key_fails(status: int, says: str) -> None:
    with answering((status, b"", "text/plain")) as server, pytest.raises(BackendError, match=says):
        server.plain().check()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "answer",
    [
        {"data": [{"url": "data:image/svg+xml,%3Csvg\ud83d"}]},
        {"data": [{"url": "/\ud83d.png"}]},
        {"error": {"message": "no \ud83d", "code": "\udcff"}},
    ],
)
def test_half_a_character_in_an_answer_is_one_error(answer: Any) -> None:
    with answering(in_json(answer)) as server:
        result = draw(server.openai())
        assert isinstance(result, BackendError)
        assert not result.retryable
        assert len(server.posts) == 1
    str(result).encode()


@pytest.mark.parametrize("kind", ["openai", "http"])
@pytest.mark.parametrize("page", [b"<!doctype html><title>Sign in</title>", b"\n<html><body>Log in</body></html>"])
def test_a_page_in_place_of_an_image_is_called_one(page: bytes, kind: str) -> None:
    with answering((200, page, "text/html")) as server:
        result = draw(server.openai() if kind == "openai" else server.plain())
    assert "a page, such as one to log in" in str(result)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"Client sent an HTTP request to an HTTPS server.\n", "text/plain"),
        (b"<html><title>400 The plain HTTP request was sent to HTTPS port</title></html>", "text/html"),
    ],
)
def test_a_server_that_speaks_tls_alone_is_told_with_the_right_scheme(body: bytes, kind: str) -> None:
    with answering((400, body, kind)) as server:
        assert "begin its address with https://" in str(draw(server.plain()))
        server.address = server.address.replace("http:", "https:")
        result = draw(server.plain())
    assert "no TLS is spoken there: begin its address, or that of the proxy, with http://" in str(result)
    assert isinstance(result, BackendError)
    assert not result.retryable


def test_chat_servers_speak_of_money_in_the_same_way() -> None:
    spent = {"message": "Insufficient balance", "code": "rate_limit_exceeded"}
    assert not server_error("x", spent, was_understood=False).retryable
    assert server_error("x", {"message": "Wait a bit", "type": "rate_limit_error"}, was_understood=False).retryable


# --- the final image ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        {
            "candidates": [
                {
                    "content": {
                        "parts": [{"thought": True, "inlineData": {"data": EARLY}}, {"inlineData": {"data": FINAL}}]
                    }
                }
            ]
        },
        *(
            {"data": [{"b64_json": EARLY, **beside}, {"b64_json": FINAL}]}
            for beside in (
                *({"type": "thumbnail"}, {"kind": "preview"}, {"role": "input"}, {"variant": "thumb"}),
                *({"stage": "interim"}, {"purpose": "reference image"}, {"is_partial": True}, {"is_final": False}),
            )
        ),
        {"images": [{"type": "thumbnail", "url": f"data:image/png;base64,{EARLY}"}, {"type": "image", "url": FINAL}]},
    ],
)
def test_an_image_beside_the_final_one_is_not_taken_for_it(answer: Any) -> None:
    with answering(in_json(answer)) as server:
        result = draw(server.openai())
    assert isinstance(result, GeneratedImage), result
    assert result.image.size == (32, 24)


@pytest.mark.parametrize("beside", [{"thought": False}, {"type": "image"}, {"kind": "final"}, {"role": "assistant"}])
def test_what_says_nothing_of_the_kind_is_the_image(beside: dict[str, Any]) -> None:
    with answering(in_json({"data": [{"b64_json": FINAL, **beside}]})) as server:
        assert isinstance(result := draw(server.openai()), GeneratedImage), result


# --- words where an image should be ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"Internal error: model not loaded", "without an image: Internal error: model not loaded"),
        (json.dumps({"error": "model not loaded"}).encode(), "without an image: model not loaded"),
        ("模型未加载".encode(), "without an image: 模型未加载"),
        (b"\1\2\3 nothing to read", "did not send a PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "did not send a PNG"),
    ],
)
@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream"])
def test_an_error_that_is_sent_as_an_image_is_the_reason(body: bytes, says: str, kind: str) -> None:
    with answering((200, body, kind)) as server:
        assert says in str(draw(server.plain()))
    assert len(server.posts) == 1


def test_an_error_in_place_of_an_images_file_is_the_reason() -> None:
    answers = in_json({"data": [{"url": "/a.png"}]}), (200, b"the file is gone", "image/png")
    with answering(*answers) as server:
        assert "sends no image, but image/png: the file is gone" in str(draw(server.openai()))
    assert len(server.posts) == 1


# --- keys in addresses ----------------------------------------------------------------------------------------------


def _generators(server: ScriptedServer) -> list[Any]:
    encoded_key = KEY.replace("-", "%2D")
    return [
        server.plain(f"/draw?token={KEY}"),
        server.plain(f"/draw?model=a&{KEY}"),
        server.plain(f"/draw?code={encoded_key}&model=a"),
        server.plain(login=f"user:{KEY}@"),
        server.plain(login=f"{KEY}@"),
    ]


def test_no_error_repeats_the_key_in_an_address() -> None:
    with answering((400, b"broken at @PATH@ for @LOGIN@", "text/plain")) as server:
        for generator in _generators(server):
            text = str(draw(generator))
            assert "answers 400: broken at /draw" in text
            for hidden in (KEY, KEY.replace("-", "%2D"), "czNjcjN0"):  # the beginning of the key in base64
                assert hidden not in text
            assert text.startswith("http: ")


def test_a_run_with_a_key_in_an_address_leaves_it_nowhere(tmp_path: Path) -> None:
    def answer(form: str, messages: list[Any], index: int) -> dict[str, Any]:
        if form == "Requirements":
            return {"requirements": [{"question": "Is there a car?", "kind": "object"}]}
        return {"verdicts": [{"id": "r1", "answer": "yes", "confidence": 0.9, "reason": "seen"}], "quality": 0.9}

    with (
        answering((500, b"broken at @PATH@", "text/plain"), (400, b"broken at @PATH@", "text/plain")) as server,
        SqliteSaver.from_conn_string(str(tmp_path / "checkpoints.sqlite")) as saver,
    ):
        graph = gems.build_graph(
            mllm=ScriptedChatModel(script=answer),
            generator=server.plain(f"/draw?token={KEY}"),
            images=ImageStore(tmp_path),
            checkpointer=saver,
            settings={"memory": False, "seed": 5, "plan": False},
        )
        state = graph.invoke({"prompt": "a car"}, {"configurable": {"thread_id": "t"}})
        gems.close(graph)
    assert any("broken at /draw" in error for error in state["errors"]), state["errors"]
    assert KEY not in str(state)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
