"""What is added to a pipeline that was loaded, or exchanged in it: LoRA weights, the autoencoder, the scheduler."""

from __future__ import annotations

import importlib.util
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gems.errors import GemsError, InputError
from gems.extras import how_to_install
from gems.models.diffusers.source import PipelineSource, local_path
from gems.models.processors import missing_backends
from gems.options import GeneratorOptions
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["Lora", "add_to", "compatible_schedulers", "loras_of", "refused_additions"]


_FLOW: Final = "FlowMatch"
"""How the names of schedulers begin that are made for models that match flows."""


class Lora(NamedTuple):
    """LoRA weights, and how strongly they are added."""

    path: Path
    scale: float


def loras_of(options: GeneratorOptions) -> list[Lora]:
    """The LoRA weights that the options name, as PATH[:SCALE]."""
    return [_lora(local_path(text)) for text in options.lora]


def _lora(text: str) -> Lora:
    path, colon, scale = text.rpartition(":")
    try:
        return Lora(Path(path), float(scale)) if colon else Lora(Path(text), 1.0)
    except ValueError:  # the colon belongs to the path
        return Lora(Path(text), 1.0)


def compatible_schedulers(own: type | None, config: Mapping[str, Any]) -> dict[str, type]:
    """The schedulers of diffusers that can take the place of a pipeline's own, by name.

    Args:
        own: The class of the pipeline's scheduler; None if it is none of diffusers.
        config: Its configuration.
    """
    import diffusers

    if own is None:
        return {}
    names = {own.__name__, *getattr(own, "_compatibles", ())}
    if own.__name__.startswith(_FLOW):
        names |= {name for name in dir(diffusers) if name.startswith(_FLOW)}
    kinds = {name: getattr(diffusers, name, None) for name in sorted(names)}
    is_told = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    matches_flows = is_told or own.__name__.startswith(_FLOW)
    # Such pipelines hand their scheduler sigmas of their own and a shift.
    required = {"sigmas", "mu"} & _arguments(own, "set_timesteps") if matches_flows else set()
    settings = {"use_flow_sigmas"} if is_told else set()
    return {
        name: kind
        for name, kind in kinds.items()
        if inspect.isclass(kind)
        and not missing_backends(kind)
        and required <= _arguments(kind, "set_timesteps")
        and settings <= _arguments(kind, "__init__")
    }


def _arguments(kind: type, method: str) -> set[str]:
    return set(inspect.signature(getattr(kind, method)).parameters) if hasattr(kind, method) else set()


# --- what cannot be added --------------------------------------------------------------------------------------------


def refused_additions(source: PipelineSource, options: GeneratorOptions) -> Iterator[tuple[str, str]]:
    """Options whose addition the pipeline cannot take, each with the reason."""
    name = source.pipeline_class.__name__
    if options.lora and (reason := _lora_reason(source.pipeline_class, options)):
        yield "lora", f"lora: {reason}"
    if options.vae and (reason := _vae_reason(source, Path(local_path(options.vae)))):
        yield "vae", f"vae: {reason}"
    if options.scheduler:
        choices = compatible_schedulers(source.component_class("scheduler"), source.component_config("scheduler"))
        if options.scheduler not in choices:
            yield "scheduler", f"scheduler: {name} takes {' or '.join(choices) or 'its own alone'}, no other"
    if options.config and source.file is None:
        yield "config", f"config: {source.path} is no single file and has a configuration of its own; leave it out"


def _lora_reason(kind: type, options: GeneratorOptions) -> str:
    if not hasattr(kind, "load_lora_weights"):
        return f"{kind.__name__} takes no LoRA weights; leave it out"
    for lora in loras_of(options):
        if not lora.path.exists():
            return f"there is no file {lora.path}"
        if lora.path.is_file() and lora.path.suffix != ".safetensors":
            return f"{lora.path} is no .safetensors file; other formats can run any code when they are loaded"
    if importlib.util.find_spec("peft") is None:
        return f"LoRA weights need the package peft: {how_to_install('lora')}"
    return ""


