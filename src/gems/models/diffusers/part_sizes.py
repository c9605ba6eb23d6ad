"""The weights of a pipeline's parts: which files they are in, how large they are, and which of them are quantized."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import huggingface_hub

from gems.errors import BackendError, InputError
from gems.models.diffusers.source import PipelineSource
from gems.models.diffusers.weight_files import holds_all_parts, parameter_count
from gems.options import GeneratorOptions

__all__ = ["cached_folder", "parameters_of", "quantized_parts", "variant_of", "weights_size"]

_QUANTIZED: Final = {"bnb-8bit": 1.0, "torchao-int8": 1.0, "bnb-4bit": 0.5}
"""Bytes per parameter, by quantization."""
_WORTHWHILE: Final = 0.1
"""A part with at least this share of the parameters is quantized; smaller ones lose quality and save nothing."""
_NEVER_QUANTIZED: Final = ("vae", "vqvae", "vqgan", "movq", "safety_checker", "image_encoder")
"""Parts that stay as they are: decoders consist of convolutions, and every error of theirs is seen."""
_WEIGHTS: Final = re.compile(r"(?P<part>[^/]+)/[^/.]+(?:\.(?P<variant>[^./]+?))?(?:-\d+-of-\d+)?\.safetensors")
"""A file of weights: PART/NAME.safetensors, with a variant and the number of a shard before or after it."""


def weights_size(source: PipelineSource, options: GeneratorOptions, itemsize: int) -> dict[str, int] | None:
    """Bytes of each part's weights in memory, from the headers of their files; None if the hub does not answer.

    Raises:
        BackendError: The denoiser has no weights.
        InputError: The weights are there in a variant alone that the options do not name.
    """
    parameters = parameters_of(source, options)
    if parameters is None:
        return None
    if source.denoiser and not parameters[source.denoiser]:
        if source.is_modular:  # its parts can lie in other repositories
            return None
        raise BackendError(
            f"{source.path} holds no weights for its {source.denoiser}: download it again", retryable=False
        )
    bytes_each = dict.fromkeys(parameters, float(itemsize))
    if options.quantization in _QUANTIZED:
        bytes_each |= dict.fromkeys(quantized_parts(source, parameters), _QUANTIZED[options.quantization])
    sizes = {name: int(count * bytes_each[name]) for name, count in parameters.items() if count}
    if options.quantization and options.quantization.endswith(".gguf") and source.denoiser:
        sizes[source.denoiser] = Path(options.quantization).stat().st_size
    return sizes


def quantized_parts(source: PipelineSource, parameters: Mapping[str, int] | None) -> list[str]:
    """The parts that a quantization changes: the large ones, wherever they are.

    Args:
        source: The pipeline.
        parameters: The number of parameters of each part; None if it is unknown.
    """
    parts = [name for name in source.components if not name.startswith(_NEVER_QUANTIZED)]
    if parameters is None:
        return [name for name in parts if name.startswith(("transformer", "unet", "text_encoder", "unconditional"))]
    total = sum(parameters.get(name, 0) for name in parts)
    large = [name for name in parts if parameters.get(name, 0) >= _WORTHWHILE * total > 0]
    return large or [name for name in [source.denoiser] if name]


def parameters_of(source: PipelineSource, options: GeneratorOptions) -> dict[str, int] | None:
    """The number of parameters of each part, from the headers of their files; None if the hub does not answer.

    Raises:
        InputError: The weights are there in a variant alone that the options do not name.
    """
    if source.file:
        return _parameters_of_file(source.file, source, options)
    folder = cached_folder(source)
    files = _files(source)
    variant = variant_of(source, options, files)
    count = partial(_local_parameters, folder) if folder else partial(_remote_parameters, source)
    try:
        return {name: sum(map(count, _files_of(name, files, variant))) for name in source.components} if files else None
    except Exception:  # no network, or one of many faults of a server
        if folder:
            raise
        return None


def _parameters_of_file(file: Path, source: PipelineSource, options: GeneratorOptions) -> dict[str, int] | None:
    """Those of a file that holds a whole model, under the denoiser's name; or of one in the place of the denoiser."""
    denoiser = source.denoiser or "checkpoint"
    if holds_all_parts(file):
        return {denoiser: parameter_count(file)}
    parts = parameters_of(source.layout, options)
    return None if parts is None else parts | {denoiser: parameter_count(file)}


def variant_of(source: PipelineSource, options: GeneratorOptions, files: Iterable[str] | None = None) -> str | None:
    """The variant of the weights to load: the one that was asked for, or else the only one that is there.

    Args:
        source: The pipeline.
        options: The generator's options.
        files: The files of the pipeline; None for those on this machine.

    Raises:
        InputError: The pipeline does not have the variant, or it has several and no plain weights.
    """
    if files is None:
        files = _files(source.layout)
    matches = [match for match in map(_WEIGHTS.fullmatch, files) if match]
    variants = {match["variant"] for match in matches if match["part"] == source.denoiser}
    if options.variant is not None and matches and options.variant not in {match["variant"] for match in matches}:
        choices = ", ".join(sorted(filter(None, variants))) or "none"
        raise InputError(f"variant: {source.path} has no weights of the variant {options.variant} (it has: {choices})")
    if options.variant is not None or None in variants or not variants:
        return options.variant
    if len(variants) > 1:
        choices = " or ".join(f"variant={variant}" for variant in sorted(filter(None, variants)))
        raise InputError(f"{source.path} holds its weights in variants only: give --generator-option {choices}")
    return variants.pop()


def cached_folder(source: PipelineSource) -> Path | None:
    """The local folder, or that of an earlier download of the whole pipeline; None if there is none."""
    if source.folder:
        return source.folder
    folder = source.layout.index_file.parent
    return folder if source.denoiser and any((folder / source.denoiser).glob("*.safetensors")) else None


def _files(source: PipelineSource) -> list[str]:
    """The files of a pipeline, as PART/NAME; none if it is in a repository and the hub is not asked or silent."""
    if folder := cached_folder(source):
        return [f"{path.parent.name}/{path.name}" for path in folder.glob("*/*")]
    if not source.may_download:
        return []
    try:
        return huggingface_hub.HfApi().list_repo_files(source.path, revision=source.commit)
    except Exception:  # no network, no such model, or one of many faults of a server
        return []


def _files_of(part: str, files: Iterable[str], variant: str | None) -> list[str]:
    """The files of a part's weights: of the variant, or else the plain ones, as diffusers chooses them."""
    by_variant: dict[str | None, list[str]] = {}
    for file in files:
        if (match := _WEIGHTS.fullmatch(file)) and match["part"] == part:
            by_variant.setdefault(match["variant"], []).append(file)
    return by_variant.get(variant) or by_variant.get(None, [])


def _local_parameters(folder: Path, file: str) -> int:
    return parameter_count(folder / file)


def _remote_parameters(source: PipelineSource, file: str) -> int:
    hub, revision = huggingface_hub.HfApi(), source.commit
    return sum(hub.parse_safetensors_file_metadata(source.path, file, revision=revision).parameter_count.values())
