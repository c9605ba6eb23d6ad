"""Finding and loading diffusers pipelines: what a folder or repository holds, and its weights on a device."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import huggingface_hub

from gems.errors import BackendError, GemsError, InputError
from gems.models.local_weights import without_bars
from gems.options import GeneratorOptions
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["PipelineSource", "accepts", "check_packages", "is_out_of_memory", "load_pipeline"]

_PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth")
_PACKAGES: Final = {"bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes", "torchao-int8": "torchao"}


@dataclass(frozen=True)
class PipelineSource:
    """Where a pipeline comes from. Nothing here loads weights; of a repository, ``model_index.json`` is fetched.

    Attributes:
        path: A local folder, or a repository's id.
        revision: A branch, tag or commit of the repository; None is its main branch.
        module: The module that defines the pipeline's class, where that is not diffusers.
        trust_remote_code: Whether code that comes with the weights may be run.
    """

    path: str
    revision: str | None = None
    module: str = "diffusers"
    trust_remote_code: bool = False

    @classmethod
    def parse(cls, text: str, *, module: str = "diffusers", trust_remote_code: bool = False) -> PipelineSource:
        """Read ``FOLDER_OR_REPO[@REVISION]``; a folder's name may hold an @ of its own."""
        path, _, revision = text.rpartition("@")
        if not path or Path(text).is_dir():
            path, revision = text, ""
        if revision and Path(path).is_dir():
            raise InputError(f"{path} is a local folder, which has no revisions: leave @{revision} out")
        return cls(path, revision or None, module, trust_remote_code)

    @property
    def folder(self) -> Path | None:
        """The local folder, if it is one."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @cached_property
    def index_file(self) -> Path:
        """``model_index.json``; of a repository, a downloaded copy.

        Raises:
            BackendError: There is no such folder, or the hub does not give it.
        """
        if self.folder:
            return self.folder / "model_index.json"
        if self.path.startswith((".", "/", "~")):
            raise BackendError(f"there is no folder {self.path}", retryable=False)
        try:
            return Path(huggingface_hub.hf_hub_download(self.path, "model_index.json", revision=self.revision))
        except (OSError, ValueError) as error:
            raise BackendError(f"cannot load the image model {self.path}: {_line(error)}", retryable=False) from error

    @cached_property
    def index(self) -> dict[str, Any]:
        """What ``model_index.json`` says.

        Raises:
            BackendError: It is not there, or says nothing.
        """
        try:
            index: dict[str, Any] = json.loads(self.index_file.read_text(encoding="utf-8"))
            _ = index["_class_name"]
        except FileNotFoundError as error:
            raise BackendError(f"{self.path} holds no pipeline: it has no model_index.json", retryable=False) from error
        except (ValueError, KeyError, TypeError) as error:
            raise BackendError(f"{self.path}: model_index.json is damaged", retryable=False) from error
        return index

    @property
    def commit(self) -> str | None:
        """The commit that the revision stands for; None of a local folder."""
        return None if self.folder else self.index_file.parent.name  # downloads lie in snapshots/COMMIT

    @cached_property
    def pipeline_class(self) -> type:
        """The pipeline's class.

        Raises:
            InputError: It is code that comes with the weights, and that is not trusted.
            BackendError: It is not known here.
        """
        name = self.index["_class_name"]
        if isinstance(name, list):  # [file, class]: the pipeline's code comes with the weights
            return self._remote_class(*name)
        found = getattr(importlib.import_module(self.module), name, None)
        if not inspect.isclass(found) or not hasattr(found, "from_pretrained"):
            import diffusers

            raise BackendError(
                f"{self.path} is for the pipeline {name}, which diffusers {diffusers.__version__} does not have; "
                "try 'pip install -U diffusers'",
                retryable=False,
            )
        return found

    def _remote_class(self, file: str, name: str) -> type:
        from diffusers.utils.dynamic_modules_utils import get_class_from_dynamic_module

        if not self.trust_remote_code:
            raise InputError(
                f"{self.path} brings code of its own ({file}.py); read it, and if you trust it set trust_remote_code"
            )
        try:
            found: type = get_class_from_dynamic_module(
                self.path, module_file=f"{file}.py", class_name=name, revision=self.commit, trust_remote_code=True
            )
        except (OSError, ValueError, AttributeError, ImportError) as error:
            raise BackendError(f"cannot load the code of {self.path}: {_line(error)}", retryable=False) from error
        return found

    @property
    def denoiser(self) -> str | None:
        """The name of the component that does the work of each step."""
        return next((name for name in ("transformer", "unet") if self.components.get(name)), None)

    @property
    def components(self) -> dict[str, tuple[str, str]]:
        """Library and class of each component that is not left out."""
        return {
            name: (value[0], value[1])
            for name, value in self.index.items()
            if isinstance(value, list) and not name.startswith("_") and value[0]
        }


@cache
def accepts(kind: type[Any], argument: str) -> bool:
    """Whether the call of a pipeline class takes an argument by that name."""
    return argument in inspect.signature(kind.__call__).parameters


def load_pipeline(source: PipelineSource, options: GeneratorOptions, device: str, dtype: torch.dtype) -> Any:
    """Load a pipeline's weights and put them where they are to work.

    Raises:
        InputError: An option does not go with this pipeline or this machine.
        BackendError: The weights are not there, are damaged, or do not fit.
    """
    import diffusers
    from safetensors import SafetensorError

    check_packages(options)
    _refuse_pickles(source)
    remote = isinstance(source.index["_class_name"], list)
    kind: Any = diffusers.DiffusionPipeline if remote else source.pipeline_class
    try:
        with without_bars() if source.module != "diffusers" else nullcontext():
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
    except (
        OSError,
        ValueError,
        AttributeError,
        ImportError,
        TypeError,
        KeyError,
        RuntimeError,
        SafetensorError,
    ) as error:
        if is_out_of_memory(error):
            raise BackendError(
                f"{source.path} does not fit into the memory of {device}; try the options offload=model or "
                "quantization=bnb-4bit",
                retryable=False,
            ) from error
        raise BackendError(f"cannot load the image model {source.path}: {_line(error)}", retryable=False) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device ran out of memory; drivers say so in more ways than torch's own exception."""
    import torch

    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def check_packages(options: GeneratorOptions) -> None:
    """Be sure that what the quantization needs is there.

    Raises:
        InputError: It is not, or there is no such quantization.
    """
    wanted = options.quantization
    if wanted is None:
        return
    if wanted.endswith(".gguf"):
        if not Path(wanted).is_file():
            raise InputError(f"quantization: there is no file {wanted}")
        package = "gguf"
    elif wanted in _PACKAGES:
        package = _PACKAGES[wanted]
    else:
        raise InputError(f"unknown quantization {wanted!r}; give {', '.join(_PACKAGES)} or the path of a .gguf file")
    if importlib.util.find_spec(package) is None:
        raise InputError(
            f"quantization {wanted} needs the package {package}: pip install 'gems-graph[quantization]' (or {package})"
        )


