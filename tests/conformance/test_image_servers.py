"""Image servers with every protocol and every fault, over real HTTP to a server in another process."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from conformance.generator_suite import GeneratorConformance
from forked import gems
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gems.authority import OPERATOR
from gems.errors import BackendError, ContentRefusedError, InputError
from gems.models.generators import (
    Edit,
    GeneratedImage,
    ImageGenerator,
    ImageRequest,
    Step,
    is_reproducible,
    takes_negative_prompts,
)
from gems.models.registry import init_image_generator
from gems.models.servers import openai_images, retries
from gems.models.servers.image_files import decode_image
from gems.options import GeneratorOptions
from gems.stopping import ending, stopping

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("impatient")]

KEY = "sk-canary-5f3a"
WORKFLOW = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 0, "steps": 20}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "x"}},
    "9": {"class_type": "SaveImage", "inputs": {}},
}


@pytest.fixture(scope="session")
def workflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("comfy") / "workflow.json"
    path.write_text(json.dumps(WORKFLOW))
    return str(path)


def openai(server: str, fault: str = "fine", **options: Any) -> ImageGenerator:
    settings = {"timeout": 20.0, "api_key": KEY, **options}
    return init_image_generator(
        "openai:painter", GeneratorOptions(base_url=f"{server}/{fault}/v1", **settings), OPERATOR
    )


def plain(server: str, fault: str = "fine", **options: Any) -> ImageGenerator:
    return init_image_generator(
        f"http:{server}/{fault}/draw", GeneratorOptions(**{"timeout": 20.0, **options}), OPERATOR
    )


def comfyui(server: str, file: str, fault: str = "fine", **options: Any) -> ImageGenerator:
    settings = {"timeout": 20.0, "workflow": file, "prompt_field": "6.text", "seed_field": "3.seed", **options}
    return init_image_generator(f"comfyui:{server}/{fault}", GeneratorOptions(**settings), OPERATOR)


def requests_to(server: str, name: str) -> list[dict[str, Any]]:
    with urlopen(f"{server}/log") as answer:
        return [entry["request"] for entry in json.load(answer)["seen"] if entry["name"] == name]


def draw_one(generator: ImageGenerator, prompt: str = "a cat", seed: int = 1) -> GeneratedImage | BackendError:
    [result] = generator.generate([ImageRequest(prompt, seed)])
    return result


class TestConformance(GeneratorConformance):
    @pytest.fixture(params=["openai", "http", "comfyui"])
    def generator(self, request: pytest.FixtureRequest, image_server: str, workflow: str) -> ImageGenerator:
        if request.param == "comfyui":
            return comfyui(image_server, workflow)
        return openai(image_server) if request.param == "openai" else plain(image_server)

    @pytest.fixture
    def prompts(self) -> tuple[str, str]:
        return ("a cat", "two dogs & a <bird>")


# --- requests -------------------------------------------------------------------------------------------------------


def test_a_server_of_the_images_api_gets_the_seed_and_the_options(image_server: str) -> None:
    generator = openai(
        image_server, "options", width=64, height=32, steps=9, guidance_scale=2.0, negative_prompt="blur"
    )
    assert isinstance(draw_one(generator, "a cat", 7), GeneratedImage)
    assert requests_to(image_server, "options") == [
        {
            "model": "painter",
            "prompt": "a cat",
            "n": 1,
            "size": "64x32",
            "seed": 7,
            "num_inference_steps": 9,
            "guidance_scale": 2.0,
            "negative_prompt": "blur",
            "response_format": "b64_json",
        }
    ]


@pytest.mark.parametrize(
    ("options", "sent"),
    [({"guidance_scale": 4.0}, "dogs"), ({"guidance_scale": 4.0, "negative_prompt": "blur"}, "blur, dogs")],
)
@pytest.mark.parametrize("make", [openai, plain])
def test_what_must_not_be_there_is_sent_where_the_model_has_guidance(
    image_server: str, make: Callable[..., ImageGenerator], options: dict[str, Any], sent: str
) -> None:
    name = f"negative-{make.__name__}-{len(options)}"
    assert not takes_negative_prompts(make(image_server, name))
    generator = make(image_server, name, **options)
    assert takes_negative_prompts(generator)
    generator.generate([ImageRequest("a cat", 1, negative_prompt="dogs")])
    assert [request["negative_prompt"] for request in requests_to(image_server, name)] == [sent]


@pytest.mark.parametrize("make", [openai, plain])
def test_a_negative_prompt_that_nobody_has_asked_for_is_left_out_where_the_server_refuses_it(
    image_server: str, make: Callable[..., ImageGenerator]
) -> None:
    name = f"no-negatives~{make.__name__}"
    generator = make(image_server, name, guidance_scale=4.0)
    [drawn] = generator.generate([ImageRequest("a cat", 1, negative_prompt="dogs")])
    assert isinstance(drawn, GeneratedImage), drawn
    assert drawn.request == ImageRequest("a cat", 1)
    assert not takes_negative_prompts(generator)
    assert ["negative_prompt" in request for request in requests_to(image_server, name)] == [True, False]
    user_prompt = make(image_server, f"{name}-of-the-user", guidance_scale=4.0, negative_prompt="blur")
    assert isinstance(draw_one(user_prompt), BackendError)


def test_a_workflow_says_where_the_negative_prompt_goes(image_server: str, workflow: str, tmp_path: Path) -> None:
    assert not takes_negative_prompts(comfyui(image_server, workflow))
    path, nodes = tmp_path / "workflow.json", json.loads(Path(workflow).read_text())
    nodes["7"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "blur", "clip": ["4", 1]}}
    path.write_text(json.dumps(nodes))
    generator = comfyui(image_server, str(path), "negative", negative_field="7.text")
    assert takes_negative_prompts(generator)
    generator.generate([ImageRequest("a cat", 1, negative_prompt="dogs"), ImageRequest("a cat", 2)])
    texts = [request["prompt"]["7"]["inputs"]["text"] for request in requests_to(image_server, "negative")]
    assert sorted(texts) == ["blur", "blur, dogs"]
    for field, words in (("7.clip", "holds .* which is not a negative prompt"), ("6.text", "not a negative prompt")):
        with pytest.raises(InputError, match=words):
            comfyui(image_server, str(path), negative_field=field)


def test_a_plain_endpoint_gets_prompt_and_seed(image_server: str) -> None:
    draw_one(plain(image_server, "plainly"), "a cat & a dog", 7)
    assert requests_to(image_server, "plainly") == [{"prompt": "a cat & a dog", "seed": "7"}]


def test_an_edit_sends_the_image_and_what_to_keep(image_server: str) -> None:
    generator = openai(image_server, "editor", edits=True)
    assert generator.edits
    first = draw_one(generator)
    assert isinstance(first, GeneratedImage)
    first.image.info["icc_profile"] = b"what somebody has hidden"
    edit = Edit(first.image, keep=("Is there a cat?",), fix=("Is it black?",))
    [second] = generator.generate([ImageRequest("a black cat", 2, edit)])
    assert isinstance(second, GeneratedImage)
    form = requests_to(image_server, "editor")[1]["form"]
    for part in ("a black cat", "Is there a cat?", "Is it black?", "PNG", 'name="seed"'):
        assert part in form
    assert "iCCP" not in form


def test_openai_itself_gets_no_seed_and_can_edit(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = init_image_generator("openai:gpt-image-1", GeneratorOptions(api_key=KEY), OPERATOR)
    assert generator.edits
    assert re.fullmatch(r"openai:gpt-image-1@[0-9a-f]{16}", generator.fingerprint)
    fields = generator._fields(ImageRequest("a cat", 7))  # type: ignore[attr-defined]
    assert fields == {"model": "gpt-image-1", "prompt": "a cat", "n": 1}


def test_an_answer_by_url_is_fetched_from_the_same_host_only(image_server: str) -> None:
    assert isinstance(draw_one(openai(image_server, "url")), GeneratedImage)
    error = draw_one(openai(image_server, "elsewhere"))
    assert isinstance(error, BackendError)
    assert "another host (169.254.169.254), which is not fetched" in str(error)


def test_partial_images_are_previews(image_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_images, "_OPENAI", f"{image_server}/stream/v1")  # the test server is OpenAI's own host
    generator = init_image_generator("openai:gpt-image-1", GeneratorOptions(api_key=KEY, previews=2), OPERATOR)
    reported_steps: list[Step] = []
    [result] = generator.generate([ImageRequest("a cat", 0)], on_step=reported_steps.append)
    assert isinstance(result, GeneratedImage)
    assert [(s.step, s.steps, s.preview is not None) for s in reported_steps] == [
        (1, 3, True),
        (2, 3, True),
        (1, 1, False),
    ]
    assert reported_steps[0].preview is not None
    assert reported_steps[0].preview.getpixel((0, 0)) != result.image.getpixel((0, 0))


def test_a_refusal_in_a_stream_is_one(image_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_images, "_OPENAI", f"{image_server}/stream-refusal/v1")
    generator = init_image_generator("openai:gpt-image-1", GeneratorOptions(api_key=KEY, previews=1), OPERATOR)
    assert isinstance(draw_one(generator), ContentRefusedError)
    assert len(requests_to(image_server, "stream-refusal")) == 1


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["slow", "busy", "shaky", "torn-once", "jpeg", "webp", "avif", "spent-for-now"])
@pytest.mark.parametrize("kind", [openai, plain])
def test_transient_faults_are_retried(image_server: str, fault: str, kind: Any) -> None:
    result = draw_one(kind(image_server, f"{fault}~{kind.__name__}"))
    assert isinstance(result, GeneratedImage), result
    assert result.image.size == (48, 32)


@pytest.mark.parametrize("kind", [openai, plain])
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("broken", "answers 503: no GPU left"),
        ("torn", "sent a torn image"),
        ("hung", "no answer from 127.0.0.1"),
        ("wrong", "answers 400: size must be 1024x1024"),
        ("invalid", "answers 422: body.n: must be 1"),
        ("bomb", "more than 67,108,864 pixels"),
        ("huge", "sends more than 64 MB"),
        ("error-body", "out of memory"),
        ("locked", "answers 401"),
        ("moved", "redirects (307); give the final address"),
    ],
)
def test_a_permanent_fault_gives_a_one_line_error(image_server: str, fault: str, says: str, kind: Any) -> None:
    error = draw_one(kind(image_server, fault, timeout=1.5))
    assert isinstance(error, BackendError)
    assert says in str(error)
    assert "\n" not in str(error)
    assert not error.retryable, "the time for this image is used up"
    assert KEY not in str(error) + repr(error)


def test_the_query_of_an_address_is_sent_with_every_request(image_server: str, workflow: str) -> None:
    settings = GeneratorOptions(base_url=f"{image_server}/fine~query/v1?api-version=7", api_key=KEY, timeout=20.0)
    assert isinstance(draw_one(init_image_generator("openai:painter", settings, OPERATOR)), GeneratedImage)
    name = f"comfyui:{image_server}/fine~query?api-version=7"
    settings = GeneratorOptions(timeout=20.0, workflow=workflow, prompt_field="6.text", seed_field="3.seed")
    assert isinstance(draw_one(init_image_generator(name, settings, OPERATOR)), GeneratedImage)
    assert [request["api-version"] for request in requests_to(image_server, "fine~query")] == ["7", "7"]


def test_a_page_instead_of_an_image(image_server: str) -> None:
    assert "text/html" in str(draw_one(plain(image_server, "page")))
    assert "is a page" in str(draw_one(openai(image_server, "page", timeout=0.5)))


def test_a_slow_drip_does_not_outlast_the_deadline(image_server: str) -> None:
    assert "too slowly" in str(draw_one(plain(image_server, "trickle", timeout=1.0))), (
        "the whole response would take 100 seconds"
    )


@pytest.mark.parametrize("kind", [openai, plain])
def test_an_image_of_another_size_is_accepted_with_a_note(image_server: str, kind: Any) -> None:
    result = draw_one(kind(image_server, "other-size", width=64, height=64))
    assert isinstance(result, GeneratedImage)
    assert result.image.size == (20, 10)
    assert result.note is not None
    assert "was asked for 64x64 pixels and drew 20x10" in result.note


def test_an_unreachable_server() -> None:
    error = draw_one(
        init_image_generator("openai:x", GeneratorOptions(base_url="http://127.0.0.1:9/v1", timeout=0.5), OPERATOR)
    )
    assert "cannot reach 127.0.0.1:9" in str(error)


@pytest.mark.parametrize("fault", ["prude"])
def test_a_content_refusal_has_its_own_error(image_server: str, fault: str) -> None:
    error = draw_one(openai(image_server, fault))
    assert isinstance(error, ContentRefusedError)
    assert "refuses to draw this: not safe" in str(error)


def test_no_seed_is_sent_to_a_server_that_rejects_seeds(image_server: str) -> None:
    generator = openai(image_server, "seedless")
    assert isinstance(draw_one(generator), GeneratedImage)
    assert isinstance(draw_one(generator), GeneratedImage)
    assert ["seed" in a for a in requests_to(image_server, "seedless")] == [True, False, False], (
        "a seed is sent only once"
    )


def test_one_bad_request_does_not_spoil_the_others(image_server: str) -> None:
    first, second, third = openai(image_server, "picky").generate([ImageRequest(p, 1) for p in ("a", "b", "c")])
    assert isinstance(second, BackendError)
    assert [r.request.prompt for r in (first, third) if isinstance(r, GeneratedImage)] == ["a", "c"]


def test_no_more_requests_are_in_flight_than_allowed(image_server: str) -> None:
    generator = openai(image_server, "slow-two", concurrency=2, timeout=60.0)
    results = generator.generate([ImageRequest("a", seed) for seed in range(4)])
    assert all(isinstance(r, GeneratedImage) for r in results)
    with urlopen(f"{image_server}/log") as answer:
        assert json.load(answer)["most_in_flight"]["slow-two"] == 2


# --- answers in other shapes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        "null-item",
        "bad-first",
        "single-item",
        "bare-list",
        "bare-text",
        "null-base64",
        "torn-base64",
        "data-url",
        "data-url-as-url",
        "lines",
        "url-safe",
        "images-key",
        "image-object",
        "json-text",
        "escaped",
        "itself",
        "marked",
        "utf-16",
        "endless-number",
        "streams-unasked",
        "relative",
        "url-signed",
        *("artifacts", "output-text", "output-list", "predictions", "more", "no-image-first", "torn-first", "as-text"),
    ],
)
def test_an_image_in_another_shape_is_read(image_server: str, shape: str) -> None:
    result = draw_one(openai(image_server, shape, timeout=2.0))
    assert isinstance(result, GeneratedImage), result
    expected = draw_one(openai(image_server))
    assert isinstance(expected, GeneratedImage)
    assert result.image.tobytes() == expected.image.tobytes()


@pytest.mark.parametrize("fault", ["torn~paid", "page~paid"])
def test_answers_that_may_have_cost_an_image_are_few(image_server: str, fault: str) -> None:
    error = draw_one(openai(image_server, fault, timeout=60.0))
    assert isinstance(error, BackendError)
    assert "(3 tries in 60 s, 3 of them may have been charged)" in str(error)
    assert len(requests_to(image_server, fault)) == 3


@pytest.mark.parametrize(
    "fault", ["url-busy", "url-torn", "url-page", "history-busy", "view-busy", "view-torn", "view-page"]
)
def test_an_image_that_cannot_be_fetched_yet_is_not_drawn_again(image_server: str, workflow: str, fault: str) -> None:
    name = f"{fault}~drawn"
    generator = openai(image_server, name) if fault.startswith("url") else comfyui(image_server, workflow, name)
    assert isinstance(draw_one(generator, name), GeneratedImage)
    assert len(requests_to(image_server, name)) == 1


@pytest.mark.parametrize("fault", ["url-always-torn", "view-always-torn"])
def test_an_image_that_stays_torn_is_given_up_and_not_drawn_again(
    image_server: str, workflow: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "_WAIT", lambda _: 0.0)
    name = f"{fault}~paid"
    generator = openai(image_server, name) if fault.startswith("url") else comfyui(image_server, workflow, name)
    error = draw_one(generator, name)
    assert isinstance(error, BackendError)
    assert "sent a torn image" in str(error)
    assert not error.retryable
    assert len(requests_to(image_server, name)) == 1


def test_a_plain_endpoint_may_answer_in_json_or_base64(image_server: str) -> None:
    for shape in ("as-json", "as-text"):
        assert isinstance(result := draw_one(plain(image_server, shape)), GeneratedImage), result


def test_fields_count_as_refused_only_if_leaving_them_out_has_helped(image_server: str) -> None:
    assert is_reproducible(refusing := openai(image_server, "seed-is-wrong"))
    assert isinstance(draw_one(refusing), BackendError)
    assert is_reproducible(refusing)
    assert isinstance(draw_one(strict := openai(image_server, "strict~learned")), GeneratedImage)
    assert not is_reproducible(strict)


REFUSALS = ("error-refusal", "blurred", "declines", "declines-chat", "immoderate")


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("no-data", "without an image: no image$"),
        ("empty-data", "without an image: no image$"),
        ("null", "without an image: no image$"),
        ("error-text", "without an image: the engine died$"),
        ("error-busy", r"without an image: no worker \(\d+ tries in 1 s\)$"),
        ("error-refusal", "without an image: not safe$"),
        ("detail", "without an image: must be 1$"),
        ("blurred", "filter stopped the image: CONTENT_FILTERED$"),
        ("sentence", "without an image: no image$"),
        ("declines", "refuses to draw this: I'm unable to create that image because it violates policies.$"),
        ("declines-chat", "refuses to draw this: Sorry, I can’t draw that person.$"),
        ("asks-back", "without an image: Which style do you want.$"),
        ("immoderate", "filter stopped the image$"),
        ("item-error", "without an image: the engine died$"),
        ("error-list", "without an image: the engine died; twice$"),
        ("error-json", "without an image: the engine died$"),
        (
            "error-spent",
            "without an image: insufficient credits; waiting does not help: pay for more, or give another key$",
        ),
        ("only-status", "without an image: FAILED$"),
        (
            "spent",
            "answers 429: You exceeded your current quota; waiting does not help: pay for more, or give another key$",
        ),
        (
            "spent-402",
            "answers 402: Payment Required: top up; waiting does not help: pay for more, or give another key$",
        ),
        ("bad-address", "no valid address$"),
        ("in-a-list", "answers 400: key not valid$"),
    ],
)
def test_an_answer_without_an_image_gives_the_servers_reason(image_server: str, shape: str, says: str) -> None:
    error = draw_one(openai(image_server, shape, timeout=1.0))
    assert isinstance(error, BackendError)
    assert re.search(says, str(error)), error
    assert isinstance(error, ContentRefusedError) is (shape in REFUSALS)
    if "spent" in shape:
        assert len(requests_to(image_server, shape)) == 1, "nothing changes by asking again"


def _file(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "did not send"),
        (b"\x89PNG\r\n\x1a\n", "did not send"),
        (_file(Image.new("RGB", (64, 64)), "AVIF").replace(b"iloc", b"ilof"), "did not send"),
        (_file(Image.new("RGBA", (4, 4), (1, 2, 3, 0))), "transparent everywhere"),
        (_file(Image.new("LA", (4, 4), (9, 0))), "transparent everywhere"),
        (_file(Image.effect_noise((64, 64), 90))[:-900], "torn"),
        (_file(Image.effect_noise((64, 64), 90), "JPEG")[:-900], "torn"),
    ],
)
def test_a_file_that_is_no_image_is_a_failure(data: bytes, says: str) -> None:
    with pytest.raises(BackendError, match=says):
        decode_image(data, "x")


def test_a_transparent_palette_is_nothing_to_see() -> None:
    palette = Image.new("P", (4, 4), 0)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", transparency=0)
    with pytest.raises(BackendError, match="transparent everywhere"):
        decode_image(buffer.getvalue(), "x")


def test_a_black_image_and_one_with_16_bits_are_images() -> None:
    assert decode_image(_file(Image.new("RGB", (4, 4))), "x").getpixel((0, 0)) == (0, 0, 0)
    assert decode_image(_file(Image.new("I;16", (4, 4), 0x8000)), "x").getpixel((0, 0)) == (128, 128, 128)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP"]), st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=9)
)
def test_a_damaged_file_is_an_image_or_a_failure(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(_file(Image.linear_gradient("L").resize((40, 40)).convert("RGB"), kind))
    for place, value in changes:
        data[place % len(data)] = value
    with contextlib.suppress(BackendError):
        assert decode_image(bytes(data), "x").mode == "RGB"


# --- ComfyUI --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("refuses", "answers 400: Cannot execute: no outputs"),
        ("crashes", r"node 3 \(KSampler\): CUDA out of memory"),
        ("mute", "makes no image; the server lists no file of its SaveImage node"),
        (
            "node-errors",
            r"answers 400: Prompt outputs failed validation; node 4 \(CheckpointLoaderSimple\): Value not in list:",
        ),
        ("node-errors-200", r"the workflow was refused: Prompt outputs .*; node 4 \(CheckpointLoaderSimple\): Value"),
        ("null-answer", "the workflow was refused: no reason given"),
        ("null-outputs", "makes no image; the server lists no file of its SaveImage node"),
        ("loud-error", "the workflow failed: .*no memory"),
        ("null-messages", "the workflow failed: no reason given"),
        ("null-details", "the workflow failed: no reason given$"),
        ("interrupted-early", "the workflow failed: it was interrupted on the server$"),
        ("other-messages", "the workflow failed: node 3: no VRAM$"),
        ("status-text", "the workflow failed: no VRAM$"),
        ("null-status", "makes no image; the server lists no file of its SaveImage node"),
        ("success-message", "makes no image; the server lists no file of its SaveImage node"),
        ("dequeued", "the workflow was removed from the server's queue$"),
        ("interrupted", "the workflow failed: it was interrupted on the server"),
        ("half-refused", r"makes no image; node 9 \(SaveImage\): Required input is missing: images$"),
        ("only-its-input", "makes no image; the server lists no file of its SaveImage node"),
        ("fails-before", r"the workflow failed: node 12 \(Upscale\): no memory$"),
        ("never", "was not done in time|no answer|too slowly"),  # whichever timeout fires first
    ],
)
def test_a_workflow_that_fails(image_server: str, workflow: str, fault: str, says: str) -> None:
    assert re.search(says, str(draw_one(comfyui(image_server, workflow, fault, timeout=2.0))))


@pytest.mark.parametrize(
    "fault",
    [
        *("odd-history", "video-first", "gone-first", "no-type", "shows-its-input", "fails-later", "without-its-id"),
        *("gifs", "history-missing"),
    ],
)
def test_the_first_file_in_a_history_that_can_be_read_is_the_image(
    image_server: str, workflow: str, fault: str
) -> None:
    result = draw_one(comfyui(image_server, workflow, f"{fault}~first", timeout=20.0))
    assert isinstance(result, GeneratedImage), result
    assert len(requests_to(image_server, f"{fault}~first")) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"workflow": None}, "needs a workflow"),
        ({"workflow": "/nowhere.json"}, "cannot read the workflow /nowhere.json"),
        ({"prompt_field": None}, "needs --generator-option prompt_field=NODE.INPUT"),
        ({"prompt_field": "7.text"}, "has no node '7', only 3, 6, 9"),
        ({"seed_field": "3.noise"}, "node 3 has no input 'noise', only seed, steps"),
        ({"steps": 4}, "cannot honour the option steps"),
    ],
)
def test_a_workflow_that_does_not_fit(image_server: str, workflow: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        comfyui(image_server, workflow, **options)


def test_a_workflow_of_the_wrong_format_is_refused(image_server: str, tmp_path: Path) -> None:
    path = tmp_path / "ui.json"
    path.write_text(json.dumps({"nodes": [], "links": []}))
    with pytest.raises(InputError, match="not a workflow in API format"):
        comfyui(image_server, str(path))


# --- setup ----------------------------------------------------------------------------------------------------------


def test_check_draws_nothing_and_reports_what_is_wrong(image_server: str, workflow: str) -> None:
    before = len(requests_to(image_server, "fine"))
    assert "answers" in openai(image_server).check()  # type: ignore[attr-defined]
    assert "all 3 kinds of nodes" in comfyui(image_server, workflow).check()  # type: ignore[attr-defined]
    assert "answers (405 to HEAD)" in plain(image_server).check()  # type: ignore[attr-defined]
    assert len(requests_to(image_server, "fine")) == before
    other = init_image_generator("openai:sculptor", GeneratorOptions(base_url=f"{image_server}/fine/v1"), OPERATOR)
    with pytest.raises(BackendError, match="no model 'sculptor', only painter"):
        other.check()  # type: ignore[attr-defined]
    wrong_key = openai(image_server, "locked", api_key="sk-wrong")
    with pytest.raises(BackendError, match=r"401.*set the right key") as caught:
        wrong_key.check()  # type: ignore[attr-defined]
    assert "sk-wrong" not in str(caught.value)


@pytest.mark.parametrize("kind", [stopping, ending])
def test_a_stop_waits_for_a_workflow_that_is_drawn(kind: Any, image_server: str, workflow: str) -> None:
    """It may be paid: it would be queued, drawn and paid again when the run goes on."""
    name = f"fine~{kind.__name__}"
    with kind(lambda: bool(requests_to(image_server, name))):
        result = draw_one(comfyui(image_server, workflow, name))
    assert isinstance(result, GeneratedImage)
    assert len(requests_to(image_server, name)) == 1


@pytest.mark.parametrize("name", ["openai:", "http:", "comfyui:", "ftp:x"])
def test_an_unknown_kind_of_generator_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="unknown image generator"):
        init_image_generator(name, authority=OPERATOR)


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://x", "http://"])
def test_an_invalid_address_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="is not the address of a server"):
        init_image_generator("openai:x", GeneratorOptions(base_url=address), OPERATOR)


def test_address_and_key_come_from_the_environment(image_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("GEMS_IMAGE_BASE_URL", f"{image_server}/locked/v1")
    monkeypatch.setenv("GEMS_IMAGE_API_KEY", KEY)
    generator = init_image_generator("openai:painter", GeneratorOptions(timeout=7.0))
    assert "answers" in generator.check()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_the_key_is_in_no_file_and_no_output(image_server: str, tmp_path: Path) -> None:
    """One run succeeds; the other fails with an error in which the server repeats the key."""
    home, out = tmp_path / "home", tmp_path / "out"
    command = ["generate", "a red car", "--generator", "openai:painter", "--max-rounds", "2", "--out", out]
    for fault in ("fine", "locked"):
        options = [f"base_url={image_server}/{fault}/v1", f"api_key={KEY}", "timeout=2"]
        arguments = [part for option in options for part in ("--generator-option", option)]
        result = gems(*command, *arguments, home=home, GEMS_DEBUG="")
        assert result.returncode in (0, 1, 3), result.stderr
        assert KEY not in result.stdout + result.stderr
    written_files = [path for folder in (home, out) for path in folder.rglob("*") if path.is_file()]
    assert {"run.json", "report.html", "checkpoints.sqlite"} <= {path.name for path in written_files}
    assert not [path for path in written_files if KEY.encode() in path.read_bytes()]


def run_on(address: str, tmp_path: Path, *options: str) -> dict[str, Any]:
    """A run of two rounds with the images of the server at an address; returns what ``--json`` prints."""
    arguments = [part for option in options for part in ("--generator-option", option)]
    command = ["generate", "a red car", "--generator", "openai:painter", "--max-rounds", "2", "--no-memory"]
    command += ["--json", "--quiet", "--out", str(tmp_path / "out")]
    result = gems(*command, *arguments, home=tmp_path / "home", GEMS_IMAGE_BASE_URL=address)
    assert result.returncode in (0, 1), result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@pytest.mark.slow
def test_a_run_without_seeds_says_so_and_is_not_replayed(image_server: str, tmp_path: Path) -> None:
    name = f"seedless~{tmp_path.name}"
    address = f"{image_server}/{name}/v1"
    record = run_on(address, tmp_path)
    assert record["notes"] == ["openai:painter takes no seed: this run cannot be replayed"]
    before = len(requests_to(image_server, name))
    replayed = gems("replay", record["paths"]["folder"], home=tmp_path / "home", GEMS_IMAGE_BASE_URL=address)
    assert replayed.returncode == 2, replayed.stderr
    assert "takes no seed" in replayed.stderr
    assert len(requests_to(image_server, name)) == before + 2, "one with the seed, and one without"


@pytest.mark.slow
def test_another_size_is_noted_once_in_a_run(image_server: str, tmp_path: Path) -> None:
    record = run_on(f"{image_server}/other-size/v1", tmp_path, "width=64", "height=64")
    assert len(record["attempts"]) == 2
    assert record["notes"] == ["openai:painter was asked for 64x64 pixels and drew 20x10"]


@pytest.mark.slow
def test_an_image_and_a_report_name_no_server(image_server: str, tmp_path: Path) -> None:
    record = run_on(f"{image_server}/fine/v1", tmp_path)
    host = image_server.partition("://")[2]
    for kind in ("image", "report"):
        assert host.encode() not in Path(record["paths"][kind]).read_bytes()
    images = [path.read_bytes() for path in (tmp_path / "out").rglob("*.png")]
    assert images
    assert not [png for png in images if host.encode() in png or str(tmp_path).encode() in png]
    assert b"openai:painter" in images[0]


@pytest.mark.slow
def test_a_server_that_ignores_the_seed_is_named_by_replay(image_server: str, tmp_path: Path) -> None:
    address = f"{image_server}/moody~{tmp_path.name}/v1"
    record = run_on(address, tmp_path)
    replayed = gems("replay", record["paths"]["folder"], home=tmp_path / "home", GEMS_IMAGE_BASE_URL=address)
    assert replayed.returncode == 1
    assert "whether it honours the seed" in replayed.stderr
