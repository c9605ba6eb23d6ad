"""Advice on writing prompts for diffusers pipelines, read by chat models.

The facts are from the code and documentation of the pipelines in diffusers, and from the makers' guides that are named
below: which text encoders read the prompt, how much of it, in which languages and in which form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from gems.models.diffusers.prompt_length import prompt_limit
from gems.models.diffusers.source import PipelineSource, accepts, default_of

__all__ = ["guide_for", "has_negative_prompt"]

_CLIP: Final = "It reads keywords and short phrases in English; what matters most comes first."
_SENTENCES: Final = "It reads whole sentences in plain English, not lists of keywords."
_LONG: Final = "It reads long prompts in plain language, English or Chinese."
_QUOTES: Final = "Put words that are to be written in the image in double quotes."
_DESCRIBE: Final = "Describe subject, surroundings, light, style and camera in whole sentences, the subject first."

# https://docs.bfl.ai/guides/prompting_summary
_FLUX_2: Final = (
    f"It reads prose, not keywords. {_DESCRIBE} {_QUOTES} An exact colour can be given as a hex code beside the thing "
    "that has it."
)
# https://github.com/ideogram-oss/ideogram4 (docs/prompting.md), and the prompt enhancer in diffusers
_IDEOGRAM: Final = (
    "It was trained on JSON captions alone: write the prompt as one JSON object on one line, without Markdown, with "
    "these keys in this order: "
    '{"high_level_description": "one sentence, subject first, with the medium", '
    '"style_description": {"aesthetics": "...", "lighting": "...", "photo": "lens, angle and depth of field", '
    '"medium": "photograph"}, '
    '"compositional_deconstruction": {"background": "...", "elements": [{"type": "obj", "desc": "..."}, '
    '{"type": "text", "text": "the words to write", "desc": "their look and place"}]}}. '
    "Every thing that is asked for is an element of its own, the main subject first; words to be written are a text "
    "element."
)
# https://huggingface.co/briaai/FIBO
_FIBO: Final = (
    "It was trained on JSON captions: write the prompt as one JSON object on one line, without Markdown, with these "
    'keys: {"short_description": "...", "objects": [{"description": "...", "location": "...", "relationship": "...", '
    '"relative_size": "...", "shape_and_color": "...", "texture": "...", "appearance_details": "...", '
    '"orientation": "..."}], "background_setting": "...", "lighting": {"conditions": "...", "direction": "...", '
    '"shadows": "..."}, "aesthetics": {"composition": "...", "color_scheme": "...", "mood_atmosphere": "..."}, '
    '"photographic_characteristics": {"depth_of_field": "...", "focus": "...", "camera_angle": "...", '
    '"lens_focal_length": "..."}, "style_medium": "...", "context": "...", "artistic_style": "..."}. '
    "Every thing that is asked for is an object of its own."
)
_EDITOR: Final = f"{_LONG} For an edit, say in an instruction what changes, and what stays as it is. {_QUOTES}"

_GUIDES: Final[dict[str, str]] = {
    "ZImagePipeline": f"{_LONG} {_QUOTES}",
    "QwenImagePipeline": f"{_LONG} {_QUOTES}",
    "QwenImage21Pipeline": f"{_EDITOR} {_DESCRIBE}",
    "QwenImageEditPipeline": _EDITOR,
    "QwenImageEditPlusPipeline": _EDITOR,
    "FluxPipeline": _SENTENCES,
    "FluxKontextPipeline": f"{_SENTENCES} For an edit, say what changes, and what stays as it is. {_QUOTES}",
    "Flux2Pipeline": _FLUX_2,
    "Flux2KleinPipeline": f"{_FLUX_2} Say in words all that matters, light and mood too: it adds nothing of its own.",
    "Flux2KleinKVPipeline": f"{_FLUX_2} Say in words all that matters, light and mood too: it adds nothing of its own.",
    "Krea2Pipeline": f"It reads prose. {_DESCRIBE} Name medium and style exactly. Keep writing in the image short.",
    "ErnieImagePipeline": f"{_LONG} It writes text in English, Chinese and Japanese. {_QUOTES}",
    "Ideogram4Pipeline": _IDEOGRAM,
    "BriaFiboPipeline": _FIBO,
    "BriaFibo2Pipeline": _FIBO,
    # Its second text encoder reads the quoted words only.
    "HunyuanImagePipeline": f"{_LONG} It writes in the image only what stands in quotes. {_DESCRIBE}",
    "LongCatImagePipeline": f"{_LONG} It spells in the image only what stands in quotes. {_DESCRIBE}",
    "GlmImagePipeline": f"{_LONG} It spells in the image only what stands in quotes.",
    "OvisImagePipeline": f"{_LONG} It is made for text in images. {_QUOTES}",
    "Kandinsky5T2IPipeline": f"It reads whole sentences. {_DESCRIBE}",
    "SanaPipeline": f"It reads sentences in English or Chinese. {_DESCRIBE}",
    "SanaSprintPipeline": f"It reads sentences in English or Chinese. {_DESCRIBE}",
    "LuminaPipeline": _SENTENCES,
    "Lumina2Pipeline": f"It reads sentences in English or Chinese. {_DESCRIBE}",
    "ChromaPipeline": f"{_SENTENCES} {_DESCRIBE}",
    "HiDreamImagePipeline": f"{_SENTENCES} {_QUOTES}",
    "AuraFlowPipeline": f"{_SENTENCES} {_DESCRIBE}",
    "CogView4Pipeline": f"{_LONG} {_QUOTES}",
    "HunyuanDiTPipeline": "It reads sentences in English or Chinese.",
    "KolorsPipeline": "It reads sentences in English or Chinese.",
    "PixArtAlphaPipeline": _SENTENCES,
    "PixArtSigmaPipeline": _SENTENCES,
    "BriaPipeline": _SENTENCES,
    "StableDiffusion3Pipeline": "It reads sentences in plain English; what matters most comes first.",
    "StableDiffusionXLPipeline": _CLIP,
    "StableDiffusionPipeline": _CLIP,
    "LatentConsistencyModelPipeline": _CLIP,
}
"""Advice by pipeline class. How long a prompt may be, and whether there is a negative prompt, is added by code."""

_SHORT: Final = 300
"""A limit of at most this many tokens is worth mentioning: a chat model writes so much without being asked."""
_WORDS: Final = 0.7
"""English words for a token, on the safe side."""


def guide_for(source: PipelineSource, settings: Mapping[str, Any]) -> str:
    """Advice on writing prompts for a pipeline, read by chat models; empty if there is none.

    Args:
        source: The pipeline.
        settings: The arguments of its calls.

    Raises:
        BackendError: The pipeline does not exist, or this version of diffusers does not have it.
    """
    advice = _GUIDES.get(source.pipeline_class.__name__, "")
    limit = prompt_limit(source, settings)
    if limit is not None and limit <= _SHORT:
        words = int(limit * _WORDS) // 10 * 10
        advice += f" It reads {limit} tokens, about {words} words, and nothing after them: be short."
    if advice and not has_negative_prompt(source.pipeline_class, settings):
        advice += " It has no negative prompt: say what is there, not what is missing."
    return advice.strip()


def has_negative_prompt(kind: type, settings: Mapping[str, Any]) -> bool:
    """Whether the pipeline reads a negative prompt, which takes guidance by comparison."""
    if not accepts(kind, "negative_prompt"):
        return False
    scale = "true_cfg_scale" if accepts(kind, "true_cfg_scale") else "guidance_scale"
    value = settings.get(scale, default_of(kind, scale))
    return value is None or value > 1
