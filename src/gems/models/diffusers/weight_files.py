"""Single files of weights, as they are passed around: what is in them, read from their headers alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from safetensors import SafetensorError, safe_open

from gems.errors import BackendError, InputError
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["holds_all_parts", "known_repository", "parameter_count", "weights_in"]

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
    if repository := _repository_of(_shapes(file)):
        return repository
    raise InputError(
        f"{file} does not say which pipeline it is for: give --generator-option config=FOLDER_OR_REPO of a pipeline of "
        "the same kind"
    )


def _repository_of(shapes: dict[str, list[int]]) -> str | None:
    import torch
    from diffusers.loaders.single_file_utils import DIFFUSERS_DEFAULT_PIPELINE_PATHS, infer_diffusers_model_type

    try:
        kind = infer_diffusers_model_type({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
        repository: str = DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    except (LookupError, TypeError, RuntimeError):  # known names, of shapes that no model has and torch may not take
        return None
    is_known = kind != "v1" or any(name.startswith(_DENOISER) for name in shapes)  # "v1" is also its last resort
    return repository if is_known else None


def weights_in(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Each tensor in a safetensors file, one at a time, under its name.

    Raises:
        BackendError: It is no safetensors file, or it is damaged.
    """
    with _opened(file) as tensors:
        for name in tensors.keys():  # noqa: SIM118
            yield name, tensors.get_tensor(name)


def _shapes(file: Path) -> dict[str, list[int]]:
    """The shape of each tensor in a safetensors file."""
    with _opened(file) as tensors:
        return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A safetensors file whose header is whole and fits the bytes that follow: that of a download cut off does not."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise BackendError(
            f"{file} is no safetensors file, or it is damaged: download it again", retryable=False
        ) from error
    except OSError as error:
        raise BackendError(f"cannot read {file} ({one_line(error)})", retryable=False) from error
