"""What diffusers' pipeline classes are and take, as far as the signatures of their calls do not say it.

The table holds every class that draws from text. Classes that make no image from text are recognised by the arguments
of their calls, or by their names where the arguments say nothing. A test walks all classes of the installed diffusers,
so that a new one is added to the table or refused. A class that neither knows, such as one in a repository, is called
by its signature.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal

from gems.models.processors import missing_backends

__all__ = ["DRAWING", "Family", "argument_of", "call_parameters", "family_of", "refusal"]


@dataclass(frozen=True, slots=True)
class Family:
    """What the call of a pipeline class takes and gives.

    Attributes:
        prompts: Whether it takes a list of prompts and one of generators, or one of each.
        is_batch_sound: Whether each image of a batch is the one that its prompt and seed give alone.
        output: The field of its output that holds the images.
        switches: Arguments that leave the prompt as it is: enhancers rewrite it, at random, behind the run's back.
        references: The most images that one call takes to edit or to refer to; 0 for none.
        reference_argument: The argument that takes them.
        edits: Whether GEMS edits images with it. Classes that only edit, and img2img siblings, are known to diffusers.
        canvas: Whether it needs an image in every call: to draw, it is given a white one.
        packages: Packages that it cannot run without, beyond what diffusers requires.
        multiple: Width and height must be multiples of this, if its parts do not say it.
        schedule: Makes the arguments that depend on others of the call, from the settings.
    """

    prompts: Literal["list", "text"] = "list"
    is_batch_sound: bool = True
    output: str = "images"
    switches: Mapping[str, Any] = field(default_factory=dict)
    references: int = 0
    reference_argument: str = "image"
    edits: bool = False
    canvas: bool = False
    packages: tuple[str, ...] = ()
    multiple: int | None = None
    schedule: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None


def _ideogram_schedule(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Guidance by step: the one given, or as by default 7 and, in the last three steps, 3."""
    if "guidance_scale" in settings:
        return {"guidance_schedule": None}
    if "num_inference_steps" not in settings:
        return {}
    steps = settings["num_inference_steps"]
    last = min(3, steps - 1)
    return {"guidance_schedule": (7.0,) * (steps - last) + (3.0,) * last}


