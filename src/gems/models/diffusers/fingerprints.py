"""What identifies the weights that a diffusers pipeline draws with, in records."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from gems.models.diffusers.additions import loras_of
from gems.models.diffusers.source import PipelineSource, local_path
from gems.models.diffusers.weight_files import holds_all_parts
from gems.models.pocket.weights import folder_fingerprint
from gems.options import GeneratorOptions

__all__ = ["fingerprint_of"]


def fingerprint_of(source: PipelineSource, options: GeneratorOptions) -> str:
    """SHA-256 of a folder's or file's weights, or a repository's id and commit; then those of what is added to it.

    Raises:
        BackendError: The pipeline does not exist.
        InputError: A file does not say which pipeline it is for.
    """
    return "+".join([*_of_weights(source), *_of_additions(options)])


def _of_weights(source: PipelineSource) -> Iterator[str]:
    if source.folder:
        yield folder_fingerprint(source.folder)
    elif source.file is None:
        yield f"{source.path}@{source.commit}"
    else:
        yield from _of_path(source.file)
        if not holds_all_parts(source.file):
            yield from _of_weights(source.layout)


def _of_additions(options: GeneratorOptions) -> Iterator[str]:
    if options.quantization and options.quantization.endswith(".gguf"):
        yield from _of_path(Path(local_path(options.quantization)))
    if options.vae:
        yield from (f"vae:{digest}" for digest in _of_path(Path(local_path(options.vae))))
    for lora in loras_of(options):
        yield from (f"lora:{digest}:{lora.scale:g}" for digest in _of_path(lora.path))


def _of_path(path: Path) -> Iterator[str]:
    """SHA-256 of a file or a folder's weights; nothing if there is neither, which loading will tell."""
    if path.is_dir():
        yield folder_fingerprint(path)
    elif path.is_file():
        with path.open("rb") as stream:
            yield hashlib.file_digest(stream, "sha256").hexdigest()
