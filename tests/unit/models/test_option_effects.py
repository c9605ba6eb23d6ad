"""Options that a model would accept and ignore: guidance, sizes, strengths, previews, seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conformance.generator_suite import images, pixels
from tiny_pipelines import SIZE, edit_index, save_tiny

from gems.authority import OPERATOR
from gems.cli.doctor import diagnose
from gems.errors import InputError
from gems.graph.context import GemsContext
from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.diffusers.option_checks import size_multiple
from gems.models.diffusers.source import PipelineSource
from gems.models.generators import ImageRequest, check_generator_options, is_reproducible
from gems.models.option_effects import OptionEffect
from gems.models.public_names import public_fingerprint, public_name
from gems.models.registry import init_image_generator
from gems.options import GeneratorOptions

CLASSES = (
    "ZImagePipeline",
    "QwenImagePipeline",
    "FluxPipeline",
    "StableDiffusion3Pipeline",
    "StableDiffusionXLPipeline",
)
ARRAY_WARNING = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
REQUEST = ImageRequest("a car", 1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipelines")
    for kind in CLASSES:
        save_tiny(kind, folder / kind)
    return folder


def generator(folder: Path, **options: Any) -> DiffusersGenerator:
    settings = {"width": SIZE, "height": SIZE, "steps": 2, **options}
    return DiffusersGenerator(str(folder), name="tiny", options=GeneratorOptions(**settings))


def refusal(folder: Path, **options: Any) -> str:
    """Why options are refused; empty if they are not."""
    try:
        check_generator_options(generator(folder, **options))
    except InputError as error:
        return str(error)
    return ""


# --- guidance --------------------------------------------------------------------------------------------------------

GUIDANCE = [
    # (pipeline, options besides a negative prompt, whether the negative prompt has an effect)
    ("ZImagePipeline", {"guidance_scale": 0.0}, False),
    ("ZImagePipeline", {"guidance_scale": 1.0}, True),
    ("StableDiffusion3Pipeline", {"guidance_scale": 0.0}, False),
    ("StableDiffusion3Pipeline", {"guidance_scale": 1.0}, False),
    ("StableDiffusion3Pipeline", {"guidance_scale": 3.0}, True),
    ("StableDiffusionXLPipeline", {"guidance_scale": 1.0}, False),
    ("StableDiffusionXLPipeline", {"guidance_scale": 3.0}, True),
    ("StableDiffusionXLPipeline", {}, True),  # by the model card's default
    ("QwenImagePipeline", {"true_cfg_scale": 1.0}, False),
    ("QwenImagePipeline", {}, True),
    ("FluxPipeline", {}, False),
    ("FluxPipeline", {"guidance_scale": 3.5}, False),
    ("FluxPipeline", {"true_cfg_scale": 1.0}, False),
    ("FluxPipeline", {"true_cfg_scale": 3.0}, True),
]


@ARRAY_WARNING
@pytest.mark.parametrize(("kind", "options", "has_effect"), GUIDANCE)
def test_a_negative_prompt_is_refused_where_it_changes_nothing(
    kind: str, options: dict[str, Any], has_effect: bool, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = refusal(folders / kind, negative_prompt="blur, noise", **options)
    assert (reason == "") == has_effect, reason
    assert "negative_prompt" in reason or has_effect
    # The refusal is right: without it, the pipeline draws the same image with two different negative prompts.
    monkeypatch.setattr("gems.models.diffusers.backend.require_honoured", lambda *_: None)
    drawn = {
        pixels(images(generator(folders / kind, negative_prompt=text, **options), [REQUEST])[0])
        for text in ("blur, noise, dogs and everything else that there is", "x")
    }
    assert (len(drawn) == 2) == has_effect


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("FluxPipeline", {"true_cfg_scale": 4.0}, "only with a negative_prompt"),
        ("QwenImagePipeline", {"guidance_scale": 5.0}, "no input for the guidance_scale"),
        ("QwenImagePipeline", {"true_cfg_scale": 0.5}, "guides only above 1"),
        ("StableDiffusion3Pipeline", {"guidance_scale": 0.5}, "guides only above 1"),
        ("ZImagePipeline", {"strength": 0.1}, "leaves none to draw; give steps=10 or more"),
        ("ZImagePipeline", {"previews": 3}, "never comes in 2 steps"),
        ("StableDiffusion3Pipeline", {"device": "cpu, teapot"}, "unknown device 'teapot'"),
    ],
)
def test_other_options_without_an_effect_are_refused(
    kind: str, options: dict[str, Any], words: str, folders: Path
) -> None:
    assert words in refusal(folders / kind, **options)


def test_a_guidance_scale_of_zero_may_be_given_to_weights_without_guidance(folders: Path, tmp_path: Path) -> None:
    schnell = save_tiny("FluxPipeline", tmp_path / "schnell")
    config = schnell / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": False}))
    assert refusal(schnell, guidance_scale=0.0) == ""
    assert "no input for the guidance_scale" in refusal(schnell, guidance_scale=3.5)


def test_a_distilled_model_that_never_guides_refuses_a_guidance_scale(folders: Path, tmp_path: Path) -> None:
    """By the property of the pipeline's class, which looks at its settings: no weights are needed."""
    folder = save_tiny("ZImagePipeline", tmp_path / "klein")
    edit_index(folder, _class_name="Flux2KleinPipeline", is_distilled=True)
    assert "not at all: these weights are distilled" in refusal(folder, guidance_scale=4.0)
    edit_index(folder, is_distilled=False)
    assert refusal(folder, guidance_scale=4.0) == ""


