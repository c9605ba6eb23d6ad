"""The table of pipeline classes, against the installed diffusers, and what happens to classes that draw nothing."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from forked import gems_here
from PIL import Image
from pipeline_page import NOT_RUN, PAGE, pipeline_classes, with_tables
from tiny_families import TINY_CLASSES, save_family
from tiny_pipelines import SIZE, save_tiny

from gems.errors import BackendError, ContentRefusedError, InputError
from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.diffusers.families import DRAWING, Family, call_parameters, family_of, refusal
from gems.models.diffusers.previews import unpacked
from gems.models.generators import GeneratedImage, ImageRequest, Step
from gems.options import GeneratorOptions


def unknown_among(kinds: Iterator[type]) -> list[str]:
    return [kind.__name__ for kind in kinds if kind.__name__ not in DRAWING and not refusal(kind)]


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_class_of_diffusers_is_drawn_or_refused() -> None:
    assert unknown_among(pipeline_classes()) == []
    assert len(list(pipeline_classes())) > 300


def test_a_new_class_is_noticed() -> None:
    class NewImagePipeline(diffusers.DiffusionPipeline):  # type: ignore[misc]
        def __call__(self, prompt: str, num_inference_steps: int = 4) -> None: ...

    assert unknown_among(iter([NewImagePipeline])) == ["NewImagePipeline"]


@pytest.mark.slow
def test_the_table_holds_only_classes_that_exist() -> None:
    assert DRAWING.keys() <= {kind.__name__ for kind in pipeline_classes()}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DRAWING))
def test_what_the_table_says_fits_the_call(name: str) -> None:
    kind = getattr(diffusers, name)
    if "dummy" in kind.__module__:
        assert "pip install" in refusal(kind)
        return
    family, parameters = family_of(kind), call_parameters(kind)
    assert "prompt" in parameters
    assert family.switches.keys() <= parameters.keys()
    assert not family.references or family.reference_argument in parameters
    assert not family.canvas or family.references
    rewriters = {p for p in parameters if p in ("use_pe", "enable_prompt_rewrite", "prompt_upsampling")}
    assert rewriters == family.switches.keys()


def test_every_class_that_draws_is_run_or_has_a_reason() -> None:
    assert DRAWING.keys() == {*TINY_CLASSES, *NOT_RUN}
    assert not NOT_RUN.keys() & set(TINY_CLASSES)


# --- refusals --------------------------------------------------------------------------------------------------------


REFUSALS = {
    "WanPipeline": "makes videos",
    "LucyEditPipeline": "makes videos",
    "StableAudioPipeline": "makes sound",
    "MusicLDMPipeline": "makes sound",
    "Kandinsky5I2IPipeline": "needs more than a prompt (image)",
    "LongCatImageEditPipeline": "only edits images",
    "FluxImg2ImgPipeline": "only refines images",
    "FluxFillPipeline": "only fills in a masked part",
    "FluxControlNetPipeline": "draws by a control image",
    "StableDiffusionUpscalePipeline": "only enlarges images",
    "StableCascadePriorPipeline": "makes embeddings",
    "DDPMPipeline": "takes no prompt",
    "ShapEPipeline": "makes 3D objects",
    "LLaDA2Pipeline": "writes text",
    "Krea2ModularPipeline": "is a modular pipeline",
    "StableDiffusionOnnxPipeline": "runs on ONNX",
    "Cosmos2TextToImagePipeline": "needs cosmos_guardrail and torchvision: pip install cosmos_guardrail torch",
    "KolorsPipeline": "needs sentencepiece: pip install sentencepiece",
    "PRXPixelPipeline": "needs ftfy: pip install ftfy",
}


@pytest.mark.parametrize(("name", "reason"), REFUSALS.items(), ids=REFUSALS)
def test_a_class_that_draws_nothing_is_refused_by_name(name: str, reason: str, tmp_path: Path) -> None:
    """There are no weights in the folder, so it is refused before anything is loaded."""
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name, "_diffusers_version": "0"}))
    with pytest.raises(InputError) as error:
        _ = DiffusersGenerator(str(tmp_path), name="tiny").settings
    assert str(error.value).startswith(f"tiny: {name} {reason}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("command", [("doctor",), ("generate", "a cat", "--out", "unused")], ids=["doctor", "generate"])
def test_the_command_line_refuses_it_in_one_line(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", "_diffusers_version": "0"}))
    result = gems_here(*command, "--generator", f"diffusers:{tmp_path}", home=tmp_path / "home")
    said = result.stdout + result.stderr
    assert result.returncode == (3 if command == ("doctor",) else 2)
    assert "WanPipeline makes videos; use a text-to-image pipeline" in " ".join(said.split())


# --- what a call raises ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def z_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("ZImagePipeline", tmp_path_factory.mktemp("pipelines") / "z-image")


def generator(folder: Path, **options: Any) -> DiffusersGenerator:
    sizes = {"width": SIZE, "height": SIZE, "steps": 2} | options
    return DiffusersGenerator(str(folder), name="tiny", options=GeneratorOptions(**sizes))


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("a"),
        TypeError("b"),
        IndexError("c"),
        NameError("d"),
        KeyError("e"),
        ImportError("f"),
        OSError("g"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_call_raises_is_an_error_in_place(
    error: Exception, z_image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = generator(z_image)
    with backend.replicas.borrow() as replica:
        monkeypatch.setattr(replica.pipeline, "encode_prompt", raising(error))
    [result] = backend.generate([ImageRequest("a cat", 1)])
    assert isinstance(result, BackendError)
    message = str(result)
    assert message.startswith(
        f"tiny: ZImagePipeline failed with {type(error).__name__}: {error} (pipeline_z_image.py, line "
    )
    assert result.retryable == isinstance(error, OSError)


def test_a_prompt_that_a_safety_checker_refuses_is_refused(z_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = generator(z_image)
    refusal_of_cosmos = ValueError("Cosmos Guardrail detected unsafe text in the prompt: a cat. Please ensure that ...")
    with backend.replicas.borrow() as replica:
        monkeypatch.setattr(replica.pipeline, "encode_prompt", raising(refusal_of_cosmos))
    [result] = backend.generate([ImageRequest("a cat", 1)])
    assert isinstance(result, ContentRefusedError)


def test_the_command_line_shows_it_in_one_line(z_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diffusers.ZImagePipeline, "encode_prompt", raising(AttributeError("no such part")))
    options = [
        f"--generator-option={name}={value}" for name, value in {"width": SIZE, "height": SIZE, "steps": 2}.items()
    ]
    result = gems_here(
        "generate", "two red cars", "--generator", f"diffusers:{z_image}", *options, "--no-memory", "--out", tmp_path,
        home=tmp_path / "home",
    )  # fmt: skip
    assert result.returncode == 3
    said = " ".join((result.stdout + result.stderr).split())
    assert "ZImagePipeline failed with AttributeError: no such part (pipeline_z_image.py, line" in said
    assert "Traceback" not in said


def raising(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


def test_a_listener_that_raises_what_pipelines_raise_ends_the_call(z_image: Path) -> None:
    def listener(step: Step) -> None:
        raise KeyError(step.step)

    with pytest.raises(KeyError, match="1"):
        generator(z_image).generate([ImageRequest("a cat", 1)], on_step=listener)


def test_an_output_without_images_is_told(z_image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAWING, "ZImagePipeline", Family(output="frames"))  # type: ignore[arg-type]
    [result] = generator(z_image).generate([ImageRequest("a cat", 1)])
    assert str(result) == "tiny: ZImagePipeline returned a ZImagePipelineOutput without images"


# --- several stages --------------------------------------------------------------------------------------------------


class _StopError(Exception):
    """What a listener raises to end a call."""


@pytest.mark.parametrize(
    ("name", "prior_steps", "stages"),
    [("StableUnCLIPPipeline", 25, 2), ("UnCLIPPipeline", 25, 3)],
)
def test_steps_are_those_of_all_stages(name: str, prior_steps: int, stages: int, tmp_path: Path) -> None:
    steps: list[Step] = []
    sizes = {} if name == "UnCLIPPipeline" else {"width": SIZE, "height": SIZE}
    options = GeneratorOptions(steps=2, **sizes)
    backend = DiffusersGenerator(str(save_family(name, tmp_path / name)), name="tiny", options=options)
    [result] = backend.generate([ImageRequest("a cat", 1)], on_step=steps.append)
    assert isinstance(result, GeneratedImage)
    total = prior_steps + 2 + (7 if stages == 3 else 0)
    assert [(step.step, step.steps) for step in steps] == [(count, total) for count in range(1, total + 1)]


def test_a_prior_can_be_stopped(tmp_path: Path) -> None:
    """Its class has a callback for the decoder, and another for the prior."""
    steps: list[int] = []

    def listener(step: Step) -> None:
        steps.append(step.step)
        raise _StopError

    backend = generator(save_family("WuerstchenCombinedPipeline", tmp_path / "wuerstchen"), width=128, height=128)
    with pytest.raises(_StopError):
        backend.generate([ImageRequest("a cat", 1)], on_step=listener)
    assert steps == [1]
    with backend.replicas.borrow() as replica:
        assert "step" not in vars(replica.pipeline.prior_scheduler)  # the next call is not reported to this listener


def test_parts_that_diffusers_has_moved_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_family("WuerstchenCombinedPipeline", tmp_path / "wuerstchen")
    index = json.loads((folder / "model_index.json").read_text())
    assert index["vqgan"] == ["wuerstchen", "PaellaVQModel"]  # as repositories have it
    monkeypatch.delattr(diffusers.pipelines, "wuerstchen")  # as in a new process
    generator(folder, width=128, height=128).load()


def test_a_prior_reads_a_negative_prompt_where_the_decoder_guides_not(tmp_path: Path) -> None:
    folder = save_family("StableCascadeCombinedPipeline", tmp_path / "cascade")
    settings = generator(folder, width=128, height=128, negative_prompt="a dog").settings
    assert settings["negative_prompt"] == "a dog"


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")  # Kandinsky calls its own stages in an old way
def test_a_prior_takes_a_negative_prompt_with_one_generator(tmp_path: Path) -> None:
    backend = generator(save_family("KandinskyV22CombinedPipeline", tmp_path / "kandinsky"), width=64, height=64)
    [result] = backend.generate([ImageRequest("a cat", 1, negative_prompt="a dog")])
    assert isinstance(result, GeneratedImage)


# --- options and doctor ----------------------------------------------------------------------------------------------


def test_ideogram_takes_steps_or_guidance(tmp_path: Path) -> None:
    folder = save_family("Ideogram4Pipeline", tmp_path / "ideogram")
    assert generator(folder).settings["guidance_schedule"] == (7.0, 3.0)
    assert len(generator(folder, steps=10).settings["guidance_schedule"]) == 10
    guided = generator(folder, guidance_scale=5.0)
    assert guided.settings["guidance_schedule"] is None
    assert isinstance(guided.generate([ImageRequest("a cat", 1)])[0], GeneratedImage)


def test_guidance_has_another_name_and_needs_an_input(tmp_path: Path) -> None:
    folder = save_family("HunyuanImagePipeline", tmp_path / "hunyuan")
    with pytest.raises(InputError, match="these weights have no input for the guidance_scale"):
        _ = generator(folder, guidance_scale=4.0).settings
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"guidance_embeds": True}))
    assert generator(folder, guidance_scale=4.0).settings["distilled_guidance_scale"] == 4.0


def test_a_batch_is_refused_where_it_would_change_images(tmp_path: Path) -> None:
    folder = save_family("DreamLitePipeline", tmp_path / "dream-lite")
    with pytest.raises(InputError, match="DreamLitePipeline draws one image at a time; leave batch_size out"):
        _ = generator(folder, batch_size=2).settings
    results = generator(folder).generate([ImageRequest("a cat", 1), ImageRequest("a dog", 1)])
    assert all(isinstance(result, GeneratedImage) for result in results)


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("GlmImagePipeline", 32),
        ("KandinskyV22CombinedPipeline", 64),
        ("LDMTextToImagePipeline", 8),
        ("WuerstchenCombinedPipeline", 128),
    ],
)
def test_a_size_that_a_class_would_round_is_refused(name: str, multiple: int, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path / name)
    with pytest.raises(InputError, match=rf"width {3 * multiple + 4} is not a multiple of {multiple}, as {name} needs"):
        _ = generator(folder, width=3 * multiple + 4, height=2 * multiple).settings


def test_a_class_without_a_size_of_its_own_is_given_one(tmp_path: Path) -> None:
    folder = save_family("GlmImagePipeline", tmp_path / "glm")
    settings = DiffusersGenerator(str(folder), name="tiny").settings
    assert (settings["width"], settings["height"]) == (1024, 1024)


def test_prompts_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    assert generator(save_family("ErnieImagePipeline", tmp_path / "ernie")).settings["use_pe"] is False
    assert generator(save_family("LongCatImagePipeline", tmp_path / "cat")).settings["enable_prompt_rewrite"] is False


@pytest.mark.parametrize(("name", "part"), [("Flux2Pipeline", "tokenizer"), ("QwenImage21Pipeline", "processor")])
def test_doctor_loads_tokenizers_and_processors(name: str, part: str, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path / name)
    assert generator(folder).check().startswith(name)
    for file in (folder / part).glob("tokenizer*"):
        file.write_text("{}")
    with pytest.raises(BackendError, match=f"cannot load its {part}, a "):
        generator(folder).check()


def test_transparency_becomes_white(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = generator(save_tiny("ZImagePipeline", tmp_path / "z-image"))
    with backend.replicas.borrow() as replica:
        glass = Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 0))
        glass.putpixel((1, 1), (255, 0, 0, 255))
        kind = type(replica.pipeline.image_processor)
        monkeypatch.setattr(kind, "postprocess", lambda *_, **__: [glass])
    [result] = backend.generate([ImageRequest("a cat", 1)])
    assert isinstance(result, GeneratedImage)
    assert (result.image.mode, result.image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


# --- previews --------------------------------------------------------------------------------------------------------


def packed_by(pipeline: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents as the pipeline's denoiser has them; Flux2 normalises them too."""
    batch, channels, height, width = latents.shape
    if hasattr(pipeline, "_patchify_latents"):
        grid = pipeline._patchify_latents(latents)
        norm = pipeline.vae.bn
        mean, deviation = norm.running_mean.view(1, -1, 1, 1), (norm.running_var + norm.eps).sqrt().view(1, -1, 1, 1)
        grid = (grid - mean) / deviation
        return pipeline._pack_latents(grid) if hasattr(pipeline, "_pack_latents") else grid
    sizes = (batch, channels, height, width)
    if "patch_size" in call_parameters_of(pipeline._pack_latents):
        return pipeline._pack_latents(latents, *sizes, pipeline.transformer.config.patch_size)
    return pipeline._pack_latents(latents, *sizes)


