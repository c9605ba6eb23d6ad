"""Which defaults and which advice a diffusers pipeline gets, from its small files and, at last, from its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
from tiny_pipelines import save_tiny

from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.diffusers.defaults import _TABLE, defaults_of, facts_of
from gems.models.diffusers.guides import _GUIDES
from gems.models.diffusers.source import PipelineSource, accepts
from gems.models.processors import missing_backends

FLOW = "FlowMatchEulerDiscreteScheduler"
Z, XL, FLUX = "ZImagePipeline", "StableDiffusionXLPipeline", "FluxPipeline"
KLEIN, KREA, HUNYUAN = "Flux2KleinPipeline", "Krea2Pipeline", "HunyuanImagePipeline"
SCHNELL = {"denoiser": {"guidance_embeds": False}, "scheduler": {"use_dynamic_shifting": False}}


def write_model(
    folder: Path,
    kind: str,
    *,
    index: dict[str, Any] | None = None,
    scheduler: dict[str, Any] | None = None,
    denoiser: dict[str, Any] | None = None,
) -> PipelineSource:
    """A folder with the small files of a pipeline: its index, and the configuration of its scheduler and denoiser."""
    part = "unet" if kind.startswith("StableDiffusion") and "3" not in kind else "transformer"
    scheduler = {"_class_name": FLOW} | (scheduler or {})
    entries = {"_class_name": kind, "scheduler": ["diffusers", scheduler["_class_name"]], part: ["diffusers", "Model"]}
    for path, content in (
        ("model_index.json", entries | (index or {})),
        ("scheduler/scheduler_config.json", scheduler),
        (f"{part}/config.json", denoiser or {}),
    ):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(json.dumps(content))
    return PipelineSource.parse(str(folder))


def arguments_of(source: PipelineSource) -> dict[str, Any]:
    return dict(defaults_of(facts_of(source)).arguments)


def steps_and_guidance(source: PipelineSource) -> tuple[Any, Any]:
    arguments = arguments_of(source)
    return arguments.get("num_inference_steps"), arguments.get("guidance_scale")


@pytest.mark.parametrize(
    ("name", "kind", "files", "expected"),
    [
        ("klein", KLEIN, {"index": {"is_distilled": True}}, (4, 1.0)),
        ("my-own-model", KLEIN, {"index": {"is_distilled": True}}, (4, 1.0)),
        ("my-own-model", KLEIN, {"index": {"is_distilled": False}}, (50, 4.0)),
        ("FLUX.2-klein-9B", KLEIN, {}, (4, 1.0)),
        ("FLUX.2-klein-base-9B", KLEIN, {}, (50, 4.0)),
        ("FLUX.2-dev", "Flux2Pipeline", {}, (50, 4.0)),
        ("klein-kv", "Flux2KleinKVPipeline", {}, (4, None)),
        ("Krea-2-Turbo", KREA, {}, (8, 0.0)),
        ("anything", KREA, {"index": {"is_distilled": True}}, (8, 0.0)),
        ("Krea-2-Raw", KREA, {"index": {"is_distilled": False}}, (28, 4.5)),
        ("turbo-lookalike", KREA, {"index": {"is_distilled": False}}, (28, 4.5)),
        ("ERNIE-Image-Turbo", "ErnieImagePipeline", {}, (8, 1.0)),
        ("ERNIE-Image", "ErnieImagePipeline", {}, (50, 4.0)),
        ("Ideogram-4-nf4", "Ideogram4Pipeline", {}, (48, None)),
        ("HunyuanImage-2.1-Distilled-Diffusers", HUNYUAN, {}, (8, None)),
        ("some-folder", HUNYUAN, {"denoiser": {"guidance_embeds": True}}, (8, None)),
        ("HunyuanImage-2.1-Diffusers", HUNYUAN, {"denoiser": {"guidance_embeds": False}}, (50, None)),
        ("Z-Image-Turbo", Z, {"scheduler": {"shift": 3.0}}, (9, 0.0)),
        ("Z-Image", Z, {"scheduler": {"shift": 6.0}}, (50, 4.0)),
        ("my-anime-finetune", Z, {"scheduler": {"shift": 6.0}}, (50, 4.0)),
        ("my-anime-finetune", Z, {"scheduler": {"shift": 3.0}}, (9, 0.0)),
        ("zimageTurbo_v2", Z, {}, (9, 0.0)),
        ("turbo-style-finetune", Z, {"index": {"is_distilled": False}, "scheduler": {"shift": 3.0}}, (50, 4.0)),
        ("Z-Image-De-Turbo", Z, {"scheduler": {"shift": 3.0}}, (50, 4.0)),
        ("my-anime-finetune", Z, {}, (50, 4.0)),
        ("sdxl-turbo", XL, {}, (1, 0.0)),
        ("dreamshaper-xl-v2-turbo", XL, {}, (6, 2.0)),
        ("RealVisXL_V5.0_Lightning", XL, {}, (4, 2.0)),
        ("sdxl_lightning_8step", XL, {}, (8, 2.0)),
        ("realism-hyper-xl", XL, {}, (8, 0.0)),
        ("Hyper-SDXL-4steps", XL, {}, (4, 0.0)),
        ("hyperrealism-xl", XL, {}, (50, 5.0)),
        ("sdxl-base", XL, {"scheduler": {"_class_name": "LCMScheduler"}}, (4, 1.0)),
        ("x", XL, {"scheduler": {"_class_name": "LCMScheduler"}, "denoiser": {"time_cond_proj_dim": 256}}, (4, 8.0)),
        ("sdxl-base", XL, {"scheduler": {"_class_name": "TCDScheduler"}}, (4, 0.0)),
        ("stable-diffusion-xl-base-1.0", XL, {"scheduler": {"_class_name": "EulerDiscreteScheduler"}}, (50, 5.0)),
        ("dreamshaper-8-lcm", "StableDiffusionPipeline", {}, (4, 1.0)),
        ("stable-diffusion-v1-5", "StableDiffusionPipeline", {}, (None, None)),
        ("FLUX.1-Krea-dev", FLUX, {}, (28, 4.5)),
        ("FLUX.1-dev", FLUX, {"denoiser": {"guidance_embeds": True}}, (50, 3.5)),
        ("a-fine-tune", FLUX, SCHNELL, (4, 0.0)),
        ("HiDream-I1-Full", "HiDreamImagePipeline", {}, (50, 5.0)),
        ("HiDream-I1-Dev", "HiDreamImagePipeline", {}, (28, 0.0)),
        ("HiDream-I1-Fast", "HiDreamImagePipeline", {}, (16, 0.0)),
        ("Lumina-Image-2.0", "Lumina2Pipeline", {}, (50, 4.0)),
        ("Chroma1-HD", "ChromaPipeline", {}, (40, 3.0)),
        ("Kandinsky-5.0-T2I-Lite", "Kandinsky5T2IPipeline", {}, (50, 3.5)),
        ("Sana_1600M_2Kpx", "SanaPipeline", {"denoiser": {"sample_size": 64}}, (20, 4.5)),
        ("Qwen-Image-2.1", "QwenImage21Pipeline", {}, (40, None)),
        ("fast", "QwenImage21Pipeline", {"index": {"sample_sigmas": [1.0, 0.9, 0.8, 0.7, 0.5]}}, (5, None)),
        ("Qwen-Image-Lightning-4steps", "QwenImagePipeline", {}, (4, None)),
        ("stable-diffusion-3-medium-diffusers", "StableDiffusion3Pipeline", {}, (28, 7.0)),
    ],
)  # fmt: skip
def test_defaults_follow_the_files_and_then_the_name(
    tmp_path: Path, name: str, kind: str, files: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    assert steps_and_guidance(write_model(tmp_path / name, kind, **files)) == expected


@pytest.mark.parametrize(
    ("path", "kind", "expected"),
    [
        ("turbo/sdxl", XL, (50, 5.0)),
        ("sdxl-turbo/unrelated", XL, (50, 5.0)),
        ("krea/FLUX.1-dev", FLUX, (50, 3.5)),
        ("schnell/flux", FLUX, (50, 3.5)),
        ("models--stabilityai--sdxl-turbo/snapshots/0123abc", XL, (1, 0.0)),
    ],
)
def test_only_the_last_part_of_a_path_is_a_name(
    tmp_path: Path, path: str, kind: str, expected: tuple[int, float]
) -> None:
    assert steps_and_guidance(write_model(tmp_path / path, kind)) == expected


def test_sizes_fit_the_weights(tmp_path: Path) -> None:
    sides = {
        name: arguments_of(write_model(tmp_path / name, kind, denoiser=denoiser)).get("width")
        for name, kind, denoiser in (
            ("sdxl-turbo", XL, {}),
            ("dreamshaper-xl-v2-turbo", XL, {}),
            ("sana-2k", "SanaPipeline", {"sample_size": 64}),
            ("sana-512", "SanaPipeline", {"sample_size": 16}),
            ("lcm-sd15", "StableDiffusionPipeline", {}),
        )
    }
    assert sides == {
        "sdxl-turbo": 512,
        "dreamshaper-xl-v2-turbo": 1024,
        "sana-2k": 2048,
        "sana-512": 512,
        "lcm-sd15": None,
    }


def test_qwen_lightning_asks_for_no_guidance(tmp_path: Path) -> None:
    arguments = arguments_of(write_model(tmp_path / "Qwen-Image-Lightning", "QwenImagePipeline"))
    assert (arguments["true_cfg_scale"], arguments.get("negative_prompt")) == (1.0, None)


def test_defaults_are_arguments_of_their_pipelines() -> None:
    for row in _TABLE:
        for kind in row.kinds:
            unknown = [name for name in row.arguments if not accepts(getattr(diffusers, kind), name)]
            assert not unknown, (kind, unknown)


def test_an_unknown_pipeline_is_called_with_its_own_defaults(tmp_path: Path) -> None:
    source = write_model(tmp_path / "PixArt", "PixArtSigmaPipeline")
    assert arguments_of(source) == {}
    assert str(defaults_of(facts_of(source))) == "the pipeline's own defaults"


def test_a_check_says_which_defaults_apply_and_why(tmp_path: Path) -> None:
    folder = save_tiny("ZImagePipeline", tmp_path / "my-finetune")
    line = DiffusersGenerator(str(folder), name="tiny").check()
    assert "num_inference_steps 9" in line
    assert "defaults of Z-Image-Turbo (its files say shift 3.0)" in line


# --- guides ----------------------------------------------------------------------------------------------------------


def guide(source: PipelineSource) -> str:
    return DiffusersGenerator(source.path, name="tiny").guide


@pytest.mark.parametrize("kind", sorted(_GUIDES))
def test_there_is_advice_for_each_family(tmp_path: Path, kind: str) -> None:
    if packages := missing_backends(getattr(diffusers, kind)):
        pytest.skip(f"needs {packages}")
    assert 30 < len(guide(write_model(tmp_path / "model", kind))) < 1200


def test_each_pipeline_with_defaults_has_advice() -> None:
    assert {kind for row in _TABLE for kind in row.kinds} - _GUIDES.keys() == set()


def test_advice_follows_the_form_that_a_model_was_trained_on(tmp_path: Path) -> None:
    assert "high_level_description" in guide(write_model(tmp_path / "a", "Ideogram4Pipeline"))
    assert "short_description" in guide(write_model(tmp_path / "b", "BriaFiboPipeline"))
    assert "quotes" in guide(write_model(tmp_path / "c", HUNYUAN))


def test_advice_on_negative_prompts_follows_the_guidance(tmp_path: Path) -> None:
    no_negative = "It has no negative prompt"
    assert no_negative in guide(write_model(tmp_path / "Krea-2-Turbo", KREA))
    assert no_negative not in guide(write_model(tmp_path / "Krea-2-Raw", KREA))
    assert no_negative in guide(write_model(tmp_path / "Z-Image-Turbo", Z))
    assert no_negative not in guide(write_model(tmp_path / "Z-Image", Z))
    assert no_negative in guide(write_model(tmp_path / "FLUX.2-dev", "Flux2Pipeline"))
    assert no_negative in guide(write_model(tmp_path / "FLUX.1-dev", FLUX))


@pytest.mark.parametrize(
    ("kind", "tokenizers", "words"),
    [
        (XL, {"": "CLIPTokenizer", "_2": "CLIPTokenizer"}, "77 tokens, about 50 words"),
        ("StableDiffusion3Pipeline", {"": "CLIPTokenizer", "_3": "T5TokenizerFast"}, "256 tokens"),
        ("HiDreamImagePipeline", {"": "CLIPTokenizer", "_3": "T5Tokenizer", "_4": "LlamaTokenizer"}, "128 tokens"),
        ("Lumina2Pipeline", {"": "GemmaTokenizer"}, "256 tokens"),
    ],
)
def test_advice_says_how_much_is_read(tmp_path: Path, kind: str, tokenizers: dict[str, str], words: str) -> None:
    index = {f"tokenizer{n}": ["transformers", name] for n, name in tokenizers.items()}
    index |= {f"text_encoder{n}": ["transformers", "Encoder"] for n in tokenizers}
    assert words in guide(write_model(tmp_path / "model", kind, index=index))


def test_advice_says_nothing_of_a_limit_that_nobody_reaches(tmp_path: Path) -> None:
    index = {"tokenizer": ["transformers", "Qwen2Tokenizer"], "text_encoder": ["transformers", "Encoder"]}
    assert "tokens" not in guide(write_model(tmp_path / "Z-Image", Z, index=index))
