"""Which options a pipeline cannot honour by effect, judged by its class and its small configuration files.

Pipelines accept most arguments and ignore many of them: a negative prompt without guidance, a guidance scale that the
weights have no input for, a size that they round. Each check here yields the options that would have no effect, or
another one than they say, with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, TypeAlias

from gems.errors import InputError
from gems.models.devices import pick_devices
from gems.models.diffusers.additions import refused_additions
from gems.models.diffusers.defaults import defaults_of, facts_of
from gems.models.diffusers.families import argument_of, family_of
from gems.models.diffusers.loading import check_packages
from gems.models.diffusers.part_sizes import variant_of
from gems.models.diffusers.prompt_length import MOST_TOKENS
from gems.models.diffusers.replicas import LOADING_OPTIONS
from gems.models.diffusers.source import PipelineSource, accepts, default_of
from gems.models.diffusers.weight_files import holds_all_parts
from gems.models.option_effects import changed_options
from gems.options import GeneratorOptions

__all__ = ["ARGUMENTS", "refusals", "size_multiple"]

ARGUMENTS: Final = {
    "width": "width",
    "height": "height",
    "steps": "num_inference_steps",
    "guidance_scale": "guidance_scale",
    "true_cfg_scale": "true_cfg_scale",
    "negative_prompt": "negative_prompt",
    "max_sequence_length": "max_sequence_length",
}
"""Options, and the arguments of a pipeline's call that they set."""

_KNOWN_OPTIONS: Final = LOADING_OPTIONS | ARGUMENTS.keys() | {"strength", "batch_size", "previews"}
_EXCHANGES: Final = frozenset({"scheduler", "variant", "lora", "vae", "config"})
"""Options that exchange parts of a pipeline, or add to them."""
_UNET_MULTIPLE: Final = 8
"""Pipelines with a U-Net refuse other sizes whatever their autoencoder's factor is."""

_Reasons: TypeAlias = Iterator[tuple[str, str]]
"""Options, each with the reason why it is refused."""


def refusals(
    source: PipelineSource, options: GeneratorOptions, settings: Mapping[str, Any], *, on_this_machine: bool = True
) -> dict[str, str]:
    """Why options are refused, by name.

    Args:
        source: The pipeline. Its index and configuration files are read, no weights.
        options: The generator's options.
        settings: The arguments of the pipeline's call: the model's defaults, and the options that were set.
        on_this_machine: Also judge the device, offloading and quantization on this machine.

    Raises:
        BackendError: The pipeline does not exist, or this version of diffusers does not have it.
    """
    set_options = changed_options(options)
    reasons = dict(_without_argument(source, set_options))
    by_model = _fixed_in_own(set_options) if source.is_own else _by_model(source, options, settings, set_options)
    by_machine = _by_machine(options) if on_this_machine else ()
    by_weights = _by_weights(source, options)
    for option, reason in chain(by_model, _by_parts(source, settings, set_options), by_weights, by_machine):
        reasons.setdefault(option, reason)
    return reasons


def _without_argument(source: PipelineSource, set_options: Mapping[str, Any]) -> _Reasons:
    """Options that pipelines in general, or this one, have no argument for."""
    kind, editor = source.pipeline_class, source.editing_class
    for option in set_options:
        if option not in _KNOWN_OPTIONS:
            yield option, f"it runs in this process and has no use for the option {option}"
        elif option in ARGUMENTS and not accepts(kind, argument_of(kind, ARGUMENTS[option])):
            yield option, f"{kind.__name__} takes no {option}; leave it out"
    if set_options.get("batch_size", 1) != 1 and not family_of(kind).is_batch_sound:
        yield "batch_size", f"{kind.__name__} draws one image at a time; leave batch_size out"
    if "strength" in set_options and not (editor and accepts(editor, "strength")):
        yield "strength", f"{kind.__name__} does not edit images by strength; leave it out"


def _by_model(
    source: PipelineSource, options: GeneratorOptions, settings: Mapping[str, Any], set_options: Mapping[str, Any]
) -> _Reasons:
    yield from _sizes(source, set_options)
    yield from _prompt_length(source, set_options)
    yield from _strength(source, options, settings)
    yield from _guidance(source, settings, set_options)


def _fixed_in_own(set_options: Mapping[str, Any]) -> _Reasons:
    """What is fixed in our own pipelines, whose images are the same on every machine."""
    if set_options.get("dtype", "float32") != "float32":
        yield "dtype", "it always draws in float32, so that its images are the same everywhere; leave dtype out"
    if set_options.get("batch_size", 1) != 1:
        yield "batch_size", "it always draws one image at a time; leave batch_size out"
    if set_options.get("offload", "none") != "none":
        yield "offload", "its weights are small and stay on their device; leave offload out"
    if "quantization" in set_options:
        yield "quantization", "its weights are small and stay in float32; leave quantization out"
    for option in _EXCHANGES & set_options.keys():
        yield option, f"{option}: its weights and scheduler come with this package; leave it out"
    if "trust_remote_code" in set_options:
        yield "trust_remote_code", "it comes with this package and has no remote code; leave trust_remote_code out"