def call_parameters_of(function: Any) -> Any:
    return inspect.signature(function).parameters


@pytest.mark.parametrize(
    "name", ["FluxPipeline", "Flux2KleinPipeline", "ErnieImagePipeline", "NucleusMoEImagePipeline"]
)
def test_latents_are_unpacked_for_previews(name: str, tmp_path: Path) -> None:
    backend = generator(save_family(name, tmp_path / name))
    with backend.replicas.borrow() as replica:
        pipeline = replica.pipeline
    channels = pipeline.vae.config.get("latent_channels") or pipeline.vae.config.z_dim
    if norm := getattr(pipeline.vae, "bn", None):
        norm.running_mean.copy_(torch.arange(norm.num_features))
        norm.running_var.copy_(torch.arange(norm.num_features) + 2)
    latents = torch.arange(2 * channels * 4 * 8, dtype=torch.float32).view(2, channels, 4, 8)
    grid = unpacked(pipeline.vae, packed_by(pipeline, latents), 2.0, channels)
    assert torch.allclose(grid, latents, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["Flux2KleinPipeline", "SanaSprintPipeline", "DreamLitePipeline", "QwenImage21Pipeline"]
)
def test_previews_come_with_every_autoencoder(name: str, tmp_path: Path) -> None:
    steps: list[Step] = []
    generator(save_family(name, tmp_path / name), previews=1).generate([ImageRequest("a cat", 1)], on_step=steps.append)
    assert [step.preview is not None for step in steps] == [True, True]


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_says_what_the_code_does() -> None:
    """If it does not: `python tests/pipeline_page.py` writes it."""
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page)
    assert page.count("\n| `") == len(DRAWING)
