"""ComfyUI servers of odd versions, and behind gateways: what they have drawn is found, and queued once."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
from PIL import Image
from servers.scripted_images import spent_images
from servers.threaded import serving

from gems.authority import OPERATOR
from gems.errors import BackendError, ContentRefusedError
from gems.models.generators import GeneratedImage, ImageGenerator, ImageRequest
from gems.models.registry import init_image_generator
from gems.options import GeneratorOptions

RUN: Final = "5f3a-run"
FILE: Final = {"filename": "a.png", "subfolder": "", "type": "output"}
OTHER: Final = {"outputs": {"9": {"images": [{"filename": "other.png"}]}}, "status": {"completed": True}}
DONE: Final = {"status_str": "success", "completed": True}


def _png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), (shade, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


PNG: Final = _png(200)
ENCODED: Final = base64.b64encode(PNG).decode()


def entry(**output: Any) -> dict[str, Any]:
    """An entry of the history, with what a node has put out."""
    return {"prompt": [0, RUN, {}, {}, ["9"]], "outputs": {"9": output or {"images": [FILE]}}, "status": DONE}


class _Handler(BaseHTTPRequestHandler):
    queued: ClassVar[list[bytes]] = []
    accepts: ClassVar[Any] = {"prompt_id": RUN}
    histories: ClassVar[list[Any]] = []
    asked: ClassVar[list[str]] = []
    view: ClassVar[bytes] = PNG
    queue: ClassVar[list[Any]] = []
    token: ClassVar[str] = ""
    kinds: ClassVar[Any] = {}

    def log_message(self, *_: Any) -> None:
        """Log nothing."""

    def do_POST(self) -> None:
        """Queue a workflow."""
        self.queued.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
        self._send(self.accepts)

    def do_GET(self) -> None:
        """The history, the queue, or an image; of another run's one, it has another colour."""
        self.asked.append(self.path)
        if self.token not in self.path:
            self._send(b"", 401)
        elif self.path.startswith("/history"):
            self._send(self.histories.pop(0) if len(self.histories) > 1 else self.histories[0])
        elif self.path.startswith("/object_info"):
            self._send(self.kinds)
        elif self.path.startswith("/queue"):
            self._send({"queue_running": self.queue, "queue_pending": []})
        else:
            self._send(_png(9) if "other" in self.path else self.view)

    def _send(self, answer: Any, status: int = 200) -> None:
        if isinstance(answer, int):
            answer, status = b"", answer
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving(_Handler) as server:
        yield f"http://127.0.0.1:{server.server_port}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waits, and a server that behaves well."""
    monkeypatch.setattr("gems.models.servers.retries._WAIT", lambda _: 0.0)
    monkeypatch.setattr("gems.models.servers.comfyui._POLL_SECONDS", 0.0)
    for name, value in (("accepts", {"prompt_id": RUN}), ("histories", [{RUN: entry()}]), ("view", PNG)):
        monkeypatch.setattr(_Handler, name, value)
    monkeypatch.setattr(_Handler, "queue", [])
    monkeypatch.setattr(_Handler, "token", "")
    _Handler.queued.clear()
    _Handler.asked.clear()


@pytest.fixture
def workflow(tmp_path: Path) -> str:
    path = tmp_path / "workflow.json"
    kinds = {"3": ("KSampler", {"seed": 1}), "6": ("CLIPTextEncode", {"text": ""}), "9": ("SaveImage", {})}
    path.write_text(json.dumps({n: {"class_type": kind, "inputs": inputs} for n, (kind, inputs) in kinds.items()}))
    return str(path)


def draw(address: str, workflow: str, timeout: float = 5.0) -> GeneratedImage | BackendError:
    result = _draw(address, workflow, timeout)
    assert len(_Handler.queued) == 1
    return result


def _draw(address: str, workflow: str, timeout: float) -> GeneratedImage | BackendError:
    [result] = _generator(address, workflow, timeout).generate([ImageRequest("a car", 1)])
    return result


def _generator(address: str, workflow: str, timeout: float) -> ImageGenerator:
    options = GeneratorOptions(workflow=workflow, prompt_field="6.text", seed_field="3.seed", timeout=timeout)
    return init_image_generator(f"comfyui:{address}", options, OPERATOR)