# --- sizes -----------------------------------------------------------------------------------------------------------


@ARRAY_WARNING
@pytest.mark.parametrize("kind", CLASSES)
def test_a_size_that_a_pipeline_would_change_is_refused(kind: str, folders: Path) -> None:
    multiple = size_multiple(PipelineSource.parse(str(folders / kind)))
    assert multiple > 1
    reason = refusal(folders / kind, width=SIZE + 1)
    assert f"width {SIZE + 1} is not a multiple of {multiple}" in reason
    assert f"give {SIZE} or {SIZE + multiple}" in reason
    if multiple > 2:
        assert "height" in refusal(folders / kind, height=SIZE + multiple // 2)
    [result] = images(generator(folders / kind, width=SIZE + multiple, height=SIZE), [REQUEST])
    assert result.image.size == (SIZE + multiple, SIZE)
    assert result.note is None


def test_the_multiple_of_known_models_is_that_of_their_pipelines(folders: Path) -> None:
    """With the configurations that their makers publish: eight pixels for a latent, and patches of two by two."""
    published: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "FluxPipeline": ({"in_channels": 64, "patch_size": 1}, {"latent_channels": 16}),
        "ZImagePipeline": ({"in_channels": 16, "all_patch_size": [2]}, {"latent_channels": 16}),
        "StableDiffusion3Pipeline": ({"in_channels": 16, "patch_size": 2}, {"latent_channels": 16}),
        "QwenImagePipeline": ({"in_channels": 64, "patch_size": 2}, {"z_dim": 16, "temperal_downsample": [0, 1, 1]}),
        "StableDiffusionXLPipeline": ({"in_channels": 4}, {"latent_channels": 4}),
    }
    expected = dict.fromkeys(published, 16) | {"StableDiffusionXLPipeline": 8}
    for kind, (denoiser, vae) in published.items():
        source = PipelineSource.parse(str(folders / kind))
        source._configs[source.denoiser or ""] = denoiser
        source._configs["vae"] = {"block_out_channels": [128, 256, 512, 512], **vae}
        assert size_multiple(source) == expected[kind], kind


# --- doctor ----------------------------------------------------------------------------------------------------------


