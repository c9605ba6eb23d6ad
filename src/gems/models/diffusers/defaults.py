"""Recommended sizes, steps and guidance of well-known diffusers pipelines, from the model cards of their makers."""

from __future__ import annotations

import re
from typing import Any, Final

__all__ = ["call_defaults", "prompting"]

_SQUARE: Final = {"width": 1024, "height": 1024}
"""Sides of a square image, in pixels."""

_TABLE: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    # (pipeline class, pattern in the repository's id or the folder's path, arguments of the call). The first row that
    # matches is used. A model without a row is called with its pipeline's own defaults.
    #
    # https://huggingface.co/Tongyi-MAI/Z-Image: not distilled; 28 to 50 steps, guidance 3 to 5.
    ("ZImagePipeline", r"z-image(-base)?/?$", {**_SQUARE, "num_inference_steps": 50, "guidance_scale": 4.0}),
    # https://huggingface.co/Tongyi-MAI/Z-Image-Turbo: nine steps are eight passes of the transformer; no guidance.
    ("ZImagePipeline", "", {**_SQUARE, "num_inference_steps": 9, "guidance_scale": 0.0}),
    # https://huggingface.co/Qwen/Qwen-Image and Qwen-Image-2512. Without a negative prompt, which may be a space, the
    # pipeline ignores the guidance.
    (
        "QwenImagePipeline",
        "",
        {"width": 1328, "height": 1328, "num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": " "},
    ),
    # https://huggingface.co/Qwen/Qwen-Image-Edit; the output has the size of the edited image.
    ("QwenImageEditPipeline", "", {"num_inference_steps": 50, "true_cfg_scale": 4.0, "negative_prompt": " "}),
    # https://huggingface.co/Qwen/Qwen-Image-Edit-2509 and -2511.
    ("QwenImageEditPlusPipeline", "", {"num_inference_steps": 40, "true_cfg_scale": 4.0, "negative_prompt": " "}),
    # https://huggingface.co/black-forest-labs/FLUX.1-schnell: distilled to four steps; at most 256 tokens in a prompt.
    (
        "FluxPipeline",
        "schnell",
        {**_SQUARE, "num_inference_steps": 4, "guidance_scale": 0.0, "max_sequence_length": 256},
    ),
    # https://huggingface.co/black-forest-labs/FLUX.1-dev
    (
        "FluxPipeline",
        "",
        {**_SQUARE, "num_inference_steps": 50, "guidance_scale": 3.5, "max_sequence_length": 512},
    ),
    # https://huggingface.co/black-forest-labs/FLUX.1-Kontext-dev
    ("FluxKontextPipeline", "", {**_SQUARE, "num_inference_steps": 28, "guidance_scale": 2.5}),
    # https://huggingface.co/stabilityai/stable-diffusion-3.5-large-turbo
    ("StableDiffusion3Pipeline", "turbo", {**_SQUARE, "num_inference_steps": 4, "guidance_scale": 0.0}),
    # https://huggingface.co/stabilityai/stable-diffusion-3.5-medium
    ("StableDiffusion3Pipeline", r"3\.5-medium", {**_SQUARE, "num_inference_steps": 40, "guidance_scale": 4.5}),
    # https://huggingface.co/stabilityai/stable-diffusion-3.5-large
    ("StableDiffusion3Pipeline", "", {**_SQUARE, "num_inference_steps": 28, "guidance_scale": 3.5}),
    # https://huggingface.co/stabilityai/sdxl-turbo
    (
        "StableDiffusionXLPipeline",
        "turbo",
        {"width": 512, "height": 512, "num_inference_steps": 1, "guidance_scale": 0.0},
    ),
    # https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0 recommends none: the pipeline's own defaults.
    ("StableDiffusionXLPipeline", "", {**_SQUARE, "num_inference_steps": 50, "guidance_scale": 5.0}),
)


def call_defaults(pipeline_class: str, source: str) -> dict[str, Any]:
    """Recommended arguments for calling a pipeline.

    Args:
        pipeline_class: The name of its class.
        source: The repository's id or the folder's path.
    """
    for row_class, pattern, arguments in _TABLE:
        if row_class == pipeline_class and re.search(pattern, source, re.IGNORECASE):
            return dict(arguments)
    return {}


_LONG: Final = "It reads long prompts in plain language, English or Chinese."
_NO_NEGATIVE: Final = "It has no negative prompt: say what is there, not what is missing."
_CLIP: Final = "It reads 77 tokens, about 50 words, and nothing after them: be short, what matters most comes first."
_PROMPTING: Final = {
    # By the text encoders and their lengths, from the code and documentation of the pipelines in diffusers.
    "ZImagePipeline": f"{_LONG} {_NO_NEGATIVE}",
    "QwenImagePipeline": f"{_LONG} Put words that are to be written in the image in double quotes.",
    "FluxPipeline": f"It reads whole sentences in plain English, not lists of keywords. {_NO_NEGATIVE}",
    "StableDiffusion3Pipeline": "It reads sentences in plain English; what matters most comes first.",
    "StableDiffusionXLPipeline": _CLIP,
    "StableDiffusionPipeline": _CLIP,
}


def prompting(pipeline_class: str) -> str:
    """Advice on writing prompts for a pipeline class, read by chat models; empty if there is none."""
    return _PROMPTING.get(pipeline_class, "")