def assert_is_ours(result: GeneratedImage | BackendError) -> None:
    assert isinstance(result, GeneratedImage), result
    assert result.image.getpixel((5, 5)) == (200, 0, 0)


@pytest.mark.parametrize(
    "history",
    [
        {"other": OTHER, RUN: entry()},
        [entry()],
        [{**OTHER, "prompt_id": "other"}, {**entry(), "prompt_id": RUN}],
        {"history": {RUN: entry()}},
        {"history": [{**OTHER, "prompt_id": "other"}, {"prompt_id": RUN, **entry()}]},
        {"code": 0, "data": entry()},
        {RUN: entry(ui={"images": [FILE]})},
        {RUN: entry(images=[[FILE]])},
        {RUN: {**entry(), "outputs": {"images": [FILE]}}},
        {RUN: {**entry(), "outputs": [{"node": "9", "images": [FILE]}]}},
        {RUN: entry(images=[{**FILE, "type": "Output"}])},
        {RUN: entry(images=[ENCODED])},
        {RUN: entry(images=[{"data": f"data:image/png;base64,{ENCODED}"}])},
        {RUN: entry(images=[{"url": "/files/a.png", "type": "output"}])},
        {RUN: entry(gifs=[{"filename": "a.mp4"}], images=[FILE])},
    ],
)
def test_the_runs_image_is_found_in_a_history_of_any_shape(address: str, workflow: str, history: Any) -> None:
    _Handler.histories = [history]
    assert_is_ours(draw(address, workflow))
    assert not any("type=Output" in path for path in _Handler.asked)


@pytest.mark.parametrize(
    "answer",
    [
        {"data": {"prompt_id": RUN}},
        {"code": 0, "msg": "ok", "result": {"promptId": RUN}},
        [{"prompt_id": RUN}],
        b'2026 INFO queued\n{"prompt_id": "%s"}' % RUN.encode(),
        {"images": [ENCODED]},
        {"id": "x", "prompt": {}, "images": [ENCODED]},
        PNG,
    ],
)
def test_a_workflow_is_queued_once_however_the_server_says_so(address: str, workflow: str, answer: Any) -> None:
    _Handler.accepts = answer
    assert_is_ours(draw(address, workflow))


@pytest.mark.parametrize("histories", [[{}, {}, {}, {RUN: entry()}], [b"<html>", {}, [], {RUN: entry()}]])
def test_a_workflow_that_another_machine_runs_is_waited_for(address: str, workflow: str, histories: list[Any]) -> None:
    _Handler.histories = histories
    assert_is_ours(draw(address, workflow))


@pytest.mark.parametrize("history", [{"other": OTHER}, [{**OTHER, "prompt_id": "other"}], {"data": {"other": OTHER}}])
def test_the_image_of_another_run_is_not_taken(address: str, workflow: str, history: Any) -> None:
    _Handler.histories = [history]
    result = draw(address, workflow)
    assert isinstance(result, BackendError)
    assert "removed from the server's queue" in str(result)


@pytest.mark.parametrize("status", [202, 204, 404, 423])
def test_a_gateway_without_a_history_of_what_runs_is_asked_until_it_has_one(
    address: str, workflow: str, status: int
) -> None:
    _Handler.queue, _Handler.histories = [[0, RUN, {}, {}, []]], [*[status] * 12, {RUN: entry()}]
    assert_is_ours(draw(address, workflow))


def test_a_workflow_that_is_not_done_in_time_may_be_charged(address: str, workflow: str) -> None:
    _Handler.queue, _Handler.histories = [[0, RUN, {}, {}, []]], [404]
    error = draw(address, workflow, timeout=0.3)
    assert "not done in time" in str(error)
    assert "answers 404" in str(error)
    assert "charged" in str(error)


def test_a_history_that_is_refused_lost_a_workflow_that_may_be_charged(address: str, workflow: str) -> None:
    _Handler.histories = [401]
    error = draw(address, workflow)
    assert "may be charged" in str(error)
    assert "answers 401" in str(error)