def options_told(name: str, **options: Any) -> tuple[bool, dict[str, OptionEffect]]:
    context = GemsContext(generator=name, generator_options=GeneratorOptions(**options), memory=False)
    [check] = [check for check in diagnose(context.as_operator()) if check.name == "generator options"]
    assert all(effect.option in check.detail for effect in check.options)
    return check.ok, {effect.option: effect for effect in check.options}


@pytest.mark.slow
def test_doctor_says_what_each_option_of_pocket_does() -> None:
    ok, effects = options_told("pocket", steps=4, dtype="bfloat16", batch_size=8)
    assert not ok
    assert (effects["steps"].status, effects["steps"].detail) == ("honoured", "4")
    assert "float32" in effects["dtype"].detail
    assert effects["batch_size"].status == "refused"
    assert (effects["guidance_scale"].status, effects["guidance_scale"].detail) == ("default", "1.0")


@pytest.mark.slow
def test_doctor_says_what_each_option_of_a_pipeline_does(folders: Path) -> None:
    ok, effects = options_told(f"diffusers:{folders / 'StableDiffusion3Pipeline'}", width=SIZE, device="cpu")
    assert ok
    assert effects["width"].status == effects["device"].status == "honoured"
    assert effects["steps"] == OptionEffect("steps", "default", "28")  # of the model card


@pytest.mark.slow
def test_doctor_says_what_a_server_refuses_and_never_shows_a_key() -> None:
    ok, effects = options_told("openai:gpt-image-1", steps=4, width=512, api_key="sk-canary-77")
    assert not ok
    assert effects["steps"].status == "refused"
    assert "1024x1024, 1536x1024, 1024x1536" in effects["width"].detail
    assert effects["api_key"].status == "honoured"
    assert "sk-canary-77" not in str(effects)


@pytest.mark.slow
def test_doctor_says_what_a_chat_option_does_for_each_model() -> None:
    chat_options = {"temperature": 0.2, "api_key": "sk-x", "base_url": "http://127.0.0.1:9/v1", "timeout": 0.2}
    context = GemsContext(mllm="pocket", planner="openai:gpt-5", chat_options=chat_options, memory=False)
    checks = {check.name: check for check in diagnose(context.as_operator())}
    for name in ("pocket", "openai:gpt-5"):
        check = checks[f"chat options of {name}"]
        assert not check.ok  # langchain-openai drops the temperature of gpt-5, and pocket has none
        assert {e.option: e.status for e in check.options}["temperature"] == "refused"
    assert "giraffe" in checks["words of the pocket models"].detail


# --- servers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("openai:gpt-image-1", {"width": 512, "height": 768}, "no images of 512x768, only 1024x1024"),
        ("openai:dall-e-3", {"width": 1536, "height": 1024}, "no images of 1536x1024"),
        ("openai:gpt-image-1", {"previews": 4}, "at most 3 previews"),
        ("openai:dall-e-3", {"previews": 1}, "only OpenAI's gpt-image models stream previews"),
        ("openai:x", {"base_url": "http://h/v1", "previews": 1}, "only OpenAI's gpt-image models stream previews"),
        ("openai:x", {"base_url": "http://h/v1", "negative_prompt": "a", "guidance_scale": 0.0}, "only with guidance"),
        ("http:http://h/draw", {"negative_prompt": "a", "guidance_scale": 1.0}, "only with guidance"),
    ],
)
def test_a_server_refuses_what_it_would_ignore(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        init_image_generator(name, GeneratorOptions(**options), OPERATOR)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("openai:gpt-image-1", {"width": 1024}),
        ("openai:gpt-image-1", {"width": 1536, "height": 1024, "previews": 3}),
        ("openai:x", {"base_url": "http://h/v1", "negative_prompt": "a"}),
        ("openai:x", {"base_url": "http://h/v1", "negative_prompt": "a", "true_cfg_scale": 4.0, "guidance_scale": 1.0}),
    ],
)
def test_a_server_is_sent_what_it_may_honour(name: str, options: dict[str, Any]) -> None:
    assert init_image_generator(name, GeneratorOptions(**options), OPERATOR).name == name


