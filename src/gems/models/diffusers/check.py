"""Checks whether a diffusers pipeline will run on this machine, without loading it."""

from __future__ import annotations

import importlib
import re
from contextlib import nullcontext
from typing import Any, Final

import diffusers

from gems.errors import BackendError
from gems.models.devices import free_memory, pick_devices
from gems.models.diffusers.foreign_code import refuse_foreign_code
from gems.models.diffusers.loading import check_packages, number_type
from gems.models.diffusers.part_sizes import cached_folder, weights_size
from gems.models.diffusers.source import PipelineSource
from gems.models.diffusers.weight_files import weights_in
from gems.models.local_weights import without_questions
from gems.models.processors import missing_backends, replaced_processors
from gems.options import GeneratorOptions
from gems.secrets import one_line

__all__ = ["describe"]

_GB: Final = 10**9
_SMALL: Final = re.compile("(Tokenizer(Fast)?|Processor(Fast|Pil)?|FeatureExtractor)$")
"""Classes of components that a check loads: they are small, and need packages that their classes do not name."""
_MOST_READ: Final = 4 * _GB
"""Bytes of weights that are read in a check, which takes seconds."""


def describe(source: PipelineSource, options: GeneratorOptions) -> str:
    """The pipeline's class, its device and number type, the size of its weights, and the free memory.

    Raises:
        InputError: The pipeline or this machine cannot honour an option.
        BackendError: Weights or packages are missing, or the weights are damaged or do not fit into memory.
    """
    kind = source.pipeline_class
    check_packages(options)
    if not source.trust_remote_code:
        refuse_foreign_code(source.layout)
    _check_components(source.layout)
    devices = pick_devices(options.device)
    dtype = number_type(source, options, devices[0])
    parts = [f"{kind.__name__} of diffusers {diffusers.__version__}", f"{', '.join(devices)} with {str(dtype)[6:]}"]
    sizes = weights_size(source, options, dtype.itemsize)
    if sizes is None:
        return "; ".join([*parts, "the size of its weights is unknown: the hub does not answer"])
    total, free = sum(sizes.values()), free_memory(devices[0])
    # offload=model keeps one model at a time on the device, offload=sequential one layer.
    required = {"none": total, "model": max(sizes.values(), default=0), "sequential": 0}[options.offload]
    if required > free:
        raise BackendError(
            f"{source.path} needs {required / _GB:.1f} GB for its weights alone and {devices[0]} has {free / _GB:.1f} "
            "GB free; try the options offload=model or quantization=bnb-4bit",
            retryable=False,
        )
    _check_numbers(source)
    return "; ".join([*parts, f"weights {total / _GB:.2f} GB, {free / _GB:.1f} GB free"])


def _check_numbers(source: PipelineSource) -> None:
    """Look for weights that are not numbers, with which every image would be black; large folders are not read.

    Raises:
        BackendError: There are some.
    """
    folder = cached_folder(source)
    files = [file for file in folder.glob("*/*.safetensors") if file.parent.name in source.components] if folder else []
    files += [source.file] if source.file else []
    if sum(file.stat().st_size for file in files) > _MOST_READ:
        return
    for file in files:
        names = [name for name, tensor in weights_in(file) if tensor.float().isnan().any()]
        if names:
            raise BackendError(
                f"{source.path}: weights in {file.parent.name}/{file.name} are not numbers (NaN), such as {names[0]}: "
                "download it again",
                retryable=False,
            )


def _check_components(source: PipelineSource) -> None:
    """Make sure that the packages that the components need are installed, and that the small ones load.

    Raises:
        BackendError: A package is missing, or a tokenizer or processor cannot be loaded.
    """
    questions = nullcontext() if source.trust_remote_code else without_questions()
    with questions, replaced_processors(source.transformers_classes):
        for name, (library, kind) in source.components.items():
            if library not in ("diffusers", "transformers"):
                continue  # a repository may name any module: importing it would run its code
            component = getattr(importlib.import_module(library), kind, None)
            if packages := missing_backends(component):
                raise BackendError(
                    f"{source.path}: its {name}, a {kind}, needs {' and '.join(packages)}: "
                    f"pip install {' '.join(packages)}",
                    retryable=False,
                )
            # The parts of a modular repository can lie in other ones.
            if library == "transformers" and _SMALL.search(kind) and not source.is_modular:
                _load_small(source, name, component)


def _load_small(source: PipelineSource, name: str, component: Any) -> None:
    """Load a tokenizer or processor, which fails in more ways than its class shows."""
    try:
        component.from_pretrained(
            source.path, subfolder=name, revision=source.commit, local_files_only=not source.may_download
        )
    except Exception as error:  # each class has errors of its own
        raise BackendError(
            f"{source.path}: cannot load its {name}, a {component.__name__}: {one_line(error)}", retryable=False
        ) from error