def _sprint_timesteps(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The timestep between its two steps, which other numbers of steps have none of."""
    return {"intermediate_timesteps": None} if settings.get("num_inference_steps", 2) != 2 else {}


_PLAIN: Final = Family()

DRAWING: Final[Mapping[str, Family]] = dict.fromkeys(
    (
        "AltDiffusionPipeline",
        "AuraFlowPipeline",
        "BriaPipeline",
        "BriaFiboPipeline",
        "ChromaPipeline",
        "CogView3PlusPipeline",
        "FluxPipeline",
        "HiDreamImagePipeline",
        "HunyuanDiTPAGPipeline",
        "HunyuanDiTPipeline",
        "HunyuanImagePipeline",
        "IFPipeline",
        "Krea2Pipeline",
        "LDMTextToImagePipeline",
        "LatentConsistencyModelPipeline",
        "Lumina2Pipeline",
        "LuminaPipeline",
        "NucleusMoEImagePipeline",
        "OvisImagePipeline",
        "PixArtAlphaPipeline",
        "PixArtSigmaPAGPipeline",
        "PixArtSigmaPipeline",
        "QwenImagePipeline",
        "SanaPAGPipeline",
        "SanaPipeline",
        "SemanticStableDiffusionPipeline",
        "StableDiffusion3PAGPipeline",
        "StableDiffusion3Pipeline",
        "StableDiffusionPAGPipeline",
        "StableDiffusionParadigmsPipeline",
        "StableDiffusionPipeline",
        "StableDiffusionPipelineSafe",
        "StableDiffusionSAGPipeline",
        "StableDiffusionXLPAGPipeline",
        "StableDiffusionXLPipeline",
        "StableUnCLIPPipeline",
        "UnCLIPPipeline",
        "VersatileDiffusionTextToImagePipeline",
        "ZImagePipeline",
    ),
    _PLAIN,
) | {
    # Its scheduler, and that of VQ-Diffusion, draw the noise of all images from one generator.
    "AmusedPipeline": Family(prompts="text", is_batch_sound=False),
    "VQDiffusionPipeline": Family(prompts="text", is_batch_sound=False),
    "BriaFibo2Pipeline": Family(references=1),
    # It pads the prompts of a batch to the longest, without a mask.
    "CogView4Pipeline": Family(is_batch_sound=False),
    "Cosmos2TextToImagePipeline": Family(packages=("cosmos_guardrail", "torchvision")),
    "DreamLiteMobilePipeline": Family(prompts="text", is_batch_sound=False, references=1, edits=True),
    "DreamLitePipeline": Family(prompts="text", is_batch_sound=False, references=1, edits=True),
    "ErnieImagePipeline": Family(switches={"use_pe": False}),
    # https://docs.bfl.ml/guides/prompting_editing_overview
    "Flux2KleinKVPipeline": Family(references=4, edits=True),
    "Flux2KleinPipeline": Family(references=4, edits=True),
    "Flux2Pipeline": Family(references=6, edits=True),
    "FluxKontextPipeline": Family(references=1),
    # Its language model draws the first tokens of all prompts of a call from the first seed.
    "GlmImagePipeline": Family(is_batch_sound=False, references=1, multiple=32),
    "Ideogram4Pipeline": Family(switches={"prompt_upsampling": False}, schedule=_ideogram_schedule),
    "Kandinsky5T2IPipeline": Family(output="image"),
    "Kandinsky3Pipeline": Family(multiple=64),
    # With a negative prompt, their prior draws two embeddings for each generator.
    "KandinskyCombinedPipeline": Family(prompts="text", is_batch_sound=False, multiple=64),
    "KandinskyV22CombinedPipeline": Family(prompts="text", is_batch_sound=False, multiple=64),
    "KolorsPAGPipeline": Family(packages=("sentencepiece",)),
    "KolorsPipeline": Family(packages=("sentencepiece",)),
    "LongCatImagePipeline": Family(switches={"enable_prompt_rewrite": False}),
    "OmniGenPipeline": Family(is_batch_sound=False, references=3, reference_argument="input_images"),
    # They make the time of each step for one prompt.
    "PRXPipeline": Family(is_batch_sound=False, packages=("ftfy",)),
    "PRXPixelPipeline": Family(is_batch_sound=False, packages=("ftfy",)),
    "QwenImage21Pipeline": Family(references=10, edits=True),
    "QwenImageEditPipeline": Family(is_batch_sound=False, references=1, canvas=True),
    "QwenImageEditPlusPipeline": Family(is_batch_sound=False, references=3, canvas=True),
    # Its views of all prompts share one scheduler.
    "StableDiffusionPanoramaPipeline": Family(is_batch_sound=False),
    "StableDiffusionLDM3DPipeline": Family(output="rgb"),
    "StableCascadeCombinedPipeline": Family(multiple=128),
    # Its decoder repeats the prompts of a batch as often as there are prompts.
    "WuerstchenCombinedPipeline": Family(is_batch_sound=False, multiple=128),
    "SanaSprintPipeline": Family(schedule=_sprint_timesteps),
    "ZImageOmniPipeline": Family(references=3),
}
"""Each pipeline class of diffusers that draws from text alone, by name."""

_VIDEO: Final = "makes videos; use a text-to-image pipeline"
_SOUND: Final = "makes sound; use a text-to-image pipeline"
_CONTROL: Final = "draws by a control image, which GEMS has none of; use the family's text-to-image pipeline"
_MASK: Final = "only fills in a masked part of an image; use the family's text-to-image pipeline"
_REFINES: Final = "only refines images; use a text-to-image pipeline"
_EDITS: Final = "only edits images that it is given; use a text-to-image pipeline"
_ENLARGES: Final = "only enlarges images; use a text-to-image pipeline"
_EMBEDS: Final = "makes embeddings, not images; use the family's combined pipeline"
_TEXT: Final = "writes text; use a text-to-image pipeline"
_LAYOUT: Final = "draws objects into boxes, which GEMS has none of; use a text-to-image pipeline"

_BY_NAME: Final[tuple[tuple[str, str], ...]] = (
    # (Part of the class's name, why it is refused), where the arguments of its call do not say it. The first row holds.
    ("Modular", "is a modular pipeline, which GEMS cannot call; use the family's DiffusionPipeline"),
    ("Onnx", "runs on ONNX, which GEMS does not load; use the same weights for torch"),
    ("Music", _SOUND),
    ("Audio", _SOUND),
    ("AceStep", _SOUND),
    ("Spectrogram", _SOUND),
    ("Video", _VIDEO),
    ("ControlNet", _CONTROL),
    ("Adapter", _CONTROL),
    ("GLIGEN", _LAYOUT),
    ("Upscale", _ENLARGES),
    ("SuperResolution", _ENLARGES),
    ("Refiner", _REFINES),
    ("PriorPipeline", _EMBEDS),
    ("ShapE", "makes 3D objects; use a text-to-image pipeline"),
    ("RFD4", "makes proteins; use a text-to-image pipeline"),
    ("LLaDA", _TEXT),
    ("DiffusionGemma", _TEXT),
    ("UniDiffuser", "decides by itself whether it writes or draws; use a text-to-image pipeline"),
    ("Layered", "splits an image that it is given into layers; use a text-to-image pipeline"),
    ("Edit", _EDITS),
    ("Pix2Pix", _EDITS),
    ("Img2Img", _REFINES),
)

_BY_ARGUMENT: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    # (Arguments, why a class whose call takes one of them is refused).
    (
        ("num_frames", "num_videos_per_prompt", "video_length", "frames", "video", "pose_video", "controls"),
        _VIDEO,
    ),
    (("audio", "audio_duration", "audio_length_in_s", "audio_duration_s", "audio_end_in_s", "src_audio"), _SOUND),
    (("control_image", "hint", "condtioning_image"), _CONTROL),
    (("mask_image",), _MASK),
)


def family_of(kind: type) -> Family:
    """What is known of a pipeline class; its signature says the rest."""
    return DRAWING.get(kind.__name__, _PLAIN)


@cache
def call_parameters(kind: type) -> Mapping[str, inspect.Parameter]:
    """The parameters of a pipeline class's call, by name."""
    return inspect.signature(kind.__call__).parameters


def argument_of(kind: type, argument: str) -> str:
    """The name that the call of a class has for an argument: the usual one, or a synonym that it takes instead."""
    parameters = call_parameters(kind)
    return next((name for name in (argument, *_SYNONYMS.get(argument, ())) if name in parameters), argument)


_SYNONYMS: Final[Mapping[str, tuple[str, ...]]] = {
    "guidance_scale": ("distilled_guidance_scale", "decoder_guidance_scale"),
    "num_inference_steps": ("decoder_num_inference_steps",),
}


def refusal(kind: type) -> str:
    """Why a pipeline class cannot draw from text in this process, in one line; empty if it can, as far as is known."""
    name = kind.__name__
    reason = "" if name in DRAWING else _reason(kind)
    if not reason and (missing := _missing_packages(kind)):
        reason = f"needs {' and '.join(missing)}: pip install {' '.join(missing)}"
    return f"{name} {reason}" if reason else ""


def _missing_packages(kind: type) -> list[str]:
    """The packages that a class needs and that are not installed."""
    required = missing_backends(kind) or family_of(kind).packages
    return [package for package in required if importlib.util.find_spec(package) is None]


def _reason(kind: type) -> str:
    """Why a class that is not in the table makes no image from text."""
    reason = "" if missing_backends(kind) else _reason_by_call(call_parameters(kind))
    if not reason and kind.__module__.startswith("diffusers."):
        reason = next((reason for part, reason in _BY_NAME if part in kind.__name__), "")
    return reason or ("" if missing_backends(kind) else _reason_by_requirement(call_parameters(kind)))


def _reason_by_call(parameters: Mapping[str, inspect.Parameter]) -> str:
    return next((reason for arguments, reason in _BY_ARGUMENT if parameters.keys() & set(arguments)), "")


def _reason_by_requirement(parameters: Mapping[str, inspect.Parameter]) -> str:
    if "prompt" not in parameters:
        return "takes no prompt; use a text-to-image pipeline"
    if "image" in parameters and "strength" in parameters:
        return _REFINES
    if required := sorted(_required(parameters.values()) - {"prompt"}):
        return f"needs more than a prompt ({', '.join(required)}); use a text-to-image pipeline"
    return ""


def _required(parameters: Iterable[inspect.Parameter]) -> set[str]:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in parameters if p.default is p.empty and p.kind not in kinds and p.name != "self"}
