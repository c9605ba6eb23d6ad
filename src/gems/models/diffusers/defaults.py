"""Recommended sizes, steps and guidance of diffusers pipelines, from the model cards and documentation of their makers.

Which model a folder or repository holds is judged by its pipeline's class and by what its small files say: whether
``model_index.json`` calls it distilled, which scheduler with which shift it has. A name is the last resort, and of a
path only its last part. A model without a row is called with its pipeline's own defaults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from gems.models.diffusers.source import PipelineSource

__all__ = ["Defaults", "ModelFacts", "defaults_of", "facts_of"]


@dataclass(frozen=True)
class ModelFacts:
    """What the small files of a pipeline say about its weights.

    Attributes:
        kind: The name of the pipeline's class.
        name: The last part of the repository's id, or of the path of the folder or file.
        entries: The entries of its configuration files that rows of the table ask for; None for those it does not have.
    """

    kind: str
    name: str
    entries: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Defaults:
    """Recommended arguments for calling a pipeline.

    Attributes:
        arguments: The arguments.
        model: The model whose card recommends them; empty if there are none.
        reason: How it was recognised.
    """

    arguments: Mapping[str, Any]
    model: str = ""
    reason: str = ""

    def __str__(self) -> str:
        """One line on which defaults apply, and why."""
        return f"defaults of {self.model} ({self.reason})" if self.model else "the pipeline's own defaults"


class _Row(NamedTuple):
    """A recommendation, and for which weights it holds: all of the conditions must be true."""

    kinds: tuple[str, ...]
    model: str
    arguments: Mapping[str, Any]
    name: str = ""
    """A pattern in the model's name."""
    entries: Mapping[str, Any] = {}
    """What entries of its configuration files have to be."""


_INDEX: Final = ("is_distilled", "sample_sigmas")
_SCHEDULER: Final = ("shift", "use_dynamic_shifting")
_DENOISER: Final = ("guidance_embeds", "sample_size", "time_cond_proj_dim")

_PRESENT: Final = "set"
"""In a condition: the entry has any value."""

_SD: Final = ("StableDiffusionPipeline",)
_XL: Final = ("StableDiffusionXLPipeline",)
_KLEIN: Final = ("Flux2KleinPipeline",)
_EDITS: Final = ("QwenImageEditPipeline", "QwenImageEditPlusPipeline")


def _call(steps: int, guidance: float, side: int | None = 1024, **more_arguments: Any) -> dict[str, Any]:
    """Arguments of a call: steps, guidance scale, the side of a square image in pixels, and others."""
    square = {"width": side, "height": side} if side else {}
    return {**square, "num_inference_steps": steps, "guidance_scale": guidance, **more_arguments}


def _qwen(steps: int, guidance: float = 4.0, **more_arguments: Any) -> dict[str, Any]:
    """Without a negative prompt, which may be a space, Qwen-Image ignores its guidance."""
    negative = {"negative_prompt": " "} if guidance > 1 else {}
    return {"num_inference_steps": steps, "true_cfg_scale": guidance, **negative, **more_arguments}


_NOT_DISTILLED: Final = r"(de|un|non|not)[-_ ]?(turbo|distill)"
_TURBO: Final = rf"^(?!.*{_NOT_DISTILLED}).*turbo"
_LCM: Final = r"(?<![a-z])lcm(?![a-z])"
_HYPER: Final = r"(?<![a-z])hyper(-?sd(xl)?)?(?![a-z])"

_Z_BASE: Final = _call(50, 4.0)
_Z_TURBO: Final = _call(9, 0.0)
_KREA_TURBO: Final = _call(8, 0.0)
_HUNYUAN: Final = {"width": 2048, "height": 2048}
_HUNYUAN_DISTILLED: Final = {**_HUNYUAN, "num_inference_steps": 8, "distilled_guidance_scale": 3.25}