def test_parameters_of_the_servers_address_are_in_every_request(address: str, workflow: str) -> None:
    _Handler.token = "token=abc"
    _Handler.histories = [{RUN: entry(images=[{"url": "/files/a.png"}])}]
    assert_is_ours(draw(f"{address}/?token=abc", workflow))
    assert _Handler.asked[-1] == "/files/a.png?token=abc"
    _Handler.queued.clear()
    _Handler.histories = [{RUN: entry()}]
    assert_is_ours(draw(f"{address}/?token=abc", workflow))
    assert _Handler.asked[-1].startswith("/view?token=abc&filename=a.png")


@pytest.mark.parametrize(
    "view",
    [
        base64.b64encode(PNG),
        f'"{ENCODED}"'.encode(),
        json.dumps({"image": ENCODED}).encode(),
        json.dumps({"filename": "a.png", "file": f"data:image/png;base64,{ENCODED}"}).encode(),
        json.dumps({"data": [{"b64_json": "", "image": ENCODED}]}).encode(),
    ],
)
def test_a_gateways_base64_of_a_file_is_the_file(address: str, workflow: str, view: bytes) -> None:
    _Handler.view = view
    assert_is_ours(draw(address, workflow))


def test_a_server_that_has_no_room_for_a_workflow_is_asked_again(address: str, workflow: str) -> None:
    _Handler.accepts = {"prompt_id": None, "error": "Too many requests"}
    result = _draw(address, workflow, timeout=0.3)
    assert isinstance(result, BackendError)
    assert "Too many requests" in str(result)
    assert len(_Handler.queued) > 1


def test_a_file_of_the_input_folder_is_no_image_of_the_run(address: str, workflow: str) -> None:
    _Handler.histories = [{RUN: entry(images=[{**FILE, "type": "input"}])}]
    result = draw(address, workflow)
    assert "makes no image; the server lists no file of its SaveImage node" in str(result)


@pytest.mark.parametrize("is_history", [True, False])
def test_a_long_list_of_files_does_not_outlast_the_timeout(address: str, workflow: str, is_history: bool) -> None:
    if is_history:
        _Handler.histories = [{RUN: entry(images=[{"filename": f"{n}.png"} for n in range(1000)])}]
    else:
        _Handler.accepts = {"images": [f"/{n}.png" for n in range(1000)]}
    _Handler.view = PNG[:-40]
    assert isinstance(draw(address, workflow, timeout=0.1), BackendError)
    assert len(_Handler.asked) < 200


HALF: Final = "\ud83d"


@pytest.mark.parametrize("name", ["filename", "subfolder", "type"])
def test_half_a_character_in_the_name_of_a_file_costs_no_other_image(address: str, workflow: str, name: str) -> None:
    _Handler.histories = [{RUN: entry(images=[{**FILE, name: FILE[name] + HALF}])}]
    result = draw(address, workflow)
    if name == "type":  # no folder of that name is known
        assert isinstance(result, BackendError)
        assert not result.retryable
    else:
        assert_is_ours(result)


def test_half_a_character_in_the_name_of_a_run_is_asked_for_as_it_can_be_written(address: str, workflow: str) -> None:
    _Handler.accepts = {"prompt_id": RUN + HALF}
    _Handler.histories = [{RUN + HALF: entry()}]
    assert_is_ours(draw(address, workflow))
    assert _Handler.asked[0] == f"/history/{RUN}%EF%BF%BD"


@pytest.mark.parametrize("place", ["run", "filename"])
def test_a_name_that_fits_into_no_address_is_one_error(address: str, workflow: str, place: str) -> None:
    long = "x" * 70_000
    if place == "run":
        _Handler.accepts = {"prompt_id": long}
    _Handler.histories = [{RUN: entry(images=[{**FILE, "filename": long}])}]
    result = draw(address, workflow)
    assert isinstance(result, BackendError)
    assert not result.retryable
    assert "may be charged, but cannot be fetched: a request for it cannot be written (" in str(result)


