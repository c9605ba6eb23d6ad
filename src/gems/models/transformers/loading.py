"""Find and load vision chat models of transformers: what a folder or repository contains, and whether it runs here."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import huggingface_hub
from safetensors import SafetensorError, safe_open

from gems.errors import BackendError, InputError
from gems.models.devices import free_memory, pick_devices, pick_dtype
from gems.models.diffusers.loading import check_packages
from gems.models.local_weights import refuse_kernels, without_bars
from gems.models.processors import without_video
from gems.models.transformers.constrained import can_constrain
from gems.options import ChatOptions, GeneratorOptions
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["ChatSource", "Engine", "describe", "load_engine"]

_GB: Final = 10**9
_BYTES_EACH: Final = {"bnb-8bit": 1.0, "bnb-4bit": 0.5}
"""Bytes per parameter, by quantization."""


@dataclass(frozen=True)
class ChatSource:
    """Where a model comes from, like ``PipelineSource``. Nothing here loads weights."""

    path: str
    revision: str | None
    may_download: bool = True

    @property
    def folder(self) -> Path | None:
        """The local folder; None for a repository."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @cached_property
    def config_file(self) -> Path:
        """The path of ``config.json``; for a repository, of a downloaded copy."""
        if self.folder:
            file = self.folder / "config.json"
            if not file.is_file():
                raise InputError(f"{self.path} contains no chat model: config.json is missing")
            return file
        if self.path.startswith((".", "/", "~")):
            raise InputError(f"there is no folder {self.path}")
        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    self.path, "config.json", revision=self.revision, local_files_only=not self.may_download
                )
            )
        except (OSError, ValueError) as error:
            raise BackendError(f"cannot fetch the chat model {self.path}: {_line(error)}", retryable=False) from error

    @property
    def commit(self) -> str | None:
        """The commit that the revision refers to; None for a local folder."""
        return None if self.folder else self.config_file.parent.name  # downloads are in snapshots/COMMIT

    @property
    def origin(self) -> dict[str, Any]:
        """The arguments of every ``from_pretrained``."""
        return {"revision": self.commit, "trust_remote_code": False, "local_files_only": not self.may_download}

    @cached_property
    def config(self) -> Any:
        """The model's configuration. It must be a vision chat model that needs no code from the repository."""
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as KINDS
        from transformers import AutoConfig

        _ = self.config_file
        try:
            config = AutoConfig.from_pretrained(self.path, **self.origin)
        except Exception as error:  # each model's class reports invalid settings with errors of its own
            raise InputError(f"transformers does not know the model in {self.path}: {_line(error)}") from error
        if type(config) not in KINDS:
            raise InputError(f"{self.path} is not a vision chat model: its type is {config.model_type}")
        refuse_kernels(config, self.path)
        return config

    def processor(self) -> Any:
        """The processor, which turns messages and images into the model's inputs."""
        from transformers import AutoProcessor
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
        from transformers.utils import is_torchvision_available

        auto: Any = AutoProcessor
        if type(self.config) in PROCESSOR_MAPPING and not is_torchvision_available():
            processor_class: Any = PROCESSOR_MAPPING[type(self.config)]
            auto = without_video(processor_class) if "video_processor" in processor_class.get_attributes() else auto
        try:
            processor = auto.from_pretrained(self.path, **self.origin)
        except Exception as error:  # every tokenizer has errors of its own
            raise BackendError(f"cannot load the processor of {self.path}: {_line(error)}", retryable=False) from error
        processor.chat_template = processor.chat_template or processor.tokenizer.chat_template
        if not processor.chat_template:
            raise InputError(f"{self.path} is not a vision chat model: it has no chat template")
        return processor

    def parameters(self) -> int | None:
        """The number of parameters, from the headers of the weight files; None if it is unknown."""
        folder = self.config_file.parent
        try:
            files = _weights(folder)
            if files and (self.folder or all(file.is_file() for file in files)):
                return sum(map(_parameters, files))
        except OSError as error:
            raise BackendError(f"cannot read the weights of {self.path}: {_line(error)}", retryable=False) from error
        if self.folder:
            raise BackendError(
                f"{self.path} contains no .safetensors file; pickled weights can run any code and are not loaded",
                retryable=False,
            )
        if not self.may_download:
            return None
        try:
            metadata = huggingface_hub.get_safetensors_metadata(self.path, revision=self.commit)
        except Exception:  # no network, no safetensors, or any failure of the server
            return None
        return sum(metadata.parameter_count.values())


