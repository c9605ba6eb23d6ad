"""Loading diffusers pipelines: their weights, quantized or not, onto a device."""

from __future__ import annotations

import importlib
import importlib.util
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gems.errors import BackendError, GemsError, InputError
from gems.extras import how_to_install
from gems.models.devices import pick_dtype
from gems.models.diffusers.additions import add_to
from gems.models.diffusers.foreign_code import refuse_foreign_code
from gems.models.diffusers.moved_parts import restore_parts
from gems.models.diffusers.omnigen import complete_omnigen
from gems.models.diffusers.part_sizes import parameters_of, quantized_parts, variant_of
from gems.models.diffusers.source import PipelineSource, local_path
from gems.models.diffusers.weight_files import holds_all_parts
from gems.models.local_weights import without_questions
from gems.models.processors import replaced_processors
from gems.options import GeneratorOptions
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["check_packages", "is_out_of_memory", "load_pipeline", "number_type"]

_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of weights files that can run code when they are loaded."""
_PACKAGES: Final = {"bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes", "torchao-int8": "torchao"}
"""Quantizations, and the packages that they need."""


def number_type(source: PipelineSource, options: GeneratorOptions, device: str) -> torch.dtype:
    """The number type of the weights. Our own keep the one with which their reproducible images were made."""
    return pick_dtype("float32" if source.is_own else options.dtype, device)


def load_pipeline(source: PipelineSource, options: GeneratorOptions, device: str, dtype: torch.dtype) -> Any:
    """Load a pipeline's weights onto a device.

    Raises:
        InputError: The pipeline or this machine cannot honour an option.
        BackendError: The weights are missing or damaged, or do not fit into memory.
    """
    check_packages(options)
    if options.compile:
        _refuse_compiled_code()
    _refuse_pickles(source.layout)
    if not source.trust_remote_code:
        refuse_foreign_code(source.layout)
    try:
        own: Any = source.pipeline_class if source.is_own else None
        pipeline = own.from_pretrained(source.path) if own else _of_diffusers(source, options, dtype)
        _set_up(pipeline, source, options)
        return _placed(pipeline, options, device)
    except GemsError:
        raise
    except Exception as error:  # each component's library reports what it cannot load with errors of its own
        if is_out_of_memory(error):
            raise BackendError(
                f"{source.path} does not fit into the memory of {device}; try the options offload=model or "
                "quantization=bnb-4bit",
                retryable=False,
            ) from error
        raise BackendError(f"cannot load the image model {source.path}: {_message(error)}", retryable=False) from error


def _of_diffusers(source: PipelineSource, options: GeneratorOptions, dtype: torch.dtype) -> Any:
    """A pipeline of diffusers in main memory, with what the options add to it."""
    if source.pipeline_class.__name__ == "OmniGenPipeline":
        complete_omnigen()
    restore_parts(source.components.values())
    questions = nullcontext() if source.trust_remote_code else without_questions()
    with questions, replaced_processors(source.transformers_classes):
        pipeline = _unplaced(source, options, dtype)
    _leave_depth_out(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    add_to(pipeline, source, options, dtype)
    return pipeline


def _unplaced(source: PipelineSource, options: GeneratorOptions, dtype: torch.dtype) -> Any:
    """A pipeline in main memory, from a folder or repository, or from a file of weights and what belongs to it."""
    import diffusers

    layout = source.layout
    if source.file and holds_all_parts(source.file):
        if options.quantization:
            raise InputError("quantization: a single file with all parts is not quantized; use the model's folder")
        return _whole_file(source, layout, dtype)
    remote = isinstance(layout.index["_class_name"], list)
    kind: Any = diffusers.DiffusionPipeline if remote else layout.pipeline_class
    return kind.from_pretrained(
        layout.path,
        revision=layout.commit,
        dtype=dtype,
        use_safetensors=True,
        variant=variant_of(source, options),
        trust_remote_code=source.trust_remote_code,
        local_files_only=not source.may_download,
        **_quantized(source, options, dtype),
    )


def _leave_depth_out(pipeline: Any) -> None:
    """Let LDM3D make no depth maps: GEMS has no use for them, and Pillow 13 refuses how diffusers makes them."""
    processor: Any = getattr(pipeline, "image_processor", None)
    if hasattr(processor, "numpy_to_depth"):
        processor.numpy_to_depth = lambda images: [None] * len(images)


def _whole_file(source: PipelineSource, layout: PipelineSource, dtype: torch.dtype) -> Any:
    kind: Any = layout.pipeline_class
    if not hasattr(kind, "from_single_file"):
        raise InputError(f"diffusers cannot load a {kind.__name__} from a single file; use the model's folder")
    return kind.from_single_file(
        source.path,
        config=str(layout.index_file.parent) if layout.folder else layout.path,
        revision=layout.commit,
        dtype=dtype,
        local_files_only=not source.may_download,
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory, which drivers report in other ways than torch's own exception."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def check_packages(options: GeneratorOptions) -> None:
    """Make sure that the package that the quantization needs is installed.

    Raises:
        InputError: It is not, or the quantization is unknown.
    """
    quantization = options.quantization
    if quantization is None:
        return
    if quantization.endswith(".gguf"):
        if not Path(local_path(quantization)).is_file():
            raise InputError(f"quantization: there is no file {quantization}")
        package = "gguf"
    elif quantization in _PACKAGES:
        package = _PACKAGES[quantization]
    else:
        choices = ", ".join(_PACKAGES)
        raise InputError(f"unknown quantization {quantization!r}; give {choices} or the path of a .gguf file")
    if importlib.util.find_spec(package) is None:
        raise InputError(f"quantization {quantization} needs the package {package}: {how_to_install('quantization')}")


def _refuse_compiled_code() -> None:
    """Refuse PyTorch's usual folder of compiled code, which it loads and runs, if another user has made it.

    It lies in the folder for temporary files, under a name that everybody knows.

    Raises:
        InputError: Another user has.
    """
    from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir

    folder = Path(cache_dir())
    if folder == Path(default_cache_dir()) and folder.stat().st_uid != os.getuid():
        raise InputError(
            f"compile: {folder}, from which PyTorch runs compiled code, belongs to another user; set "
            "TORCHINDUCTOR_CACHE_DIR to a folder of your own"
        )


def _refuse_pickles(source: PipelineSource) -> None:
    """Refuse weights that exist only as pickles, with a clear message.

    Raises:
        InputError: A component's weights are pickles.
    """
    for name in source.components if source.folder else ():
        files = [path.suffix for path in Path(source.path, name).glob("*")]
        if ".safetensors" not in files and any(suffix in _PICKLES for suffix in files):
            raise InputError(
                f"{source.path}/{name} holds pickled weights only, which can run any code when they are loaded; "
                "convert them to safetensors, or use a copy of the model in that format"
            )


def _quantized(source: PipelineSource, options: GeneratorOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained``: the denoiser, if a file holds it, and how the large parts are quantized."""
    quantization, denoiser = options.quantization, source.denoiser
    if quantization is None and source.file is None:
        return {}
    if denoiser is None:
        raise InputError(f"quantization: {source.pipeline_class.__name__} has no transformer to quantize; leave it out")
    if quantization is None:
        return {denoiser: _denoiser_of_file(source, denoiser, source.path, dtype)}
    import diffusers
    import torch

    if quantization.endswith(".gguf"):
        gguf = diffusers.GGUFQuantizationConfig(compute_dtype=dtype)
        return {denoiser: _denoiser_of_file(source, denoiser, local_path(quantization), dtype, gguf)}
    if quantization.startswith("bnb") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise InputError(f"quantization {quantization} needs a GPU; torchao-int8 and .gguf files work without one")
    parts = quantized_parts(source, parameters_of(source, options))
    mapping = {name: _config(quantization, source.components[name][0], dtype) for name in parts}
    arguments: dict[str, Any] = {}
    if source.file and denoiser in mapping:
        arguments = {denoiser: _denoiser_of_file(source, denoiser, source.path, dtype, mapping.pop(denoiser))}
    if mapping:
        arguments["quantization_config"] = diffusers.PipelineQuantizationConfig(quant_mapping=mapping)
    return arguments