def test_what_nobody_expects_of_an_answer_is_one_error_beside_the_other_images(
    address: str, workflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours in reading an answer, of which we know none."""
    entries = iter([KeyError("a bug"), entry()])

    def read(history: Any, run: str) -> Any:
        result = next(entries)
        if isinstance(result, Exception):
            raise result
        return result

    monkeypatch.setattr("gems.models.servers.comfyui.entry_of", read)
    options = GeneratorOptions(workflow=workflow, prompt_field="6.text", seed_field="3.seed", concurrency=1)
    generator = init_image_generator(f"comfyui:{address}", options, OPERATOR)
    failure, image = generator.generate([ImageRequest("a car", 1), ImageRequest("a car", 2)])
    assert_is_ours(image)
    assert isinstance(failure, BackendError)
    assert (failure.retryable, failure.may_cost, len(_Handler.queued)) == (False, True, 2)
    assert "may be charged, but its answer cannot be read (KeyError: 'a bug')" in str(failure)


def _failed(words: str, **details: Any) -> dict[str, Any]:
    error = ["execution_error", {"node_id": "3", "exception_message": words, **details}]
    return {"outputs": {}, "status": {"status_str": "error", "completed": False, "messages": [error]}}


@pytest.mark.parametrize(
    "failed",
    [
        _failed("API Error: Your request was rejected by the safety system. (moderation_blocked)"),
        _failed("Task failed: {'status': 'Content Moderated', 'details': None}"),
        _failed("Prompt failed safety check"),
        {"outputs": {}, "status": "failed", "error": {"code": "content_policy_violation", "message": "no"}},
        {"outputs": {}, "status": "Content Moderated"},
        {"outputs": {}, "status": {"status_str": "error", "messages": []}, "error": "Request Moderated"},
    ],
)
def test_a_node_whose_provider_refuses_the_prompt(address: str, workflow: str, failed: dict[str, Any]) -> None:
    _Handler.histories = [{RUN: failed}]
    result = draw(address, workflow)
    assert isinstance(result, ContentRefusedError), result
    assert "the workflow failed: " in str(result)


def test_the_name_of_a_node_is_no_refusal_and_hides_no_reason(address: str, workflow: str) -> None:
    _Handler.histories = [{RUN: _failed("out of memory", node_type="ContentModeration" + "x" * 900)}]
    result = draw(address, workflow)
    assert isinstance(result, BackendError)
    assert not isinstance(result, ContentRefusedError)
    assert str(result).endswith("xxx): out of memory")


@pytest.mark.parametrize(
    ("output", "says"),
    [
        ({"gifs": [{"filename": "a.mp4", "type": "output"}]}, "it saves a.mp4, which is no image"),
        (
            {"images": [{"filename": "a.gif", "type": "output"}], "animated": [True]},
            "it saves a.gif, which is no image",
        ),
        ({"text": ["hello"]}, "the server lists no file"),
    ],
)
def test_a_workflow_without_an_image_says_what_there_is(
    address: str, workflow: str, output: dict[str, Any], says: str
) -> None:
    _Handler.histories = [{RUN: entry(**output)}]
    assert f"the workflow makes no image; {says}" in str(draw(address, workflow))


@pytest.mark.parametrize(
    ("history", "view"),
    [
        (entry(), b""),
        (entry(), b"<html>Sign in</html>"),
        (entry(), b"GIF89a"),
        (entry(images=["http://images.example.com/a.png"]), PNG),
        (entry(gifs=[{"filename": "a.mp4", "type": "output"}]), PNG),
        (entry(text=["hello"]), PNG),
        (_failed("out of memory"), PNG),
        ({"outputs": {}, "status": {"status_str": "error", "messages": [["execution_interrupted", {}]]}}, PNG),
        (None, PNG),
    ],
)
def test_a_workflow_that_the_server_took_counts_as_an_image_for_budgets(
    address: str, workflow: str, history: Any, view: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "histories", [{RUN: history} if history else {}])
    monkeypatch.setattr(_Handler, "view", view)
    assert spent_images(_generator(address, workflow, 5.0)) == 1
    assert len(_Handler.queued) == 1


@pytest.mark.parametrize(
    "accepts",
    [400, 401, {"error": {"message": "no outputs"}, "node_errors": {"4": {"errors": [{"message": "no such file"}]}}}],
)
def test_a_workflow_that_the_server_did_not_take_counts_as_no_image(
    address: str, workflow: str, accepts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "accepts", accepts)
    assert spent_images(_generator(address, workflow, 5.0)) == 0


KINDS: Final = {"KSampler": {"input": {}}, "CLIPTextEncode": {"input": {}}, "SaveImage": {"input": {}}}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (KINDS, "has all 3 kinds"),
        ({"data": KINDS}, "has all 3 kinds"),
        ({"code": 0, "message": "ok", "result": [{"output": KINDS}]}, "has all 3 kinds"),
        ({"data": {"KSampler": {}, "SaveImage": {}}}, "the server has no nodes CLIPTextEncode"),
        ({"data": {"Other": {"input": {}}}}, "the server has no nodes CLIPTextEncode, KSampler, SaveImage"),
        ({"error": {"type": "unauthorized", "message": "Please log in"}}, "answers with an error: Please log in"),
        ({"code": 401, "success": False, "message": "Please log in", "data": None}, "answers with an error: .*log in"),
        ({"data": {"error": "Please log in"}}, "answers with an error: .*Please log in"),
        ({}, "does not list its kinds"),
        ({"code": 0, "message": "ok", "data": None}, "does not list its kinds"),
        (list(KINDS), "does not list its kinds"),
        (b"null", "does not list its kinds"),
        (b"<html>Sign in</html>", "a page, such as one to log in"),
    ],
)
def test_the_check_reads_the_kinds_of_nodes_in_any_frame_and_tells_errors(
    answer: Any, says: str, address: str, workflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "kinds", answer)
    assert re.search(says, _checked(address, workflow))


LOADERS: Final = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl.safetensors"}},
    "2": {"class_type": "LoraLoader", "inputs": {"lora_name": "ink.safetensors", "model": ["1", 0], "strength": 1}},
    "4": {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}},
    "5": {"class_type": "LoadImage", "inputs": {"image": "now.png"}},
}


def _loaders(checkpoints: Any, loras: Any) -> dict[str, Any]:
    return {
        **KINDS,
        "CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [checkpoints, {"tooltip": "x"}]}}},
        "LoraLoader": {"input": {"required": {"model": ["MODEL"]}, "optional": {"lora_name": ["COMBO", loras]}}},
        "VAELoader": {"input": {"required": {"vae_name": [["a.safetensors"]]}}},
        "LoadImage": {"input": {"required": {"image": [["old.png"], {"image_upload": True}]}}},
    }


@pytest.mark.parametrize(
    ("checkpoints", "loras", "says"),
    [
        (["sd_xl.safetensors"], {"options": ["ink.safetensors"]}, "has all 7 kinds"),
        (["sd_xl.safetensors"], {"remote": {}}, "has all 7 kinds"),
        ("STRING", {}, "has all 7 kinds"),
        ([{"content": "sd_xl.safetensors"}], {"options": ["ink.safetensors"]}, "has all 7 kinds"),
        (
            ["a/flux.ckpt", "a/sd_xl.safetensors", "b.pt", "c.pt"],
            {"options": ["ink.safetensors"]},
            r"the server has no sd_xl.safetensors \(1.ckpt_name\), but a/sd_xl.safetensors, \S+, \S+$",
        ),
        (
            [],
            {"options": ["Ink.safetensors"], "multiselect": False},
            r"no sd_xl.safetensors \(1.ckpt_name\), but none; no ink.safetensors \(2.lora_name\), but Ink.safetensors$",
        ),
    ],
)
def test_the_check_tells_which_files_of_models_the_server_does_not_have(
    checkpoints: Any, loras: Any, says: str, address: str, workflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Handler, "kinds", _loaders(checkpoints, loras))
    path = Path(workflow)
    path.write_text(json.dumps({**json.loads(path.read_text()), **LOADERS}))
    assert re.search(says, _checked(address, workflow))


def _checked(address: str, workflow: str) -> str:
    """What ``gems doctor`` says of the server."""
    generator = _generator(address, workflow, 5.0)
    try:
        return str(generator.check())  # type: ignore[attr-defined]
    except BackendError as error:
        return str(error)
    finally:
        generator.close()  # type: ignore[attr-defined]