_TABLE: Final[tuple[_Row, ...]] = (
    # The first row that matches is used. Where a model's own files and its name could disagree, the files come first.
    #
    # https://huggingface.co/Tongyi-MAI/Z-Image: not distilled; 28 to 50 steps, guidance 3 to 5; its scheduler has shift
    # 6. https://huggingface.co/Tongyi-MAI/Z-Image-Turbo: nine steps are eight passes of the transformer, no guidance;
    # shift 3. Fine-tunes keep the scheduler of the model that they come from.
    _Row(("ZImagePipeline",), "Z-Image-Turbo", _Z_TURBO, entries={"is_distilled": True}),
    _Row(("ZImagePipeline",), "Z-Image", _Z_BASE, entries={"is_distilled": False}),
    _Row(("ZImagePipeline",), "Z-Image", _Z_BASE, entries={"shift": 6.0}),
    _Row(("ZImagePipeline",), "Z-Image", _Z_BASE, name=_NOT_DISTILLED),
    _Row(("ZImagePipeline",), "Z-Image-Turbo", _Z_TURBO, entries={"shift": 3.0}),
    _Row(("ZImagePipeline",), "Z-Image-Turbo", _Z_TURBO, name=_TURBO),
    _Row(("ZImagePipeline",), "Z-Image", _Z_BASE),
    # https://huggingface.co/lightx2v/Qwen-Image-Lightning: distilled to eight or four steps, no guidance.
    _Row(
        ("QwenImagePipeline",),
        "Qwen-Image-Lightning",
        _qwen(8, 1.0, width=1328, height=1328),
        name=rf"lightning|{_TURBO}",
    ),
    # https://huggingface.co/Qwen/Qwen-Image and Qwen-Image-2512.
    _Row(("QwenImagePipeline",), "Qwen-Image", _qwen(50, width=1328, height=1328)),
    _Row(_EDITS, "Qwen-Image-Lightning", _qwen(8, 1.0), name=rf"lightning|{_TURBO}"),
    # https://huggingface.co/Qwen/Qwen-Image-Edit, -2509 and -2511; the output has the size of the edited image.
    _Row(("QwenImageEditPipeline",), "Qwen-Image-Edit", _qwen(50)),
    _Row(("QwenImageEditPlusPipeline",), "Qwen-Image-Edit-2511", _qwen(40)),
    # https://github.com/QwenLM/Qwen-Image-2.1 and diffusers' documentation: 40 steps, no guidance. Turbo carries its
    # own eight sigmas, which decide over the steps.
    _Row(("QwenImage21Pipeline",), "Qwen-Image-2.1-Turbo", {"num_inference_steps": 8}, name=_TURBO),
    _Row(("QwenImage21Pipeline",), "Qwen-Image-2.1", {"num_inference_steps": 40}),
    # https://huggingface.co/black-forest-labs/FLUX.1-schnell: distilled to four steps; at most 256 tokens in a prompt.
    # Its scheduler, unlike that of FLUX.1-dev, does not shift by size, and its weights have no input for guidance.
    _Row(("FluxPipeline",), "FLUX.1-schnell", _call(4, 0.0, max_sequence_length=256), name="schnell"),
    _Row(
        ("FluxPipeline",),
        "FLUX.1-schnell",
        _call(4, 0.0, max_sequence_length=256),
        entries={"guidance_embeds": False, "use_dynamic_shifting": False},
    ),
    # https://huggingface.co/alimama-creative/FLUX.1-Turbo-Alpha
    _Row(
        ("FluxPipeline",),
        "FLUX.1-Turbo-Alpha",
        _call(8, 3.5, max_sequence_length=512),
        name=rf"{_TURBO}|{_HYPER}",
    ),
    # https://huggingface.co/black-forest-labs/FLUX.1-Krea-dev: 28 to 32 steps.
    _Row(("FluxPipeline",), "FLUX.1-Krea-dev", _call(28, 4.5, max_sequence_length=512), name="krea"),
    # https://huggingface.co/black-forest-labs/FLUX.1-dev
    _Row(("FluxPipeline",), "FLUX.1-dev", _call(50, 3.5, max_sequence_length=512)),
    # https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev
    _Row(("FluxKontextPipeline",), "FLUX.1-Kontext-dev", _call(28, 2.5)),
    # https://huggingface.co/black-forest-labs/FLUX.2-dev, FLUX.2-klein-4B, -base-4B, -9B and -9b-kv.
    _Row(("Flux2Pipeline",), "FLUX.2-dev", _call(50, 4.0)),
    _Row(_KLEIN, "FLUX.2-klein", _call(4, 1.0), entries={"is_distilled": True}),
    _Row(_KLEIN, "FLUX.2-klein-base", _call(50, 4.0), entries={"is_distilled": False}),
    _Row(_KLEIN, "FLUX.2-klein-base", _call(50, 4.0), name="base"),
    _Row(_KLEIN, "FLUX.2-klein", _call(4, 1.0), name="klein"),
    _Row(_KLEIN, "FLUX.2-klein-base", _call(50, 4.0)),
    _Row(("Flux2KleinKVPipeline",), "FLUX.2-klein-kv", {"width": 1024, "height": 1024, "num_inference_steps": 4}),
    # https://huggingface.co/docs/diffusers/api/pipelines/krea2: guidance 0 switches guidance off.
    _Row(("Krea2Pipeline",), "Krea-2-Turbo", _KREA_TURBO, entries={"is_distilled": True}),
    _Row(("Krea2Pipeline",), "Krea-2-Raw", _call(28, 4.5), entries={"is_distilled": False}),
    _Row(("Krea2Pipeline",), "Krea-2-Turbo", _KREA_TURBO, name=rf"{_TURBO}|tdm"),
    _Row(("Krea2Pipeline",), "Krea-2-Raw", _call(28, 4.5)),
    # https://huggingface.co/docs/diffusers/api/pipelines/ernie_image: guidance 1 switches guidance off.
    _Row(("ErnieImagePipeline",), "ERNIE-Image-Turbo", _call(8, 1.0), entries={"is_distilled": True}),
    _Row(("ErnieImagePipeline",), "ERNIE-Image", _call(50, 4.0), entries={"is_distilled": False}),
    _Row(("ErnieImagePipeline",), "ERNIE-Image-Turbo", _call(8, 1.0), name=_TURBO),
    _Row(("ErnieImagePipeline",), "ERNIE-Image", _call(50, 4.0)),
    # https://github.com/ideogram-oss/ideogram4, preset V4_QUALITY_48. The pipeline has one guidance for each step.
    _Row(("Ideogram4Pipeline",), "Ideogram 4", {"width": 2048, "height": 2048, "num_inference_steps": 48}),
    # https://huggingface.co/docs/diffusers/api/pipelines/hunyuanimage21: only the distilled weights have an input for
    # guidance; the others have a guider of their own.
    _Row(
        ("HunyuanImagePipeline",), "HunyuanImage-2.1-Distilled", _HUNYUAN_DISTILLED, entries={"guidance_embeds": True}
    ),
    _Row(
        ("HunyuanImagePipeline",),
        "HunyuanImage-2.1",
        {**_HUNYUAN, "num_inference_steps": 50},
        entries={"guidance_embeds": False},
    ),
    _Row(("HunyuanImagePipeline",), "HunyuanImage-2.1-Distilled", _HUNYUAN_DISTILLED, name=r"^(?!.*un-?dist).*distil"),
    _Row(("HunyuanImagePipeline",), "HunyuanImage-2.1", {**_HUNYUAN, "num_inference_steps": 50}),
    # https://github.com/HiDream-ai/HiDream-I1 (inference.py)
    _Row(("HiDreamImagePipeline",), "HiDream-I1-Fast", _call(16, 0.0), name=r"(?<![a-z])fast(?![a-z])"),
    _Row(("HiDreamImagePipeline",), "HiDream-I1-Dev", _call(28, 0.0), name=r"(?<![a-z])dev(?![a-z])"),
    _Row(("HiDreamImagePipeline",), "HiDream-I1-Full", _call(50, 5.0)),
    # https://huggingface.co/Alpha-VLLM/Lumina-Image-2.0
    _Row(("Lumina2Pipeline",), "Lumina-Image-2.0", _call(50, 4.0, cfg_trunc_ratio=0.25, cfg_normalization=True)),
    # https://huggingface.co/docs/diffusers/api/pipelines/chroma
    _Row(("ChromaPipeline",), "Chroma1-HD", _call(40, 3.0)),
    # https://huggingface.co/kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers
    _Row(("Kandinsky5T2IPipeline",), "Kandinsky 5.0 T2I Lite", _call(50, 3.5)),
    # https://huggingface.co/docs/diffusers/api/pipelines/sana: weights for each size, 32 pixels for one latent.
    *(
        _Row(("SanaPipeline",), f"Sana at {32 * side} pixels", _call(20, 4.5, 32 * side), entries={"sample_size": side})
        for side in (16, 64, 128)
    ),
    _Row(("SanaPipeline",), "Sana at 1024 pixels", _call(20, 4.5)),
    # https://huggingface.co/docs/diffusers/api/pipelines/bria_fibo
    _Row(("BriaFiboPipeline",), "FIBO", _call(50, 5.0)),
    # https://huggingface.co/docs/diffusers/api/pipelines/glm_image: the pipeline has no size of its own.
    _Row(("GlmImagePipeline",), "GLM-Image", _call(50, 1.5)),
    # https://huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo, -medium, -large; stable-diffusion-3-medium.
    _Row(("StableDiffusion3Pipeline",), "Stable Diffusion 3.5 Large Turbo", _call(4, 0.0), name=_TURBO),
    _Row(("StableDiffusion3Pipeline",), "Stable Diffusion 3.5 Medium", _call(40, 4.5), name=r"3\.5-medium"),
    _Row(("StableDiffusion3Pipeline",), "Stable Diffusion 3 Medium", _call(28, 7.0), name="3-medium"),
    _Row(("StableDiffusion3Pipeline",), "Stable Diffusion 3.5 Large", _call(28, 3.5)),
    # https://huggingface.co/stabilityai/sdxl-turbo: these weights alone draw 512 pixels in one step.
    _Row(_XL, "SDXL Turbo", _call(1, 0.0, 512), name="^sdxl-turbo$"),
    # https://huggingface.co/latent-consistency/lcm-sdxl: guidance is an input of its weights.
    # https://huggingface.co/latent-consistency/lcm-lora-sdxl, lcm-lora-sdv1-5: guidance off.
    # https://huggingface.co/h1t/TCD-SDXL-LoRA and https://huggingface.co/ByteDance/Hyper-SD
    *(
        row
        for kinds, side in ((_XL, 1024), (_SD, None))
        for row in (
            _Row(
                kinds,
                "LCM-SDXL",
                _call(4, 8.0, side),
                entries={"scheduler": "LCMScheduler", "time_cond_proj_dim": _PRESENT},
            ),
            _Row(kinds, "LCM-LoRA", _call(4, 1.0, side), entries={"scheduler": "LCMScheduler"}),
            _Row(kinds, "TCD-LoRA", _call(4, 0.0, side, eta=0.3), entries={"scheduler": "TCDScheduler"}),
            _Row(kinds, "LCM-LoRA", _call(4, 1.0, side), name=_LCM),
            _Row(kinds, "Hyper-SD", _call(8, 0.0, side), name=_HYPER),
        )
    ),
    # https://huggingface.co/Lykon/dreamshaper-xl-lightning (3 to 6 steps) and dreamshaper-xl-v2-turbo (4 to 8 steps):
    # fine-tunes take a little guidance.
    _Row(_XL, "DreamShaper XL Lightning", _call(4, 2.0), name="lightning"),
    _Row(_XL, "DreamShaper XL Turbo", _call(6, 2.0), name=_TURBO),
    # https://huggingface.co/stabilityai/sd-turbo
    _Row(_SD, "SD Turbo", _call(1, 0.0, 512), name="^sd-turbo$"),
    # https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0 recommends none: the pipeline's own defaults.
    _Row(_XL, "Stable Diffusion XL", _call(50, 5.0)),
)