def _config(quantization: str, library: str, dtype: torch.dtype) -> Any:
    """A quantization config of the library that the component is from, diffusers or transformers."""
    configs = importlib.import_module("transformers" if library == "transformers" else "diffusers")
    if quantization == "bnb-4bit":
        return configs.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if quantization == "bnb-8bit":
        return configs.BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return configs.TorchAoConfig(Int8WeightOnlyConfig())


def _denoiser_of_file(
    source: PipelineSource, denoiser: str, file: str, dtype: torch.dtype, quantization: Any = None
) -> Any:
    import diffusers

    kind = getattr(diffusers, source.components[denoiser][1])
    if not hasattr(kind, "from_single_file"):
        raise InputError(f"diffusers cannot load a {kind.__name__} from a single file")
    return kind.from_single_file(
        file,
        dtype=dtype,
        config=source.layout.path,
        subfolder=denoiser,
        config_revision=source.layout.commit,
        local_files_only=not source.may_download,
        **({"quantization_config": quantization} if quantization else {}),
    )


def _set_up(pipeline: Any, source: PipelineSource, options: GeneratorOptions) -> None:
    """Apply the options for the VAE and for compilation."""
    vae, name = getattr(pipeline, "vae", None), type(pipeline).__name__
    for option, method in (("vae_tiling", "enable_tiling"), ("vae_slicing", "enable_slicing")):
        if getattr(options, option):
            if not hasattr(vae, method):
                raise InputError(f"{option}: {name} has no VAE that supports it; leave it out")
            getattr(vae, method)()
    if options.compile:
        if source.denoiser is None:
            raise InputError(f"compile: {name} has no transformer or U-Net; leave it out")
        model = getattr(pipeline, source.denoiser)
        # Compiling one of the repeated blocks takes seconds, compiling the whole model takes minutes.
        if getattr(model, "_repeated_blocks", None):
            model.compile_repeated_blocks()
        else:
            model.compile()


def _placed(pipeline: Any, options: GeneratorOptions, device: str) -> Any:
    """The pipeline on its device, or set up to offload to the CPU."""
    import torch

    if options.offload == "none":
        return pipeline.to(device)
    if torch.device(device).type == "cpu":
        raise InputError(f"offload={options.offload} needs a GPU to offload from; leave it out")
    if options.offload == "model":
        if pipeline.model_cpu_offload_seq is None:
            raise InputError(f"offload=model: {type(pipeline).__name__} does not support it; try offload=sequential")
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)
    return pipeline


def _message(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
