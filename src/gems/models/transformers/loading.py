"""Finding and loading vision chat models of transformers: what a folder or repository holds, and will it run here."""

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
from gems.models.local_weights import without_bars
from gems.models.transformers.constrained import can_constrain
from gems.options import ChatOptions, GeneratorOptions
from gems.secrets import one_line

if TYPE_CHECKING:
    import torch

__all__ = ["ChatSource", "Engine", "describe", "load_engine"]

_GB: Final = 10**9
_BYTES_EACH: Final = {"bnb-8bit": 1.0, "bnb-4bit": 0.5}
"""Of a quantized parameter."""


@dataclass(frozen=True)
class ChatSource:
    """Where a model comes from, as in ``PipelineSource``. Nothing here loads weights."""

    path: str
    revision: str | None

    @property
    def folder(self) -> Path | None:
        """The local folder, if it is one."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @cached_property
    def config_file(self) -> Path:
        """``config.json``; of a repository, a downloaded copy."""
        if self.folder:
            file = self.folder / "config.json"
            if not file.is_file():
                raise InputError(f"{self.path} holds no chat model: it has no config.json")
            return file
        if self.path.startswith((".", "/", "~")):
            raise InputError(f"there is no folder {self.path}")
        try:
            return Path(huggingface_hub.hf_hub_download(self.path, "config.json", revision=self.revision))
        except (OSError, ValueError) as error:
            raise BackendError(f"cannot fetch the chat model {self.path}: {_line(error)}", retryable=False) from error

    @property
    def commit(self) -> str | None:
        """The commit that the revision stands for; None of a local folder."""
        return None if self.folder else self.config_file.parent.name  # downloads lie in snapshots/COMMIT

    @cached_property
    def config(self) -> Any:
        """The settings of a vision chat model that transformers knows without code from the repository."""
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as KINDS
        from transformers import AutoConfig

        _ = self.config_file
        try:
            config = AutoConfig.from_pretrained(self.path, revision=self.commit, trust_remote_code=False)
        except Exception as error:  # what settings may be wrong in, each model's class says with errors of its own
            raise InputError(f"transformers does not know the model in {self.path}: {_line(error)}") from error
        if type(config) not in KINDS:
            raise InputError(f"{self.path} is no vision chat model: it is a {config.model_type}")
        return config

    def processor(self) -> Any:
        """What turns messages and images into numbers."""
        from transformers import AutoProcessor
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
        from transformers.utils import is_torchvision_available

        auto: Any = AutoProcessor
        if type(self.config) in PROCESSOR_MAPPING and not is_torchvision_available():
            known: Any = PROCESSOR_MAPPING[type(self.config)]
            auto = _without_video(known) if "video_processor" in known.get_attributes() else auto
        try:
            found = auto.from_pretrained(self.path, revision=self.commit, trust_remote_code=False)
        except Exception as error:  # its files are wrong in as many ways as there are tokenizers
            raise BackendError(f"cannot load the processor of {self.path}: {_line(error)}", retryable=False) from error
        found.chat_template = found.chat_template or found.tokenizer.chat_template
        if not found.chat_template:
            raise InputError(f"{self.path} is no vision chat model: it has no chat template")
        return found

    def parameters(self) -> int | None:
        """How many numbers the weights are, from the headers of their files; None: nobody knows."""
        folder = self.config_file.parent
        try:
            files = _weights(folder)
            if files and (self.folder or all(file.is_file() for file in files)):
                return sum(map(_parameters, files))
        except (OSError, ValueError, SafetensorError) as error:
            raise BackendError(f"the weights of {self.path} are not whole: {_line(error)}", retryable=False) from error
        if self.folder:
            raise BackendError(
                f"{self.path} holds no .safetensors file; pickled weights, which can run any code, are not loaded",
                retryable=False,
            )
        try:
            told = huggingface_hub.get_safetensors_metadata(self.path, revision=self.commit)
        except Exception:  # no network, no safetensors, a server that fails in one of many ways
            return None
        return sum(told.parameter_count.values())


def _weights(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return list(folder.glob("*.safetensors"))
    return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _parameters(file: Path) -> int:
    with safe_open(file, "pt") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _without_video(kind: Any) -> Any:
    """A processor's class that takes no video processor.

    Video processors need torchvision, and the processors of Qwen's models insist on having one, though images need it
    nowhere. A processor's parts are the arguments of its ``__init__``: without that argument, nothing looks for one.
    """

    def __init__(  # noqa: N807
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
    ) -> None:
        kind.__init__(self, image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template, **kwargs)

    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})


def describe(source: ChatSource, options: ChatOptions) -> str:
    """The model's class, its device and number type, and the size of its weights beside the memory that is free."""
    import transformers

    kind = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(source.config)]
    device, dtype = _placement(options)
    source.processor()
    parts = [f"{kind.__name__} of transformers {transformers.__version__}", f"{device} with {str(dtype)[6:]}"]
    parameters = source.parameters()
    if parameters is None:
        parts.append("the size of its weights is not known: the hub does not answer")
    else:
        needed = parameters * _BYTES_EACH.get(options.quantization or "", dtype.itemsize)
        free = free_memory(device)
        if needed > free:
            sizes = f"{needed / _GB:.1f} GB for its weights alone and {device} has {free / _GB:.1f} GB free"
            raise BackendError(
                f"{source.path} needs {sizes}; try quantization=bnb-4bit, or a smaller model", retryable=False
            )
        parts.append(f"weights {needed / _GB:.2f} GB, {free / _GB:.1f} GB free")
    if not can_constrain():
        parts.append("answers are not held to their schema: pip install llguidance")
    return "; ".join(parts)