def _refuse_pickles(source: PipelineSource) -> None:
    """Say clearly why weights are refused that are only there as pickles, which run code when they are loaded."""
    for name in source.components if source.folder else ():
        files = [path.suffix for path in Path(source.path, name).glob("*")]
        if ".safetensors" not in files and any(suffix in _PICKLES for suffix in files):
            raise InputError(
                f"{source.path}/{name} holds pickled weights only, which can run any code when they are loaded; "
                "convert them to safetensors, or take a copy of the model that has them"
            )


def _quantized(source: PipelineSource, options: GeneratorOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for the wanted quantization: of the denoiser and the largest text encoder."""
    wanted, denoiser = options.quantization, source.denoiser
    if wanted is None:
        return {}
    if denoiser is None:
        raise InputError(f"quantization: {source.pipeline_class.__name__} has no transformer that it could apply to")
    if wanted.endswith(".gguf"):
        return {denoiser: _from_gguf(source, denoiser, wanted, dtype)}
    import diffusers
    import torch

    if wanted.startswith("bnb") and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise InputError(f"quantization {wanted} needs a GPU; torchao-int8 and .gguf files work without")
    # Encoders are numbered by size: the T5 of Flux and Stable Diffusion 3 comes last.
    encoders = sorted(name for name in source.components if name.startswith("text_encoder"))
    mapping = {name: _config(wanted, source.components[name][0], dtype) for name in [denoiser, *encoders[-1:]]}
    return {"quantization_config": diffusers.PipelineQuantizationConfig(quant_mapping=mapping)}


def _config(wanted: str, library: str, dtype: torch.dtype) -> Any:
    """A quantization config of diffusers or of transformers, whichever the component is from."""
    configs = importlib.import_module("transformers" if library == "transformers" else "diffusers")
    if wanted == "bnb-4bit":
        return configs.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    if wanted == "bnb-8bit":
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
    vae, name = getattr(pipeline, "vae", None), type(pipeline).__name__
    for wanted, option, method in (
        (options.vae_tiling, "vae_tiling", "enable_tiling"),
        (options.vae_slicing, "vae_slicing", "enable_slicing"),
    ):
        if wanted:
            if not hasattr(vae, method):
                raise InputError(f"{option}: {name} has no VAE that can do it; leave it out")
            getattr(vae, method)()
    if options.compile:
        if source.denoiser is None:
            raise InputError(f"compile: {name} has no transformer or U-Net; leave it out")
        model = getattr(pipeline, source.denoiser)
        # One compiled block serves all its repetitions: a start of seconds, where the whole takes minutes.
        if getattr(model, "_repeated_blocks", None):
            model.compile_repeated_blocks()
        else:
            model.compile()


def _placed(pipeline: Any, options: GeneratorOptions, device: str) -> Any:
    import torch

    if options.offload == "none":
        return pipeline.to(device)
    if torch.device(device).type == "cpu":
        raise InputError(f"offload={options.offload} needs a GPU to offload from; leave it out")
    if options.offload == "model":
        if pipeline.model_cpu_offload_seq is None:
            raise InputError(f"offload=model: {type(pipeline).__name__} cannot do it; try offload=sequential")
        pipeline.enable_model_cpu_offload(device=device)
    else:
        pipeline.enable_sequential_cpu_offload(device=device)
    return pipeline


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