def _weights(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return list(folder.glob("*.safetensors"))
    try:
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(index) from error


def _parameters(file: Path) -> int:
    try:
        with safe_open(file, "pt") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise _damaged(file) from error


def _damaged(file: Path) -> BackendError:
    return BackendError(f"{file}: the weights are damaged: download it again", retryable=False)


def describe(source: ChatSource, options: ChatOptions) -> str:
    """Describe a model: its class, device and number type, and the size of its weights next to the free memory."""
    import transformers

    model_class = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(source.config)]
    device, dtype = placement(options)
    source.processor()
    parts = [f"{model_class.__name__} of transformers {transformers.__version__}", f"{device} with {str(dtype)[6:]}"]
    parameters = source.parameters()
    if parameters is None:
        parts.append("weights of unknown size: the hub does not answer")
    else:
        weight_bytes = parameters * _BYTES_EACH.get(options.quantization or "", dtype.itemsize)
        free_bytes = free_memory(device)
        if weight_bytes > free_bytes:
            raise BackendError(
                f"{source.path} needs {weight_bytes / _GB:.1f} GB for its weights alone, but {device} has "
                f"{free_bytes / _GB:.1f} GB free; try quantization=bnb-4bit or a smaller model",
                retryable=False,
            )
        parts.append(f"weights {weight_bytes / _GB:.2f} GB, {free_bytes / _GB:.1f} GB free")
    if not can_constrain():
        parts.append("answers are not constrained to their schema: pip install llguidance enables it")
    return "; ".join(parts)


def placement(options: ChatOptions) -> tuple[str, torch.dtype]:
    """The device and the number type of the weights.

    Raises:
        InputError: This machine does not support an option.
    """
    devices = pick_devices(options.device)
    if options.device and len(devices) > 1:
        raise InputError(f"a chat model in this process runs on one device, not on {options.device}")
    if options.quantization:
        check_packages(GeneratorOptions(quantization=options.quantization))
        if devices[0] == "cpu":
            raise InputError(f"quantization {options.quantization} needs a GPU; remove the option")
    return devices[0], pick_dtype(options.dtype, devices[0])


@dataclass
class Engine:
    """A loaded model. Its ``model`` and ``processor`` are transformers' own."""

    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self.processor.tokenizer

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return list(self.model.generation_config.eos_token_id)

    @property
    def longest(self) -> int:
        """The most tokens that a prompt and its answer may have together."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @cached_property
    def vocabulary(self) -> Any:
        """The tokenizer in llguidance's form, with the embedding's spare rows. It takes a second to build."""
        import llguidance.hf

        rows = self.model.config.get_text_config().vocab_size
        return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=rows, eos_token=self.ends)

    def decode(self, tokens: list[int]) -> str:
        """The text of some tokens, including control tokens."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def load_engine(source: ChatSource, options: ChatOptions) -> Engine:
    """Load a model onto its device; see ``TransformersChatModel.load``."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, GenerationConfig

    _ = source.config
    (device, dtype), quantization = placement(options), options.quantization
    processor = source.processor()
    try:
        with without_bars():
            model, report = AutoModelForImageTextToText.from_pretrained(
                source.path,
                **source.origin,
                dtype=dtype,
                device_map={"": device},
                use_safetensors=True,
                output_loading_info=True,
                quantization_config=quantization
                and BitsAndBytesConfig(
                    load_in_8bit=quantization == "bnb-8bit",
                    load_in_4bit=quantization == "bnb-4bit",
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_compute_dtype=dtype,
                ),
            )
    except Exception as error:  # out of memory, or damaged: every model has errors of its own
        raise BackendError(f"cannot load the chat model {source.path}: {_line(error)}", retryable=False) from error
    if missing_keys := report["missing_keys"]:  # transformers initialises them at random and only logs it
        raise BackendError(f"{source.path}: incomplete weights, {min(missing_keys)} is missing", retryable=False)
    # The model card's sampling (a temperature, a penalty on repetition) does not suit structured answers.
    eos = model.generation_config.eos_token_id
    ends = {*(eos if isinstance(eos, list) else [eos]), processor.tokenizer.eos_token_id} - {None}
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=min(ends))
    return Engine(model.eval(), processor)


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