# --- guidance --------------------------------------------------------------------------------------------------------


def _guidance(source: PipelineSource, settings: Mapping[str, Any], set_options: Mapping[str, Any]) -> _Reasons:
    if accepts(source.pipeline_class, "true_cfg_scale"):
        yield from _true_guidance(source, settings, set_options)
    else:
        yield from _classic_guidance(source, settings, set_options)


def _true_guidance(source: PipelineSource, settings: Mapping[str, Any], set_options: Mapping[str, Any]) -> _Reasons:
    """Pipelines of distilled models: a guidance scale as an input, and classifier-free guidance under another name."""
    name = source.pipeline_class.__name__
    true_scale = _value(source, settings, "true_cfg_scale") or 0
    is_on = true_scale > 1 and settings.get("negative_prompt") is not None
    if "negative_prompt" in set_options and not is_on:
        yield "negative_prompt", f"{name} uses a negative_prompt only with a true_cfg_scale above 1; set both"
    if "true_cfg_scale" in set_options and true_scale > 1 and not is_on:
        yield "true_cfg_scale", f"{name} uses a true_cfg_scale only with a negative_prompt, which may be a space"
    if "true_cfg_scale" in set_options and 0 < true_scale < 1:
        yield "true_cfg_scale", f"true_cfg_scale {true_scale:g}: {name} guides only above 1; 1 turns guidance off"
    has_input = _has_guidance_input(source)
    if "guidance_scale" in set_options and not has_input and (set_options["guidance_scale"] > 0 or is_on):
        yield "guidance_scale", f"these weights have no input for the guidance_scale; {name} takes true_cfg_scale"


def _classic_guidance(source: PipelineSource, settings: Mapping[str, Any], set_options: Mapping[str, Any]) -> _Reasons:
    name, argument = source.pipeline_class.__name__, argument_of(source.pipeline_class, "guidance_scale")
    if "guidance_scale" in set_options and argument == "distilled_guidance_scale" and not _has_guidance_input(source):
        yield "guidance_scale", f"these weights have no input for the guidance_scale: {name} guides by itself"
    scale = _value(source, settings, argument)
    if scale is None or _guides(source, scale):
        return
    is_input = source.component_config(source.denoiser).get("time_cond_proj_dim") is not None
    if "negative_prompt" in set_options and not (_value(source, settings, "prior_guidance_scale") or 0) > 1:
        reason = (
            f"{name} uses a negative_prompt only with guidance, and guidance_scale {scale:g} turns it off; set a "
            "larger guidance_scale, or leave the negative_prompt out"
        )
        yield "negative_prompt", reason
    if "guidance_scale" in set_options and not is_input and scale not in (0, 1):
        yield "guidance_scale", f"guidance_scale {scale:g} has no effect: {name} guides {_when_it_guides(source)}"


def _has_guidance_input(source: PipelineSource) -> bool:
    return source.component_config(source.denoiser).get("guidance_embeds") is not False


def _guides(source: PipelineSource, scale: float) -> bool:
    """Whether the pipeline uses classifier-free guidance at this scale, by its own property if it has one."""
    condition = getattr(source.pipeline_class, "do_classifier_free_guidance", None)
    if not isinstance(condition, property) or condition.fget is None:
        return scale > 1 or not accepts(source.pipeline_class, "negative_prompt")
    try:
        return bool(condition.fget(_Unloaded(source, scale)))
    except (AttributeError, TypeError):  # it asks for more than settings: take the convention
        return scale > 1


def _when_it_guides(source: PipelineSource) -> str:
    return "only above 1; 1 turns guidance off" if _guides(source, 2.0) else "not at all: these weights are distilled"


class _Unloaded:
    """A pipeline that has its settings but no weights, as far as ``do_classifier_free_guidance`` asks for them."""

    def __init__(self, source: PipelineSource, scale: float) -> None:
        self._guidance_scale = self.guidance_scale = scale
        self.config = _Config(source.index)
        for name in ("unet", "transformer"):
            model = type("Model", (), {"config": _Config(source.component_config(name))})
            setattr(self, name, model)


