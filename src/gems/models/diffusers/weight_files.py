"""Single files of weights, as they are passed around: what is in them, read from their headers alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

from gems.errors import BackendError, InputError

__all__ = ["holds_all_parts", "known_repository", "parameter_count"]

_MOST_HEADER: Final = 100_000_000
"""The largest header that safetensors itself accepts, in bytes."""
_OTHER_PARTS: Final = ("first_stage_model.", "vae.", "cond_stage_model.", "conditioner.", "text_encoders.")
"""How the names of weights begin that are not the denoiser's, in a file that holds a whole model."""
_DENOISER: Final = "model.diffusion_model."
"""How the names of a denoiser's weights begin in a file that holds a whole model, and in some others."""


def parameter_count(file: Path) -> int:
    """The number of parameters in a safetensors file (https://github.com/huggingface/safetensors#format).

    Raises:
        BackendError: It is no safetensors file, or it is damaged.
    """
    return sum(map(math.prod, _shapes(file).values()))


def holds_all_parts(file: Path) -> bool:
    """Whether a file holds the text encoders or the autoencoder too, and not the denoiser alone.

    Raises:
        BackendError: It is no safetensors file, or it is damaged.
    """
    return any(name.startswith(_OTHER_PARTS) for name in _shapes(file))


def known_repository(file: Path) -> str:
    """The repository of the pipeline that a file's weights are for, as far as diffusers knows their names.

    Raises:
        InputError: The file is of another format, or diffusers does not know its weights.
        BackendError: The file is damaged.
    """
    if file.suffix == ".gguf":
        raise InputError(
            f"{file} holds a transformer alone: name the pipeline that it belongs to, and give the file with "
            f"--generator-option quantization={file}"
        )
    if file.suffix != ".safetensors":
        raise InputError(f"{file} is no .safetensors file; other formats can run any code when they are loaded")
    import torch
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

    tensors = {name: torch.empty(shape, device="meta") for name, shape in _shapes(file).items()}
    kind = infer_diffusers_model_type(tensors)
    if kind == "v1" and not any(name.startswith(_DENOISER) for name in tensors):  # its answer if it knows nothing
        raise InputError(
            f"{file} does not say which pipeline it is for: give --generator-option config=FOLDER_OR_REPO of a "
            "pipeline of the same kind"
        )
    repository: str = DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    return repository


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a safetensors file."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            if size > _MOST_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(stream.read(size))
        return {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackendError(
            f"{file} is no safetensors file, or it is damaged: download it again", retryable=False
        ) from (error)
