"""Finding and loading diffusers pipelines: what a folder or repository holds, and loading its weights."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import huggingface_hub

from gems.errors import BackendError, GemsError, InputError
from gems.extras import how_to_install
from gems.models.devices import pick_dtype
from gems.models.diffusers.families import call_parameters, edits_by_itself
from gems.models.local_weights import without_bars
from gems.models.processors import replaced_processors
from gems.options import GeneratorOptions
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = [
    "PipelineSource",
    "accepts",
    "check_packages",
    "default_of",
    "is_out_of_memory",
    "load_pipeline",
    "number_type",
]

_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
"""Endings of weights files that can run code when they are loaded."""
_PACKAGES: Final = {"bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes", "torchao-int8": "torchao"}
"""Quantizations, and the packages that they need."""
_CONFIGS: Final = {"scheduler": "scheduler_config.json", "guider": "guider_config.json"}
"""The configuration files of components that are no models, by component; a model has a config.json."""


@dataclass(frozen=True)
class PipelineSource:
    """Where a pipeline comes from. Nothing here loads weights; a repository's ``model_index.json`` is downloaded.

    Attributes:
        path: A local folder, or the id of a repository.
        revision: A branch, tag or commit of the repository; None is its main branch.
        module: The module that defines the pipeline's class, if it is not diffusers.
        trust_remote_code: Whether code in the repository may run.
    """

    path: str
    revision: str | None = None
    module: str = "diffusers"
    trust_remote_code: bool = False

    @classmethod
    def parse(cls, text: str, *, module: str = "diffusers", trust_remote_code: bool = False) -> PipelineSource:
        """Parse ``FOLDER_OR_REPO[@REVISION]``; the name of a folder may contain an @.

        Raises:
            InputError: A local folder is given with a revision.
        """
        path, _, revision = text.rpartition("@")
        if not path or Path(text).is_dir():
            path, revision = text, ""
        if revision and Path(path).is_dir():
            raise InputError(f"{path} is a local folder, which has no revisions: leave @{revision} out")
        return cls(path, revision or None, module, trust_remote_code)

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a repository."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @property
    def name(self) -> str:
        """The last part of the repository's id or of the path; in the hub's cache, that of the repository's id."""
        parts = [part for part in self.path.replace("\\", "/").split("/") if part]
        if len(parts) > 2 and parts[-2] == "snapshots" and parts[-3].startswith("models--"):
            return parts[-3].rpartition("--")[2]
        return parts[-1] if parts else ""

    @cached_property
    def index_file(self) -> Path:
        """``model_index.json``, downloaded if it is in a repository.

        Raises:
            BackendError: The folder does not exist, or the download failed.
        """
        if self.folder:
            return self.folder / "model_index.json"
        if self.path.startswith((".", "/", "~")):
            raise BackendError(f"there is no folder {self.path}", retryable=False)
        try:
            return Path(huggingface_hub.hf_hub_download(self.path, "model_index.json", revision=self.revision))
        except (OSError, ValueError) as error:
            raise BackendError(
                f"cannot load the image model {self.path}: {_message(error)}", retryable=False
            ) from error

    @cached_property
    def index(self) -> dict[str, Any]:
        """The content of ``model_index.json``.

        Raises:
            BackendError: The file is missing or damaged.
        """
        try:
            index: dict[str, Any] = json.loads(self.index_file.read_text(encoding="utf-8"))
            _ = index["_class_name"]
        except FileNotFoundError as error:
            raise BackendError(f"{self.path} has no model_index.json: it is not a pipeline", retryable=False) from error
        except (ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{self.path}: model_index.json is damaged", retryable=False) from error
        return index

    @property
    def commit(self) -> str | None:
        """The commit that the revision refers to; None for a local folder."""
        return None if self.folder else self.index_file.parent.name  # downloads are in snapshots/COMMIT

    @cached_property
    def pipeline_class(self) -> type:
        """The pipeline's class.

        Raises:
            InputError: The class is code in the repository, which is not trusted.
            BackendError: This version of diffusers does not have the class.
        """
        name = self.index["_class_name"]
        if isinstance(name, list):  # [file, class]: code in the repository
            return self._remote_class(*name)
        kind = getattr(importlib.import_module(self.module), name, None)
        if not inspect.isclass(kind) or not hasattr(kind, "from_pretrained"):
            import diffusers

            raise BackendError(
                f"{self.path} is for the pipeline {name}, which diffusers {diffusers.__version__} does not have; "
                "try 'pip install -U diffusers'",
                retryable=False,
            )
        return kind

    @cached_property
    def editing_class(self) -> type | None:
        """The class that edits images: the pipeline's own, or its image-to-image sibling; None if neither can."""
        from diffusers.pipelines.auto_pipeline import AUTO_IMAGE2IMAGE_PIPELINES_MAPPING as EDITING
        from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING as DRAWING

        kind = self.pipeline_class
        if kind in EDITING.values() or accepts(kind, "keep") or edits_by_itself(kind):
            return kind
        family = next((name for name, drawing_class in DRAWING.items() if drawing_class is kind), None)
        sibling: type | None = EDITING.get(family)
        return sibling

    def _remote_class(self, file: str, name: str) -> type:
        from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

        if not self.trust_remote_code:
            raise InputError(
                f"{self.path} contains code of its own ({file}.py); read it, and if you trust it, set trust_remote_code"
            )
        try:
            kind: type = get_class_from_dynamic_module(
                self.path, module_file=f"{file}.py", class_name=name, revision=self.commit, trust_remote_code=True
            )
        except (OSError, ValueError, AttributeError, ImportError) as error:
            raise BackendError(f"cannot load the code of {self.path}: {_message(error)}", retryable=False) from error
        return kind

    @property
    def denoiser(self) -> str | None:
        """The name of the component that runs in each step: the transformer or U-Net."""
        return next((name for name in ("transformer", "unet") if self.components.get(name)), None)

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """The library and class of each component that the pipeline has."""
        return {
            name: (value[0], value[1])
            for name, value in self.index.items()
            if isinstance(value, list) and not name.startswith("_") and value[0]
        }

    @property
    def transformers_classes(self) -> list[str]:
        """The names of the classes of transformers that its components are of."""
        return [kind for library, kind in self.components.values() if library == "transformers"]

    @property
    def is_own(self) -> bool:
        """Whether it is a pipeline of this package, whose images are the same on every machine."""
        return self.module != "diffusers"

    def component_class(self, name: str) -> type | None:
        """The class of a component of diffusers; None if there is no such component, or it is of another library."""
        library, kind = self.components.get(name, ("", ""))
        component = getattr(importlib.import_module("diffusers"), kind, None) if library == "diffusers" else None
        return component if inspect.isclass(component) else None

    def component_config(self, name: str | None) -> dict[str, Any]:
        """A component's configuration file; empty if it cannot be had, or there is no such component."""
        if name not in self.components:
            return {}
        if name not in self._configs:
            self._configs[name] = self._read_config(name)
        return self._configs[name]

    @cached_property
    def _configs(self) -> dict[str, dict[str, Any]]:
        return {}

    def _read_config(self, component: str) -> dict[str, Any]:
        name = _CONFIGS.get(component, "config.json")
        try:
            file = Path(self.folder, component, name) if self.folder else self._downloaded(f"{component}/{name}")
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # loading the weights will say what is wrong with the folder or the hub
            return {}
        return content if isinstance(content, dict) else {}

    def _downloaded(self, file: str) -> Path:
        return Path(huggingface_hub.hf_hub_download(self.path, file, revision=self.commit))


def number_type(source: PipelineSource, options: GeneratorOptions, device: str) -> torch.dtype:
    """The number type of the weights. Our own keep the one with which their reproducible images were made."""
    return pick_dtype("float32" if source.is_own else options.dtype, device)


def default_of(kind: type[Any], argument: str) -> Any:
    """The default of an argument of a pipeline class's call; None if it has none, or there is no such argument."""
    parameter = call_parameters(kind).get(argument)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def accepts(kind: type[Any], argument: str) -> bool:
    """Whether the call of a pipeline class takes an argument of that name."""
    return argument in call_parameters(kind)


def load_pipeline(source: PipelineSource, options: GeneratorOptions, device: str, dtype: torch.dtype) -> Any:
    """Load a pipeline's weights onto a device.

    Raises:
        InputError: The pipeline or this machine cannot honour an option.
        BackendError: The weights are missing or damaged, or do not fit into memory.
    """
    import diffusers

    check_packages(options)
    _refuse_pickles(source)
    remote = isinstance(source.index["_class_name"], list)
    kind: Any = diffusers.DiffusionPipeline if remote else source.pipeline_class
    try:
        bars = without_bars() if source.module != "diffusers" else nullcontext()
        with bars, replaced_processors(source.transformers_classes):
            pipeline = kind.from_pretrained(
                source.path,
                revision=source.commit,
                dtype=dtype,
                use_safetensors=True,
                trust_remote_code=source.trust_remote_code,
                **_quantized(source, options, dtype),
            )
        pipeline.set_progress_bar_config(disable=True)
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
        if not Path(quantization).is_file():
            raise InputError(f"quantization: there is no file {quantization}")
        package = "gguf"
    elif quantization in _PACKAGES:
        package = _PACKAGES[quantization]
    else:
        choices = ", ".join(_PACKAGES)
        raise InputError(f"unknown quantization {quantization!r}; give {choices} or the path of a .gguf file")
    if importlib.util.find_spec(package) is None:
        raise InputError(f"quantization {quantization} needs the package {package}: {how_to_install('quantization')}")


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
    """Arguments of ``from_pretrained`` that quantize the denoiser and the largest text encoder."""
    quantization, denoiser = options.quantization, source.denoiser
    if quantization is None:
        return {}
    if denoiser is None:
        raise InputError(f"quantization: {source.pipeline_class.__name__} has no transformer to quantize; leave it out")
    if quantization.endswith(".gguf"):
        return {denoiser: _from_gguf(source, denoiser, quantization, dtype)}
    import diffusers
    import torch

    if quantization.startswith("bnb") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise InputError(f"quantization {quantization} needs a GPU; torchao-int8 and .gguf files work without one")
    # Text encoders are numbered by size: the T5 of Flux and Stable Diffusion 3 comes last.
    encoders = sorted(name for name in source.components if name.startswith("text_encoder"))
    mapping = {name: _config(quantization, source.components[name][0], dtype) for name in [denoiser, *encoders[-1:]]}
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=mapping)}


def _config(quantization: str, library: str, dtype: torch.dtype) -> Any:
    """A quantization config of the library that the component is from, diffusers or transformers."""
    configs = importlib.import_module("transformers" if library == "transformers" else "diffusers")
    if quantization == "bnb-4bit":
        return configs.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if quantization == "bnb-8bit":
        return configs.BitsAndBytesConfig(load_in_8bit=True)
    from torchao.quantization import Int8WeightOnlyConfig

    return configs.TorchAoConfig(Int8WeightOnlyConfig())


def _from_gguf(source: PipelineSource, denoiser: str, file: str, dtype: torch.dtype) -> Any:
    import diffusers

    kind = getattr(diffusers, source.components[denoiser][1])
    if not hasattr(kind, "from_single_file"):
        raise InputError(f"diffusers cannot load a {kind.__name__} from a .gguf file")
    return kind.from_single_file(
        file,
        quantization_config=diffusers.GGUFQuantizationConfig(compute_dtype=dtype),
        dtype=dtype,
        config=source.path,
        subfolder=denoiser,
        config_revision=source.commit,
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