_MOST_STEPS: Final = 16
"""Distilled weights take no more steps than this."""
_STEPS: Final = re.compile(r"(?<!\d)(\d{1,2})[-_ ]?steps?(?![a-z])", re.IGNORECASE)


def facts_of(source: PipelineSource) -> ModelFacts:
    """What the small files of a pipeline say about its weights.

    Raises:
        BackendError: The pipeline does not exist, or this version of diffusers does not have it.
    """
    if source.file and not source.config:  # the small files are those of the base model, not of these weights
        return ModelFacts(source.pipeline_class.__name__, source.name)
    scheduler, denoiser = source.component_config("scheduler"), source.component_config(source.denoiser)
    files = ((source.index, _INDEX), (scheduler, _SCHEDULER), (denoiser, _DENOISER))
    entries = {name: content[name] for content, names in files for name in names if content.get(name) is not None}
    kind = scheduler.get("_class_name") or source.components.get("scheduler", ("", None))[1]
    return ModelFacts(source.pipeline_class.__name__, source.name, entries | {"scheduler": kind})


def defaults_of(facts: ModelFacts) -> Defaults:
    """Recommended arguments for calling a pipeline with these weights."""
    row = next((row for row in _TABLE if facts.kind in row.kinds and _holds(row, facts)), None)
    if row is None:
        return Defaults({})
    return Defaults({**row.arguments, **_own_steps(row, facts)}, row.model, _reason(row, facts))


def _holds(row: _Row, facts: ModelFacts) -> bool:
    has_entries = all(
        name in facts.entries and value in (_PRESENT, facts.entries[name]) for name, value in row.entries.items()
    )
    return has_entries and re.search(row.name, facts.name, re.IGNORECASE) is not None


def _own_steps(row: _Row, facts: ModelFacts) -> dict[str, int]:
    """The number of steps that distilled weights were made for, from their sigmas or their name."""
    if sigmas := facts.entries.get("sample_sigmas"):
        return {"num_inference_steps": len(sigmas)}
    named_steps = _STEPS.search(facts.name)
    is_few = row.arguments["num_inference_steps"] <= _MOST_STEPS
    return {"num_inference_steps": int(named_steps[1])} if named_steps and is_few else {}


def _reason(row: _Row, facts: ModelFacts) -> str:
    if row.entries:
        return "its files say " + ", ".join(f"{name} {value}" for name, value in row.entries.items())
    return f"by its name {facts.name}" if row.name else f"by its class {facts.kind}"