def _vae_reason(source: PipelineSource, path: Path) -> str:
    own = source.component_class("vae")
    if own is None:
        return f"{source.pipeline_class.__name__} has no VAE that can be exchanged; leave it out"
    if path.is_file():
        if path.suffix != ".safetensors":
            return f"{path} is no .safetensors file; other formats can run any code when they are loaded"
        return "" if hasattr(own, "from_single_file") else f"diffusers cannot load a {own.__name__} from a single file"
    folder = _vae_folder(path)
    if folder is None:
        return f"there is no VAE in {path}: give its folder, with a config.json, or its .safetensors file"
    return _difference(source, own, folder)


def _difference(source: PipelineSource, own: type, folder: Path) -> str:
    """What makes an autoencoder another than the pipeline needs; empty if nothing does."""
    try:
        other = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = other.get("_class_name", own.__name__)
    except (OSError, ValueError, AttributeError):
        return f"{folder / 'config.json'} is damaged"
    if kind != own.__name__:
        return f"{folder} holds a {kind}, and the pipeline needs a {own.__name__}"
    config = source.component_config("vae")
    for entry in ("latent_channels", "z_dim"):
        if other.get(entry) != config.get(entry):
            return f"{folder} has {other.get(entry)} channels ({entry}), and the pipeline needs {config.get(entry)}"
    return ""


def _vae_folder(path: Path) -> Path | None:
    """The folder of an autoencoder: the one that was named, or ``vae`` in the folder of a pipeline."""
    return next((folder for folder in (path, path / "vae") if (folder / "config.json").is_file()), None)


# --- adding ----------------------------------------------------------------------------------------------------------


def add_to(pipeline: Any, source: PipelineSource, options: GeneratorOptions, dtype: torch.dtype) -> None:
    """Exchange the autoencoder and the scheduler of a pipeline, and add LoRA weights.

    Raises:
        InputError: The pipeline cannot take one of them.
    """
    for _, reason in refused_additions(source, options):
        raise InputError(reason)
    if options.vae:
        pipeline.register_modules(vae=_vae(source, Path(local_path(options.vae)), dtype))
    if options.scheduler:
        config = pipeline.scheduler.config
        kind: Any = compatible_schedulers(type(pipeline.scheduler), config)[options.scheduler]
        pipeline.register_modules(scheduler=kind.from_config(config))
    loras = loras_of(options)
    for index, lora in enumerate(loras):
        _add_lora(pipeline, lora, f"lora_{index}")
    if loras:
        pipeline.set_adapters([f"lora_{index}" for index in range(len(loras))], [lora.scale for lora in loras])


def _vae(source: PipelineSource, path: Path, dtype: torch.dtype) -> Any:
    kind: Any = source.component_class("vae")
    if path.is_file():
        layout = source.layout
        return kind.from_single_file(
            str(path), config=layout.path, subfolder="vae", config_revision=layout.commit, dtype=dtype
        )
    return kind.from_pretrained(str(_vae_folder(path)), dtype=dtype, use_safetensors=True)


def _add_lora(pipeline: Any, lora: Lora, name: str) -> None:
    where = {"weight_name": lora.path.name} if lora.path.is_file() else {}
    folder = lora.path.parent if lora.path.is_file() else lora.path
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # it is a second LoRA
            pipeline.load_lora_weights(
                str(folder), adapter_name=name, use_safetensors=True, local_files_only=True, **where
            )
        adapters = {adapter for names in pipeline.get_list_adapters().values() for adapter in names}
    except GemsError:
        raise
    except Exception as error:  # peft and each family's converter report what they cannot read in their own ways
        raise InputError(
            f"lora: {type(pipeline).__name__} cannot read the weights in {lora.path}: {one_line(error)}"
        ) from error
    if name not in adapters:
        raise InputError(f"lora: {lora.path} holds no weights for a {type(pipeline).__name__}")
