"""The arguments of a pipeline's call: from the options and the model's defaults, for drawing and for editing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

from PIL import Image

from gems.errors import InputError
from gems.models.diffusers.defaults import defaults_of, facts_of
from gems.models.diffusers.families import argument_of, family_of, refusal
from gems.models.diffusers.option_checks import ARGUMENTS
from gems.models.diffusers.source import PipelineSource, accepts
from gems.models.generators import Edit, ImageRequest, edit_instruction, joint_negative_prompt
from gems.models.option_effects import changed_options
from gems.options import GeneratorOptions

__all__ = ["call_settings", "drawing_arguments", "editing_arguments"]

STRENGTH: Final = 0.6
"""How far an edit moves from its image by default, in (0, 1]; the default of diffusers' newer pipelines."""


def call_settings(name: str, source: PipelineSource, options: GeneratorOptions) -> dict[str, Any]:
    """The arguments that are the same in every call of a pipeline.

    Args:
        name: The generator's name, for error messages.
        source: The pipeline.
        options: The generator's options.

    Raises:
        InputError: The pipeline cannot draw from text.
        BackendError: The pipeline does not exist, or this version of diffusers does not have it.
    """
    kind = source.pipeline_class
    if not source.is_own and (reason := refusal(kind)):
        raise InputError(f"{name}: {reason}")
    family, set_options = family_of(kind), changed_options(options)
    # A modular pipeline of the same family may take fewer arguments.
    recommended = {**defaults_of(facts_of(source)).arguments, **family.switches}
    settings: dict[str, Any] = {argument: value for argument, value in recommended.items() if accepts(kind, argument)}
    settings |= {
        argument_of(kind, argument): set_options[option]
        for option, argument in ARGUMENTS.items()
        if option in set_options
    }
    if family.schedule:
        settings |= family.schedule(settings)
    if accepts(kind, "max_area") and "width" in settings and "height" in settings:
        settings["max_area"] = settings["width"] * settings["height"]  # Kontext scales images to this area
    return settings


def drawing_arguments(
    source: PipelineSource, settings: dict[str, Any], requests: Sequence[ImageRequest]
) -> dict[str, Any]:
    """The arguments of a call that draws these requests from text."""
    arguments = _request_arguments(requests) | _with_negative_prompts(settings, requests)
    if family_of(source.pipeline_class).canvas:
        size = (settings.get("width", 1024), settings.get("height", 1024))
        arguments["image"] = [Image.new("RGB", size, "white")]
    return _as_taken(source.pipeline_class, arguments)


def editing_arguments(
    source: PipelineSource, settings: dict[str, Any], requests: Sequence[ImageRequest], strength: float | None
) -> dict[str, Any]:
    """The arguments of a call that edits the images of these requests.

    Args:
        source: The pipeline.
        settings: The result of ``call_settings``.
        requests: The requests, all of which are edits.
        strength: The option; None for the default.
    """
    kind = source.editing_class
    assert kind is not None  # by the protocol, only generators that edit are given edits
    edits = [request.edit for request in requests if request.edit is not None]
    arguments = _with_negative_prompts(settings, requests)
    if accepts(kind, "keep"):  # our own pipelines know what to keep and what to change
        [edit] = edits
        return _request_arguments(requests) | arguments | {"image": edit.image, "keep": edit.keep, "fix": edit.fix}
    if not accepts(kind, "strength"):  # such a pipeline reads instructions
        arguments["prompt"] = [edit_instruction(request) for request in requests]
    arguments |= _image_arguments(arguments, edits)
    arguments["strength"] = strength or STRENGTH
    if accepts(kind, "strength") and "num_inference_steps" in arguments:
        # Strength skips the first steps; at least one must remain.
        minimum = math.ceil(1 / arguments["strength"])
        arguments["num_inference_steps"] = max(arguments["num_inference_steps"], minimum)
    arguments = _request_arguments(requests) | {name: v for name, v in arguments.items() if accepts(kind, name)}
    return _as_taken(kind, arguments)


def _as_taken(kind: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call; for a class that takes one text, the only item of each list of a batch of one."""
    if family_of(kind).prompts == "list":
        return arguments
    lists = arguments.keys() & {"prompt", "negative_prompt", "generator", "image"}
    return arguments | {name: arguments[name][0] for name in lists}


def _image_arguments(arguments: dict[str, Any], edits: Sequence[Edit]) -> dict[str, Any]:
    """The images to edit, all scaled to the size from the settings, or else to the size of the first one."""
    first = edits[0].image
    width, height = arguments.get("width", first.width), arguments.get("height", first.height)
    images = [edit.image.convert("RGB").resize((width, height)) for edit in edits]
    return {"width": width, "height": height, "image": images}


def _request_arguments(requests: Sequence[ImageRequest]) -> dict[str, Any]:
    """Prompts, and sources of noise. Noise is drawn on the CPU, so that it is the same on every device."""
    import torch

    return {
        "prompt": [request.prompt for request in requests],
        "generator": [torch.Generator("cpu").manual_seed(request.seed) for request in requests],
    }


def _with_negative_prompts(settings: dict[str, Any], requests: Sequence[ImageRequest]) -> dict[str, Any]:
    """The settings, with the negative prompt of each image if there is any."""
    negative = [joint_negative_prompt(settings.get("negative_prompt"), request) for request in requests]
    return settings | ({} if None in negative else {"negative_prompt": negative})