def _placement(options: ChatOptions) -> tuple[str, torch.dtype]:
    devices = pick_devices(options.device)
    if options.device and len(devices) > 1:
        raise InputError(f"a chat model in this process runs on one device, not on {options.device}")
    if options.quantization:
        check_packages(GeneratorOptions(quantization=options.quantization))
        if devices[0] == "cpu":
            raise InputError(f"quantization {options.quantization} needs a GPU; leave it out")
    return devices[0], pick_dtype(options.dtype, devices[0])


@dataclass
class Engine:
    """A loaded model. Its ``model`` and ``processor`` are transformers' own."""

    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        """Part of the processor."""
        return self.processor.tokenizer

    @property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        return list(self.model.generation_config.eos_token_id)

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its answer together."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @cached_property
    def vocabulary(self) -> Any:
        """The tokenizer as llguidance reads it, which takes it a second; with the embedding's spare rows."""
        import llguidance.hf

        rows = self.model.config.get_text_config().vocab_size
        return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=rows, eos_token=self.ends)

    def decode(self, tokens: list[int]) -> str:
        """The text of some tokens, control tokens included."""
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def load_engine(source: ChatSource, options: ChatOptions) -> Engine:
    """Load a model and put it where it is to work; see ``TransformersChatModel.load``."""
    from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, GenerationConfig

    _ = source.config
    (device, dtype), wanted = _placement(options), options.quantization
    processor = source.processor()
    try:
        with without_bars():
            model, report = AutoModelForImageTextToText.from_pretrained(
                source.path,
                revision=source.commit,
                dtype=dtype,
                device_map={"": device},
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                quantization_config=wanted
                and BitsAndBytesConfig(
                    load_in_8bit=wanted == "bnb-8bit",
                    load_in_4bit=wanted == "bnb-4bit",
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_compute_dtype=dtype,
                ),
            )
    except Exception as error:  # no room for them, or they are wrong in as many ways as there are models
        raise BackendError(f"cannot load the chat model {source.path}: {_line(error)}", retryable=False) from error
    if lost := report["missing_keys"]:  # transformers makes up what is missing, and only logs it
        raise BackendError(f"{source.path}: its weights are not complete, {min(lost)} is missing", retryable=False)
    # The model card's way to sample (a temperature, a penalty on repetition) is none of a structured answer.
    told = model.generation_config.eos_token_id
    ends = {*(told if isinstance(told, list) else [told]), processor.tokenizer.eos_token_id} - {None}
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=min(ends))
    return Engine(model.eval(), processor)


def _line(error: BaseException) -> str:
    return one_line(error) or type(error).__name__