def test_the_seed_of_a_workflow_has_an_input_of_its_own(tmp_path: Path) -> None:
    workflow = {"3": {"class_type": "KSampler", "inputs": {"seed": 0, "name": "euler"}}}
    path = tmp_path / "workflow.json"
    path.write_text(json.dumps(workflow))
    for seed, words in (("3.name", "same input"), ("3.seed", "")):
        fields = {"workflow": str(path), "prompt_field": "3.name", "seed_field": seed}
        if words:
            with pytest.raises(InputError, match=words):
                init_image_generator("comfyui:http://h", GeneratorOptions(**fields), OPERATOR)
        else:
            init_image_generator("comfyui:http://h", GeneratorOptions(**fields), OPERATOR)
    fields = {"workflow": str(path), "prompt_field": "3.seed", "seed_field": "3.name"}
    with pytest.raises(InputError, match="'euler', which is not a seed"):
        init_image_generator("comfyui:http://h", GeneratorOptions(**fields), OPERATOR)


def test_only_a_server_without_seeds_is_not_reproducible() -> None:
    assert not is_reproducible(init_image_generator("openai:gpt-image-1"))
    assert is_reproducible(init_image_generator("openai:x", GeneratorOptions(base_url="http://h/v1"), OPERATOR))
    assert is_reproducible(init_image_generator("pocket"))


# --- names that leave this machine -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("pocket", "pocket"),
        ("pocket-large", "pocket-large"),
        ("openai:gpt-image-1", "openai:gpt-image-1"),
        ("diffusers:Tongyi-MAI/Z-Image-Turbo@v1", "diffusers:Tongyi-MAI/Z-Image-Turbo@v1"),
        ("python:my_models:plain", "python:my_models:plain"),
        ("http:http://ann:secret@10.0.0.7:8000/draw", "http"),
        ("http://10.0.0.7/draw", "http"),
        ("https://10.0.0.7/draw", "https"),
        ("comfyui:http://10.0.0.7:8188", "comfyui"),
        ("comfyui:10.0.0.7:8188", "comfyui"),
        ("diffusers:/home/ann/models/my-model", "diffusers:my-model"),
        ("diffusers:~/my-model/", "diffusers:my-model"),
        ("diffusers:../ann/my-model", "diffusers:my-model"),
        ("diffusers:C:\\Users\\ann\\my-model", "diffusers:my-model"),
        ("transformers:/home/ann/qwen", "transformers:qwen"),
        ("openai:/srv/ann/models/z-image", "openai:z-image"),
        ("diffusers:/home/ann/my\x1b[31m\u202emodel\n", "diffusers:my[31mmodel"),
        ("diffusers:/home/ann/a\0b", "diffusers:ab"),
        ("diffusers:~nobody-of-this-name/ann/x", "diffusers:x"),
        ("diffusers:/ann/" + "x" * 5000, "diffusers:" + "x" * 190),
        ("diffusers:" + "y" * 5000, "diffusers:" + "y" * 190),
        ("openai:a\nb\x9b31m", "openai:a b31m"),
    ],
)
def test_a_public_name_has_no_address_and_no_folder(name: str, public: str) -> None:
    assert public_name(name) == public


def test_a_relative_folder_is_reduced_to_its_last_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert public_name(f"diffusers:{tmp_path}/circle") == "diffusers:circle"
    (tmp_path / "ann" / "my-model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("diffusers:ann/my-model") == "diffusers:my-model"
    assert public_name("transformers:ann/my-model") == "transformers:my-model"
    assert public_name("diffusers:other/my-model") == "diffusers:other/my-model"


def test_a_public_fingerprint_has_no_address() -> None:
    assert public_fingerprint("owner/repo@c0ffee") == "owner/repo@c0ffee"
    hashed = public_fingerprint("openai:x@http://10.0.0.7/v1")
    assert len(hashed) == 64
    assert hashed != public_fingerprint("openai:x@http://10.0.0.8/v1")