class _Config:
    """A configuration whose missing entries are None, as those of diffusers' models are by default."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = entries

    def __getattr__(self, name: str) -> Any:
        return self._entries.get(name)


def _value(source: PipelineSource, settings: Mapping[str, Any], argument: str) -> Any:
    return settings.get(argument, default_of(source.pipeline_class, argument))


# --- sizes and steps -------------------------------------------------------------------------------------------------


def size_multiple(source: PipelineSource) -> int:
    """Width and height of images must be multiples of this; 1 if it is unknown.

    It is the autoencoder's factor times the side of the patches that the denoiser cuts latents into.
    """
    if multiple := family_of(source.pipeline_class).multiple:
        return multiple
    vae = source.component_config("vae") or source.component_config("vqvae")
    denoiser = source.component_config(source.denoiser)
    stages = vae.get("temperal_downsample") or _after_first(vae.get("block_out_channels"))
    stages = stages or _after_first(vae.get("encoder_block_out_channels"))
    factor = 2 ** len(stages)
    if not vae or not (stages or source.denoiser == "unet"):
        return 1
    if source.denoiser == "unet" or accepts(source.pipeline_class, "use_resolution_binning"):
        return math.lcm(factor, _UNET_MULTIPLE)  # binning pipelines draw a near size and crop it
    channels = vae.get("latent_channels") or vae.get("z_dim") or 0
    inputs, patch = denoiser.get("in_channels") or 0, denoiser.get("patch_size") or 1
    packing = math.isqrt(inputs // channels) if channels and inputs % channels == 0 else 1
    return int(factor * max(packing, patch if isinstance(patch, int) else 1, _side_of_patches(denoiser)))


def _after_first(channels: object) -> list[Any]:
    return list(channels[1:]) if isinstance(channels, (list, tuple)) else []


def _side_of_patches(denoiser: Mapping[str, Any]) -> int:
    sides = denoiser.get("all_patch_size")  # of Z-Image, which could have several
    return max(sides) if isinstance(sides, (list, tuple)) and sides else 1


def _sizes(source: PipelineSource, set_options: Mapping[str, Any]) -> _Reasons:
    name = source.pipeline_class.__name__
    for side in set_options.keys() & {"width", "height"}:
        value, multiple = set_options[side], size_multiple(source)
        if value % multiple:
            low = value // multiple * multiple
            choices = " or ".join(str(size) for size in (low, low + multiple) if size)
            yield side, f"{side} {value} is not a multiple of {multiple}, as {name} needs; give {choices}"


def _strength(source: PipelineSource, options: GeneratorOptions, settings: Mapping[str, Any]) -> _Reasons:
    strength, steps = options.strength, _value(source, settings, "num_inference_steps")
    if strength is not None and steps and strength * steps < 1:
        min_steps = math.ceil(1 / strength)
        yield "strength", f"strength {strength:g} of {steps} steps leaves none to draw; give steps={min_steps} or more"


def _prompt_length(source: PipelineSource, set_options: Mapping[str, Any]) -> _Reasons:
    """A prompt length beyond what the class takes, or what the weights were made for."""
    kind, length = source.pipeline_class, set_options.get("max_sequence_length", 0)
    recommended = defaults_of(facts_of(source)).arguments.get("max_sequence_length")
    if (most := recommended or MOST_TOKENS.get(kind.__name__)) and length > most:
        yield "max_sequence_length", f"max_sequence_length {length}: {kind.__name__} reads at most {most} tokens here"


# --- parts and machine -----------------------------------------------------------------------------------------------


def _by_parts(source: PipelineSource, settings: Mapping[str, Any], set_options: Mapping[str, Any]) -> _Reasons:
    """Options that need a part which the pipeline does not have."""
    name, vae = source.pipeline_class.__name__, source.component_class("vae")
    for option, method in (("vae_tiling", "enable_tiling"), ("vae_slicing", "enable_slicing")):
        if option in set_options and not hasattr(vae, method):
            yield option, f"{option}: {name} has no VAE that supports it; leave it out"
    if source.denoiser is None:
        for option in {"compile", "quantization"} & set_options.keys():
            yield option, f"{option}: {name} has no transformer or U-Net; leave it out"
    if "previews" in set_options:
        yield from _previews(source, settings, set_options["previews"])


def _previews(source: PipelineSource, settings: Mapping[str, Any], interval: int) -> _Reasons:
    kind, steps = source.pipeline_class, _value(source, settings, "num_inference_steps")
    if source.component_class("vae") is None:
        yield "previews", f"{kind.__name__} has no latents that a preview can be made from; leave previews out"
    elif steps and interval > steps:
        yield "previews", f"a preview every {interval} steps never comes in {steps} steps; give a smaller number"


def _by_weights(source: PipelineSource, options: GeneratorOptions) -> _Reasons:
    """Options for weights that are not there, or that the pipeline cannot take."""
    yield from refused_additions(source, options)
    is_whole = source.file is not None and holds_all_parts(source.file)
    for option in ("variant", "quantization"):
        if is_whole and getattr(options, option) is not None:
            yield option, f"{option}: a single file with all parts has no other weights; use the model's folder"
    if options.variant is not None and not is_whole:
        try:
            variant_of(source, options)
        except InputError as error:
            yield "variant", str(error)


def _by_machine(options: GeneratorOptions) -> _Reasons:
    """Options that this machine cannot honour."""
    try:
        devices = pick_devices(options.device)
    except InputError as error:
        yield "device", str(error)
        return
    if options.offload != "none" and any(device.startswith("cpu") for device in devices):
        yield "offload", f"offload={options.offload} needs a GPU to offload from; leave it out"
    try:
        check_packages(options)
    except InputError as error:
        yield "quantization", str(error)
        return
    if (options.quantization or "").startswith("bnb") and all(device.startswith("cpu") for device in devices):
        reason = f"quantization {options.quantization} needs a GPU; torchao-int8 and .gguf files work without one"
        yield "quantization", reason
