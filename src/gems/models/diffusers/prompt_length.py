"""How much of a prompt a pipeline reads. What is longer is cut without a word, so it has to be measured before.

A pipeline can have several text encoders. The one that reads most counts: FLUX.1 gives CLIP 77 tokens of a prompt and
T5 all 512, and Stable Diffusion XL has nothing but CLIP.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from gems.models.diffusers.source import PipelineSource, default_of

__all__ = ["MOST_TOKENS", "excess_of_prompt", "prompt_limit"]

_CLIP_LIMIT: Final = 77
_FIXED: Final = {"HunyuanImagePipeline": 1000, "LongCatImagePipeline": 512, "HunyuanDiTPipeline": 256}
"""Tokens that pipelines read whose call has no argument for it, from their code."""
MOST_TOKENS: Final = {
    "FluxPipeline": 512,
    "FluxKontextPipeline": 512,
    "StableDiffusion3Pipeline": 512,
    "QwenImagePipeline": 1024,
    "QwenImageEditPipeline": 1024,
    "QwenImageEditPlusPipeline": 1024,
    "Lumina2Pipeline": 512,
    "ChromaPipeline": 512,
    "OvisImagePipeline": 256,
    "Kandinsky5T2IPipeline": 1024,
}
"""The largest ``max_sequence_length`` that the calls of these classes take."""
_TEMPLATES: Final = {
    "Lumina2Pipeline": 34,
    "Flux2Pipeline": 64,
    "Flux2KleinPipeline": 12,
    "Flux2KleinKVPipeline": 12,
    "ZImagePipeline": 8,
}
"""Tokens of the instructions that pipelines put around a prompt, where these count towards the limit."""
_SPELLERS: Final = ("ByT5",)
"""Tokenizers of encoders that read the quoted words of a prompt only."""
_WORDS: Final = 0.75
"""English words for a token."""


def prompt_limit(source: PipelineSource, settings: Mapping[str, Any]) -> int | None:
    """The number of tokens that a pipeline reads of a prompt; None if it is unknown, or there is no limit.

    Args:
        source: The pipeline.
        settings: The arguments of its calls.

    Raises:
        BackendError: The pipeline does not exist, or this version of diffusers does not have it.
    """
    kind = source.pipeline_class
    name = _reader(source)
    if name is None or source.is_own:
        return None
    if _is_clip(source, name):
        return _CLIP_LIMIT
    limit: int | None = settings.get("max_sequence_length") or default_of(kind, "max_sequence_length")
    return limit or _FIXED.get(kind.__name__)


def excess_of_prompt(source: PipelineSource, settings: Mapping[str, Any], prompt: str) -> str:
    """What a pipeline will not read of a prompt, in words for a chat model; empty if it reads all, or cannot be told.

    Measured with the pipeline's own tokenizer if it is on this machine; nothing is downloaded.

    Args:
        source: The pipeline.
        settings: The arguments of its calls.
        prompt: The prompt.

    Raises:
        BackendError: The pipeline does not exist, or this version of diffusers does not have it.
    """
    limit = prompt_limit(source, settings)
    count = None if limit is None else _tokens_of(source, prompt)  # which may load a tokenizer
    if limit is None or count is None or count <= limit:
        return ""
    words = len(prompt.split())
    room = max(1, min(int(words * limit / count), int(limit * _WORDS)))
    return (
        f"The model reads {limit} tokens and the prompt has {count}, so its end is not read: write at most {room} "
        "words, what matters most first"
    )


def _tokens_of(source: PipelineSource, prompt: str) -> int | None:
    """The tokens of a prompt and what the pipeline puts around it; None if the tokenizer is not on this machine."""
    name, folder = _reader(source), source.folder or source.index_file.parent
    if name is None or not (folder / name).is_dir():
        return None
    tokenizer = _tokenizer(folder / name)
    template = _TEMPLATES.get(source.pipeline_class.__name__, 0)
    return None if tokenizer is None else len(tokenizer(prompt, verbose=False).input_ids) + template


def _reader(source: PipelineSource) -> str | None:
    """The name of the tokenizer of the encoder that reads most; None if there is none."""
    parts = source.components
    readers = [
        name
        for name in sorted(parts)
        if name.startswith(("tokenizer", "processor"))
        and not parts[name][1].startswith(_SPELLERS)
        and (name.startswith("processor") or name.replace("tokenizer", "text_encoder") in parts)
    ]
    return next((name for name in reversed(readers) if not _is_clip(source, name)), readers[0] if readers else None)


def _is_clip(source: PipelineSource, name: str) -> bool:
    return source.components[name][1].startswith("CLIPTokenizer")


@cache
def _tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder; None if it cannot be loaded without running code of the folder."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError, ImportError, TypeError):
        return None
