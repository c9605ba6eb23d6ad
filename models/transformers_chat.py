"""Vision chat models in this process: the Qwen3-VL class of models, through transformers, behind LangChain's interface.

Answers are greedy unless a temperature is set. An answer that has to be JSON, or a call of a tool, is held to its
schema while it is written if the package llguidance is installed; else the schema is only asked for in words.
"""

from __future__ import annotations

import base64
import binascii
import gc
import importlib.util
import json
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, InvalidToolCall, ToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from PIL import Image
from pydantic import BaseModel, Field, PrivateAttr, ValidationError

from gems.graph.errors import BackendError, GemsError, InputError
from gems.graph.options import ChatOptions, GeneratorOptions
from gems.models.devices import free_memory, pick_devices, pick_dtype
from gems.models.diffusers_loading import PipelineSource, check_packages, is_out_of_memory
from gems.models.loading import without_bars
from gems.models.pocket.weights import folder_fingerprint
from gems.models.remote import MAX_BYTES, decode_image

if TYPE_CHECKING:
    import torch

__all__ = ["TransformersChatModel", "init_transformers_chat"]

_MAX_TOKENS: Final = 1024
"""New tokens of one answer, unless told otherwise."""

_PICKLES: Final = (".bin", ".pt", ".pth")
_GB: Final = 10**9
_BYTES_EACH: Final = {"bnb-8bit": 1.0, "bnb-4bit": 0.5}
"""Of a quantized parameter."""

_ROLES: Final = {"system": "system", "human": "user", "ai": "assistant", "tool": "tool"}
"""Kinds of LangChain messages, and what chat templates call them."""

_INDIFFERENT: Final = frozenset({"strict", "parallel_tool_calls"})
"""Arguments that LangChain's agents pass to any model, and that change nothing here."""

_JSON_STYLE: Final = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "lenient": True}
"""JSON on one line: where any white space is allowed, a weak model may write nothing else until its tokens are up."""

_DATA_URL: Final = re.compile(r"\Adata:[^,]*;base64,", re.IGNORECASE)

Tools: TypeAlias = Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool]
ToolChoice: TypeAlias = str | bool | dict[str, Any] | None


def init_transformers_chat(source: str, name: str, options: ChatOptions) -> TransformersChatModel:
    """The chat model in ``FOLDER_OR_REPO[@REVISION]``; nothing is loaded yet.

    Raises:
        InputError: A local folder is given with a revision.
    """
    found = PipelineSource.parse(source)
    return TransformersChatModel(path=found.path, revision=found.revision, options=options, name=name)


class TransformersChatModel(BaseChatModel):
    """A vision chat model of transformers, loaded at its first use, that writes one answer at a time.

    Safetensors only, and no code from the repository. Text in messages that looks like a control token of the chat
    template stays text. A model that would think before it answers does not where its answer is held to a schema.

    Attributes:
        path: A local folder, or a repository's id.
        revision: A branch, tag or commit of the repository; None is its main branch.
        options: How it is run. The timeout is for one answer, loading and waiting for other answers left out.
        logprobs: Tell the log-probability of each token, in OpenAI's form, unless a call says otherwise.
        top_logprobs: With how many alternatives each.
    """

    path: str
    revision: str | None = None
    options: ChatOptions = Field(default_factory=ChatOptions)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)

    _loading: Any = PrivateAttr(default_factory=threading.Lock)
    _answering: Any = PrivateAttr(default_factory=threading.Lock)
    _loaded: _Engine | None = PrivateAttr(default=None)

    # --- what it is ---------------------------------------------------------------------------------------------------

    @property
    def _llm_type(self) -> str:
        return "gems-transformers"

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        return {"path": self.path, "revision": self.revision, "options": self.options.model_dump(mode="json")}

    @property
    def _label(self) -> str:
        return self.name or self.path

    @cached_property
    def _source(self) -> _Source:
        return _Source(self.path, self.revision)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of a local folder's weights and settings; a repository's id and commit otherwise.

        Raises:
            InputError: There is no such model.
            BackendError: The hub does not answer.
        """
        folder = self._source.folder
        return folder_fingerprint(folder) if folder else f"{self.path}@{self._source.commit}"

    def load(self) -> None:
        """Load the weights now, rather than at the first call.

        Raises:
            InputError: This is no vision chat model, or an option does not go with this machine.
            BackendError: The weights are not there, are damaged, or do not fit.
        """
        self._engine()

    def _engine(self) -> _Engine:
        with self._loading:
            if self._loaded is None:
                self._loaded = _load(self._source, self.options)
            return self._loaded

    def check(self) -> str:
        """The model's class, its device and number type, and the size of its weights beside the memory that is free.

        Raises:
            InputError: This is no vision chat model, or an option does not go with this machine.
            BackendError: Weights or packages are not there, or the weights do not fit.
        """
        import transformers

        kind, (device, dtype) = self._source.kind, _placement(self.options)
        self._source.processor()
        parts = [f"{kind.__name__} of transformers {transformers.__version__}", f"{device} with {str(dtype)[6:]}"]
        parameters = self._source.parameters()
        if parameters is None:
            parts.append("the size of its weights is not known: the hub does not answer")
        else:
            needed = parameters * _BYTES_EACH.get(self.options.quantization or "", dtype.itemsize)
            free = free_memory(device)
            if needed > free and self._loaded is None:
                raise BackendError(
                    f"{self.path} needs {needed / _GB:.1f} GB for its weights alone and {device} has "
                    f"{free / _GB:.1f} GB free; try the option quantization=bnb-4bit, or a smaller model",
                    retryable=False,
                )
            parts.append(f"weights {needed / _GB:.2f} GB, {free / _GB:.1f} GB free")
        if not _can_constrain():
            parts.append("answers are not held to their schema: pip install llguidance")
        return "; ".join(parts)

    # --- what can be asked of it --------------------------------------------------------------------------------------

    def bind_tools(
        self, tools: Tools, *, tool_choice: ToolChoice = None, **kwargs: Any
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools, as for any chat model.

        Args:
            tools: In any form that LangChain knows.
            tool_choice: ``"auto"`` or None; ``"none"``; ``"any"``, ``"required"`` or True; or the name of the tool that
                has to be called.
            kwargs: Of the call, such as ``logprobs``.
        """
        offered = [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=offered, tool_choice=_choice(tool_choice), **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """Ask for answers that fit a schema.

        Args:
            schema: A pydantic class, or a JSON schema whose answers are dicts that are not checked again.
            include_raw: Answer with ``raw``, ``parsed`` and ``parsing_error`` rather than raise.
            method: Hold the answer to the schema, offer the schema as a tool, or hold the answer to any JSON object.
            kwargs: Of the call, such as ``logprobs``.

        Raises, when called:
            OutputParserException: The answer does not fit, and ``include_raw`` is not set.
        """
        form = schema if isinstance(schema, type) and issubclass(schema, BaseModel) else None
        if form is None and not isinstance(schema, dict):
            raise TypeError("the schema has to be a pydantic class or a JSON schema")
        json_schema = form.model_json_schema() if form else schema
        assert isinstance(json_schema, dict)
        asked: Runnable[LanguageModelInput, AIMessage]
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]
            asked = self.bind_tools([schema], tool_choice=name, **kwargs)
        elif method == "json_mode":
            asked = self.bind(response_format={"type": "json_object"}, **kwargs)
        elif method == "json_schema":
            named = {"name": str(json_schema.get("title", "answer")), "schema": json_schema}
            asked = self.bind(response_format={"type": "json_schema", "json_schema": named}, **kwargs)
        else:
            raise ValueError(f"unknown method {method!r}; give json_schema, function_calling or json_mode")

        def read(message: AIMessage) -> Any:
            try:
                parsed, fault = _parsed(message, form, as_tool=method == "function_calling"), None
            except OutputParserException as error:
                if not include_raw:
                    raise
                parsed, fault = None, error
            return {"raw": message, "parsed": parsed, "parsing_error": fault} if include_raw else parsed

        return asked | RunnableLambda(read)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        tool_choice: ToolChoice = None,
        response_format: dict[str, Any] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """See ``BaseChatModel._generate``.

        Raises:
            InputError: A message, or a choice among the tools, makes no sense to this model.
            BackendError: It ran out of time or memory, or failed.
            NotImplementedError: Its template knows no tools, or its schema cannot be held to.
            TypeError: An argument is unknown.
        """
        if unknown := kwargs.keys() - _INDIFFERENT:
            raise TypeError(f"{self._label} knows no argument {', '.join(sorted(unknown))}")
        form = _Form.of(tools, tool_choice, response_format)
        turns = _with_words([_turn(message) for message in messages], form.words())
        engine = self._engine()
        measured = self.logprobs if logprobs is None else logprobs
        top = (self.top_logprobs if top_logprobs is None else top_logprobs) or 0
        with self._answering:
            try:
                answer = _answer(engine, turns, form, stop or [], self.options, top if measured else None)
            except _TimeUpError as error:
                raise BackendError(f"{self._label}: {error}", retryable=False) from None
            except RuntimeError as error:
                if isinstance(error, (GemsError, NotImplementedError)):
                    raise
                if not is_out_of_memory(error):
                    raise BackendError(f"{self._label} failed: {_line(error)}", retryable=False) from error
            else:
                return self._result(answer, form)
            # Only here, when the error is gone and has let go of the tensors, is there anything to set free.
            _set_free()
            raise BackendError(f"{self._label}: {engine.model.device} ran out of memory for this answer")

    def _result(self, answer: _Answer, form: _Form) -> ChatResult:
        reading = _read(answer.text, in_thought=answer.in_thought, may_call=bool(form.tools))
        told: dict[str, Any] = {
            "finish_reason": "length" if answer.cut else "stop",
            "model_name": self._label,
        }
        if answer.logprobs is not None:
            told["logprobs"] = {"content": answer.logprobs}
        message = AIMessage(
            content=reading.content,
            additional_kwargs={"reasoning_content": reading.reasoning} if reading.reasoning else {},
            tool_calls=reading.calls,
            invalid_tool_calls=reading.invalid,
            usage_metadata=UsageMetadata(
                input_tokens=answer.asked, output_tokens=answer.made, total_tokens=answer.asked + answer.made
            ),
            response_metadata=told,
        )
        return ChatResult(generations=[ChatGeneration(message=message, generation_info=dict(told))])


# --- finding and loading ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where a model comes from. Nothing here loads weights."""

    path: str
    revision: str | None

    @property
    def folder(self) -> Path | None:
        """The local folder, if it is one."""
        return Path(self.path) if Path(self.path).is_dir() else None

    @cached_property
    def config_file(self) -> Path:
        """``config.json``; of a repository, a downloaded copy.

        Raises:
            InputError: There is no such folder or repository, or it holds no model.
            BackendError: The hub does not answer.
        """
        if self.folder:
            file = self.folder / "config.json"
            if not file.is_file():
                raise InputError(f"{self.path} holds no chat model: it has no config.json")
            return file
        if self.path.startswith((".", "/", "~")):
            raise InputError(f"there is no folder {self.path}")
        try:
            return Path(huggingface_hub.hf_hub_download(self.path, "config.json", revision=self.revision))
        except LocalEntryNotFoundError as error:
            raise BackendError(
                f"there is no folder {self.path}, nor an earlier download, and the hub does not answer", retryable=False
            ) from error
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError) as error:
            raise InputError(f"the hub has no chat model {self.path}: {_line(error)}") from error
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise BackendError(f"cannot fetch the chat model {self.path}: {_line(error)}", retryable=False) from error

    @property
    def commit(self) -> str | None:
        """The commit that the revision stands for; None of a local folder."""
        return None if self.folder else self.config_file.parent.name  # downloads lie in snapshots/COMMIT

    @cached_property
    def config(self) -> Any:
        """The model's settings.

        Raises:
            InputError: They are no model's that transformers knows without code from the repository.
            BackendError: They are damaged.
        """
        from transformers import AutoConfig

        text = self.config_file.read_bytes()
        try:
            json.loads(text)
        except ValueError as error:
            raise BackendError(f"{self.path}: config.json is damaged", retryable=False) from error
        try:
            return AutoConfig.from_pretrained(self.path, revision=self.commit, trust_remote_code=False)
        except Exception as error:  # what settings may be wrong in, each model's class says with errors of its own
            raise InputError(f"transformers does not know the model in {self.path}: {_line(error)}") from error

    @property
    def kind(self) -> type:
        """The model's class.

        Raises:
            InputError: It is no vision chat model.
        """
        from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING as KINDS

        config = self.config
        if type(config) not in KINDS:
            raise InputError(f"{self.path} is no vision chat model: it is a {config.model_type}")
        found: type = KINDS[type(config)]
        return found

    def processor(self) -> Any:
        """What turns messages and images into numbers.

        Raises:
            InputError: It does not see, or has no chat template.
            BackendError: Its files cannot be read.
        """
        from transformers import AutoProcessor
        from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
        from transformers.utils import is_torchvision_available

        _ = self.kind  # a clearer word about what is no vision chat model
        auto: Any = AutoProcessor
        if type(self.config) in PROCESSOR_MAPPING and not is_torchvision_available():
            known: Any = PROCESSOR_MAPPING[type(self.config)]
            auto = _without_video(known) if "video_processor" in known.get_attributes() else auto
        try:
            found = auto.from_pretrained(self.path, revision=self.commit, trust_remote_code=False)
        except (
            Exception
        ) as error:  # a tokenizer's and an image processor's files are wrong in as many ways as there are
            raise BackendError(f"cannot load the processor of {self.path}: {_line(error)}", retryable=False) from error
        if getattr(found, "image_processor", None) is None or getattr(found, "tokenizer", None) is None:
            raise InputError(f"{self.path} is no vision chat model: it has no image processor")
        found.chat_template = found.chat_template or found.tokenizer.chat_template
        if not found.chat_template:
            raise InputError(f"{self.path} is no vision chat model: it has no chat template")
        return found

    def weights(self) -> list[Path] | None:
        """The files of weights, each as long as its header says; None: they are not here yet.

        Raises:
            BackendError: Some of them are missing, damaged, or pickles, which run code when they are loaded.
        """
        folder = self.config_file.parent
        index = folder / "model.safetensors.index.json"
        try:
            if index.is_file():
                names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            else:
                names = {file.name for file in folder.glob("*.safetensors")}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackendError(f"{self.path}: {index.name} is damaged", retryable=False) from error
        if names and all((folder / name).is_file() for name in names):
            return [folder / name for name in sorted(names)]
        if not self.folder:
            return None
        if names:
            lost = min(name for name in names if not (folder / name).is_file())
            raise BackendError(f"{self.path}: its weights are not complete, {lost} is missing", retryable=False)
        if any(file.suffix in _PICKLES for file in folder.iterdir()):
            raise BackendError(
                f"{self.path} holds pickled weights only, which can run any code when they are loaded; convert them to "
                "safetensors, or take a copy of the model that has them",
                retryable=False,
            )
        raise BackendError(f"{self.path} holds no weights: there is no .safetensors file", retryable=False)

    def parameters(self) -> int | None:
        """How many numbers the weights are; None: nobody knows.

        Raises:
            BackendError: See ``weights``.
        """
        files = self.weights()
        if files is not None:
            return sum(map(_parameters, files))
        try:
            told = huggingface_hub.get_safetensors_metadata(self.path, revision=self.commit)
        except Exception:  # no network, no safetensors, a server that fails in one of many ways
            return None
        return sum(told.parameter_count.values())


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


def _parameters(file: Path) -> int:
    """How many numbers a safetensors file holds (https://github.com/huggingface/safetensors#format).

    Raises:
        BackendError: It is torn or no such file.
    """
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size if size < file.stat().st_size else 0))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        whole = 8 + size + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        if whole == file.stat().st_size:
            return sum(math.prod(tensor["shape"]) for tensor in tensors)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise BackendError(f"{file} is damaged: fetch it again", retryable=False) from error
    raise BackendError(f"{file} is not whole: fetch it again", retryable=False)


def _placement(options: ChatOptions) -> tuple[str, torch.dtype]:
    """Device and number type.

    Raises:
        InputError: They are not here, or the quantization cannot be done.
    """
    import torch

    devices = pick_devices(options.device)
    if options.device and len(devices) > 1:
        raise InputError(
            f"a chat model in this process runs on one device, not on {options.device}; serve a larger one, with vLLM"
        )
    if options.quantization:
        check_packages(GeneratorOptions(quantization=options.quantization))
        if torch.device(devices[0]).type == "cpu":
            raise InputError(f"quantization {options.quantization} needs a GPU; leave it out")
    return devices[0], pick_dtype(options.dtype, devices[0])


@dataclass
class _Engine:
    """A loaded model. Its ``model`` and ``processor`` are transformers' own."""

    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @cached_property
    def ends(self) -> list[int]:
        """The tokens that end an answer."""
        told = self.model.generation_config.eos_token_id
        ends = told if isinstance(told, list) else [told]
        return [token for token in [*ends, self.tokenizer.eos_token_id] if token is not None]

    @cached_property
    def longest(self) -> int:
        """Tokens of a prompt and its answer together."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 2**31

    @cached_property
    def vocabulary(self) -> Any:
        """The tokenizer as llguidance reads it, which takes it a second; with the embedding's spare rows."""
        import llguidance.hf

        rows = self.model.config.get_text_config().vocab_size
        return llguidance.hf.from_tokenizer(self.tokenizer, n_vocab=rows, eos_token=self.ends)


def _load(source: _Source, options: ChatOptions) -> _Engine:
    """Load a model and put it where it is to work.

    Raises:
        InputError: It is no vision chat model, or an option does not go with this machine.
        BackendError: The weights are not there, are damaged, or do not fit.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, GenerationConfig

    _ = source.kind
    device, dtype = _placement(options)
    processor = source.processor()
    source.weights()
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
                **_quantized(options, dtype),
            )
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
                f"{source.path} does not fit into the memory of {device}; try the option quantization=bnb-4bit, or a "
                "smaller model",
                retryable=False,
            ) from error
        raise BackendError(f"cannot load the chat model {source.path}: {_line(error)}", retryable=False) from error
    if lost := report["missing_keys"]:  # transformers makes up what is missing, and only logs it
        raise BackendError(
            f"{source.path}: its weights are not complete, {min(lost)} and {len(lost) - 1} more are missing",
            retryable=False,
        )
    # The model card's way to sample (a temperature, a penalty on repetition) is none of a structured answer.
    told = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=told.bos_token_id,
        eos_token_id=told.eos_token_id or processor.tokenizer.eos_token_id,
        pad_token_id=told.pad_token_id if told.pad_token_id is not None else processor.tokenizer.pad_token_id,
    )
    return _Engine(model.eval(), processor)


def _quantized(options: ChatOptions, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for the wanted quantization."""
    from transformers import BitsAndBytesConfig

    if options.quantization is None:
        return {}
    if options.quantization == "bnb-8bit":
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return {"quantization_config": config}


def _set_free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- messages ---------------------------------------------------------------------------------------------------------


def _turn(message: BaseMessage) -> dict[str, Any]:
    """A message as chat templates take it: a role, and a list of texts and images.

    Raises:
        InputError: It holds something that cannot be shown to the model.
    """
    if message.type not in _ROLES:
        raise InputError(f"a message of type {message.type!r} cannot be shown to a chat model")
    blocks = [{"type": "text", "text": message.content}] if isinstance(message.content, str) else message.content_blocks
    said = [part for block in blocks if (part := _part(block, of_model=message.type == "ai")) is not None]
    turn: dict[str, Any] = {"role": _ROLES[message.type], "content": said}
    if isinstance(message, AIMessage) and message.tool_calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call["name"], "arguments": call["args"]}}
            for call in message.tool_calls
        ]
    if message.type == "tool" and message.name:
        turn["name"] = message.name
    return turn


def _part(block: Mapping[str, Any], *, of_model: bool) -> dict[str, Any] | None:
    """One content block; None: it is not shown. Of what a model said itself, only the text is."""
    if block["type"] == "text":
        return {"type": "text", "text": block["text"]} if block["text"] else None
    if of_model:
        return None
    if block["type"] != "image":
        raise InputError(f"content of type {block['type']!r} cannot be shown to a vision chat model")
    return {"type": "image", "image": _image(block)}


def _image(block: Mapping[str, Any]) -> Image.Image:
    """The image in a block, RGB.

    Raises:
        InputError: It is not in the message itself, is too large, or is no image.
    """
    encoded = block.get("base64") or _DATA_URL.sub("", block.get("url", ""))
    if not encoded or encoded == block.get("url"):
        raise InputError("an image has to be in its message, as base64 or a data URL: no address is fetched")
    if len(encoded) > MAX_BYTES * 4 / 3 + 4:
        raise InputError(f"an image in the messages has more than {MAX_BYTES >> 20} MB")
    try:
        return decode_image(base64.b64decode(encoded, validate=True), "the message")
    except (BackendError, binascii.Error, ValueError) as error:
        raise InputError(f"an image in the messages cannot be read: {error}") from error


def _with_words(turns: list[dict[str, Any]], words: str) -> list[dict[str, Any]]:
    """The conversation with some words at its end, said by the user."""
    if not words:
        return turns
    text = {"type": "text", "text": words}
    if not turns or turns[-1]["role"] != "user":
        return [*turns, {"role": "user", "content": [text]}]
    last = turns[-1]
    return [*turns[:-1], last | {"content": [*last["content"], text | {"text": f"\n\n{words}"}]}]


# --- the form of an answer --------------------------------------------------------------------------------------------


def _can_constrain() -> bool:
    return importlib.util.find_spec("llguidance") is not None


def _choice(choice: ToolChoice) -> str:
    """``"auto"``, ``"none"``, ``"any"`` or the name of a tool, from any way to say so."""
    if isinstance(choice, dict):
        return str(choice.get("function", choice).get("name"))
    if choice is True or choice == "required":
        return "any"
    return choice or "auto"


@dataclass(frozen=True)
class _Form:
    """What an answer has to look like.

    Attributes:
        tools: Those that are offered.
        callable: Those of them that may be called.
        forced: Whether one has to be.
        schema: Of the JSON that the answer has to be, if it calls no tool.
    """

    tools: tuple[dict[str, Any], ...] = ()
    callable: tuple[dict[str, Any], ...] = ()
    forced: bool = False
    schema: dict[str, Any] | None = None

    @classmethod
    def of(cls, tools: Sequence[dict[str, Any]], choice: ToolChoice, response_format: dict[str, Any] | None) -> _Form:
        """Read the arguments of a call.

        Raises:
            InputError: They contradict each other.
        """
        choice, named = _choice(choice), {tool["function"]["name"]: tool for tool in tools}
        kind = (response_format or {}).get("type", "text")
        if kind not in ("text", "json_object", "json_schema"):
            raise InputError(f"unknown response_format {kind!r}; give text, json_object or json_schema")
        schema = None
        if response_format and kind != "text":
            schema = response_format["json_schema"]["schema"] if kind == "json_schema" else {"type": "object"}
        if choice == "none":
            return cls(schema=schema)
        if choice in ("any", "auto"):
            if choice == "any" and not named:
                raise InputError("tool_choice: no tool is offered")
            return cls(tuple(tools), tuple(tools), choice == "any", schema)
        if choice not in named:
            raise InputError(f"tool_choice: there is no tool {choice!r}; there are {', '.join(named) or 'none'}")
        return cls(tuple(tools), (named[choice],), True, schema)

    def words(self) -> str:
        """How the model is told; empty: there is nothing to tell. The tools it is shown by its template."""
        if self.forced:
            names = " or ".join(tool["function"]["name"] for tool in self.callable)
            return f"Answer with one call of the tool {names}, and with nothing else."
        if self.schema is None:
            return ""
        fits = "" if self.schema == {"type": "object"} else f" that fits this JSON schema:\n{json.dumps(self.schema)}"
        call = "Call a tool, or answer" if self.callable else "Answer"
        return f"{call} with one JSON object and nothing else{fits}"

    def grammar(self, added: Mapping[str, int]) -> str | None:
        """The same as a grammar in llguidance's dialect of Lark; None: any text will do.

        Args:
            added: The tokens that were added to the tokenizer's vocabulary: llguidance takes none of them for text.
        """
        if not self.forced and self.schema is None:
            return None
        ways = [_call_rule(tool["function"], added) for tool in self.callable]
        if self.schema is not None and not self.forced:
            ways.append(_json_rule(self.schema))
        rules = "\n".join(f"way{i}: {way}" for i, way in enumerate(ways))
        return f"start: {' | '.join(f'way{i}' for i in range(len(ways)))}\n{rules}\n"


def _json_rule(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps(_closed(schema) | {'x-guidance': _JSON_STYLE})}"


def _closed(schema: Any) -> Any:
    """The schema with no properties in its objects but those that it names, unless it says otherwise."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if schema.get("type") == "object" and schema.get("properties"):
        closed.setdefault("additionalProperties", False)
    return closed


def _call_rule(function: Mapping[str, Any], added: Mapping[str, int]) -> str:
    arguments = dict(function.get("parameters") or {"type": "object"})
    # References are to the root of the schema, which is the call.
    definitions = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
    call = definitions | {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
    }
    start, end = (f"<[{added[tag]}]>" if tag in added else f'"{tag}"' for tag in ("<tool_call>", "</tool_call>"))
    return rf'{start} "\n" {_json_rule(call)} "\n" {end}'


class _Grammar:
    """A logits processor that leaves only the tokens with which an answer still fits its form.

    Raises:
        NotImplementedError: llguidance cannot hold an answer to this form.
    """

    def __init__(self, vocabulary: Any, grammar: str, prompt: int) -> None:
        from llguidance import LLMatcher

        compiled = LLMatcher.grammar_from_lark(grammar)
        wrong, said = LLMatcher.validate_grammar_with_warnings(compiled, vocabulary)
        if wrong:
            raise NotImplementedError(f"an answer cannot be held to this schema: {' '.join(said[0].split())[:300]}")
        self._matcher = LLMatcher(vocabulary, compiled, log_level=0)
        self._read = prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Args: the tokens so far, of shape (1, length), and the scores of the next, of shape (1, vocabulary)."""
        import numpy as np
        import torch

        for token in input_ids[0, self._read :].tolist():
            if not self._matcher.is_stopped():  # an end that was reached; some devices go on for a step
                self._matcher.consume_token(token)
        self._read = input_ids.shape[1]
        if self._matcher.is_error():
            fault = " ".join(self._matcher.get_error().split())[:300]
            raise BackendError(f"the answer could not be held to its schema: {fault}", retryable=False)
        bits = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        allowed = np.zeros(scores.shape[-1], bool)
        allowed[: len(bits)] = bits[: len(allowed)]
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -math.inf)


# --- making an answer -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answer:
    """What the model wrote.

    Attributes:
        text: All of it, without the token that ended it or the stop sequence.
        cut: It was not finished.
        in_thought: It starts inside of a thought that the prompt opened.
        asked: Tokens of the prompt.
        made: Tokens that were generated, the one that ended it included.
        logprobs: One for each token, in OpenAI's form; their tokens make up the text.
    """

    text: str
    cut: bool
    in_thought: bool
    asked: int
    made: int
    logprobs: list[dict[str, Any]] | None


class _TimeUpError(Exception):
    """An answer takes too long."""


def _answer(
    engine: _Engine,
    turns: list[dict[str, Any]],
    form: _Form,
    stop: Sequence[str],
    options: ChatOptions,
    top_logprobs: int | None,
) -> _Answer:
    """One answer. ``top_logprobs`` is None where none are wanted.

    Raises:
        InputError: The messages cannot be put into the model's template, or are too long.
        NotImplementedError: The template knows no tools, or the schema cannot be held to.
        _TimeUpError: It was not finished in time.
        BackendError: The grammar failed.
        RuntimeError: The model did.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    clock = _Clock(options.timeout)
    grammar = form.grammar(engine.tokenizer.added_tokens_encoder) if _can_constrain() else None
    inputs, in_thought = _inputs(engine, turns, form, answer_at_once=grammar is not None)
    prompt = inputs["input_ids"].shape[1]
    if prompt >= engine.longest:
        raise InputError(f"these messages are {prompt} tokens and the model takes {engine.longest}")
    recorder = _Recorder(top_logprobs) if top_logprobs is not None else None
    stops = _Stops(engine.tokenizer, stop, prompt)
    steps: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = []
    if grammar:
        steps.append(_Grammar(engine.vocabulary, grammar, prompt))
    if options.temperature:
        steps.append(_Temperature(options.temperature))
    if recorder:
        steps.append(recorder)
    # All of the sampling is in our own steps: the recorder sees the very scores that the token is drawn from.
    sampling = {"do_sample": True, "top_k": 0, "top_p": 1.0} if options.temperature else {"do_sample": False}
    with torch.inference_mode():
        output = engine.model.generate(
            **inputs,
            **sampling,
            max_new_tokens=min(options.max_tokens or _MAX_TOKENS, engine.longest - prompt),
            eos_token_id=engine.ends,
            logits_processor=LogitsProcessorList(steps),
            stopping_criteria=StoppingCriteriaList([c for c in (recorder and recorder.note, stops, clock) if c]),
        )
    tokens: list[int] = output[0, prompt:].tolist()
    made, ended = len(tokens), bool(tokens) and tokens[-1] in engine.ends
    if clock.over and not ended and not stops.found:
        raise _TimeUpError(f"no answer in {options.timeout:g} s, only the first {made} tokens of one")
    tokens = tokens[:-1] if ended else tokens
    whole = _decoded(engine.tokenizer, tokens)
    text = whole[: min((at for s in stop if s and (at := whole.find(s)) >= 0), default=len(whole))]
    told = _told(engine.tokenizer, tokens, whole, len(text), recorder.steps) if recorder else None
    return _Answer(text, not (ended or stops.found), in_thought, prompt, made, told)


def _inputs(
    engine: _Engine, turns: list[dict[str, Any]], form: _Form, *, answer_at_once: bool
) -> tuple[dict[str, Any], bool]:
    """The arguments of the model, on its device, and whether they end inside of a thought.

    Args:
        engine: Whose they are.
        turns: The conversation.
        form: Of the answer.
        answer_at_once: Close a thought that the template opens: there is no place for it in the answer's grammar.
    """
    from jinja2 import TemplateError

    template = engine.processor.chat_template
    if form.tools and "tools" not in (template if isinstance(template, str) else json.dumps(template)):
        raise NotImplementedError("this model's chat template does not support tools")
    try:
        inputs = engine.processor.apply_chat_template(
            turns,
            tools=list(form.tools) or None,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,  # what only looks like a control token in a message is text
        )
    except (TemplateError, ValueError, TypeError) as error:
        raise InputError(f"this model cannot be shown these messages: {_line(error)}") from error
    ready = dict(inputs.to(engine.model.device, dtype=engine.model.dtype))
    end = _decoded(engine.tokenizer, ready["input_ids"][0, -8:].tolist())
    in_thought = end.rstrip().endswith("<think>")
    if not (in_thought and answer_at_once):
        return ready, in_thought
    closing = engine.tokenizer("</think>\n\n", add_special_tokens=False, return_tensors="pt")["input_ids"]
    return _lengthened(ready, closing.to(engine.model.device)), False


def _lengthened(inputs: dict[str, Any], tokens: torch.Tensor) -> dict[str, Any]:
    """The inputs with some tokens of text, of shape (1, n), at their end."""
    import torch

    filling = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    length = inputs["input_ids"].shape
    return {
        name: torch.cat([value, filling.get(name, torch.zeros_like(tokens)).to(value.dtype)], dim=1)
        if isinstance(value, torch.Tensor) and value.shape == length
        else value
        for name, value in inputs.items()
    }


class _Clock:
    """A stopping criterion: the time is up."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self.over = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        self.over = self.over or time.monotonic() > self._end
        return torch.full((1,), self.over, device=input_ids.device)


class _Stops:
    """A stopping criterion: one of the stop sequences was written."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: int) -> None:
        self._tokenizer, self._stops, self._prompt = tokenizer, [s for s in stops if s], prompt
        # A token has a byte at least, so a sequence that has just been finished lies in so many tokens.
        self._reach = max((len(s.encode()) for s in self._stops), default=0)
        self.found = False

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        if self._stops and not self.found:
            written = input_ids[0, self._prompt :][-self._reach :].tolist()
            text = _decoded(self._tokenizer, written)
            self.found = any(stop in text for stop in self._stops)
        return torch.full((1,), self.found, device=input_ids.device)


class _Temperature:
    """A logits processor that divides the scores."""

    def __init__(self, temperature: float) -> None:
        self._temperature = temperature

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores / self._temperature


@dataclass(frozen=True, slots=True)
class _Step:
    """The log-probability of a token that was chosen, and those of the likeliest."""

    chosen: float
    top: list[tuple[int, float]]


class _Recorder:
    """A logits processor that changes nothing, and the stopping criterion ``note``, which never stops.

    The scores of all steps together would be hundreds of megabytes; all that is kept of each is a few numbers.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._now: torch.Tensor | None = None
        self.steps: list[_Step] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._now = scores[0].float().log_softmax(-1)
        return scores

    def note(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        import torch

        assert self._now is not None
        best = self._now.topk(min(self._top, len(self._now)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        top = [(token, value) for token, value in pairs if value > -math.inf]
        self.steps.append(_Step(self._now[input_ids[0, -1]].item(), top))
        return torch.zeros(1, dtype=torch.bool, device=input_ids.device)


def _told(tokenizer: Any, tokens: Sequence[int], whole: str, length: int, steps: Sequence[_Step]) -> list[Any]:
    """The log-probabilities of the tokens that make up the text's first characters, in OpenAI's form."""
    told: list[dict[str, Any]] = []
    pieces = _pieces(tokenizer, tokens, whole)
    for index, (token, piece, step) in enumerate(zip(tokens, pieces, steps, strict=False)):
        if length <= 0:
            break
        before = tokens[index - 1] if index else None
        told.append(
            {
                "token": piece[:length],
                "logprob": step.chosen,
                "top_logprobs": [
                    {"token": piece if other == token else _alone(tokenizer, before, other), "logprob": value}
                    for other, value in step.top
                ],
            }
        )
        length -= len(piece)
    return told


def _pieces(tokenizer: Any, tokens: Sequence[int], whole: str) -> list[str]:
    """What each token adds to the text. A character that is spread over tokens belongs to the last of them."""
    pieces, done = [], 0
    for end in range(1, len(tokens) + 1):
        text = _decoded(tokenizer, tokens[:end])
        sure = len(whole) if end == len(tokens) else len(text.rstrip("\ufffd"))
        pieces.append(whole[done:sure])
        done = max(done, sure)
    return pieces


def _alone(tokenizer: Any, before: int | None, token: int) -> str:
    """What a token would have added after another one; some tokenizers leave out the space at a text's start."""
    if before is not None:
        start, both = _decoded(tokenizer, [before]), _decoded(tokenizer, [before, token])
        if not start.endswith("\ufffd") and both.startswith(start):
            return both[len(start) :]
    return _decoded(tokenizer, [token])


def _decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


# --- reading an answer ------------------------------------------------------------------------------------------------

_THOUGHT: Final = re.compile(r"\s*<think>(?P<thought>.*?)(?:</think>|\Z)", re.DOTALL)
_CALL: Final = re.compile(r"<tool_call>(?P<call>.*?)(?:</tool_call>|\Z)", re.DOTALL)


@dataclass(frozen=True)
class _Reading:
    """An answer taken apart."""

    content: str
    reasoning: str
    calls: list[ToolCall]
    invalid: list[InvalidToolCall]


def _read(text: str, *, in_thought: bool, may_call: bool) -> _Reading:
    """Take an answer apart: a thought at its start, then text, and calls of tools where any were offered."""
    reasoning = ""
    if thought := _THOUGHT.match(f"<think>{text}" if in_thought else text):
        reasoning, text = thought["thought"].strip(), thought.string[thought.end() :].lstrip()
    calls: list[ToolCall] = []
    invalid: list[InvalidToolCall] = []
    for match in _CALL.finditer(text) if may_call else ():
        found = _tool_call(match["call"].strip())
        if found["type"] == "tool_call":
            calls.append(found)
        else:
            invalid.append(found)
    content = _CALL.sub("", text).strip() if calls or invalid else text
    return _Reading(content, reasoning, calls, invalid)


def _tool_call(text: str) -> ToolCall | InvalidToolCall:
    """One call; its arguments may be JSON in JSON."""
    name, fault, number = None, "", f"call_{uuid.uuid4().hex[:12]}"
    try:
        call = json.loads(text)
        name, arguments = call["name"], call.get("arguments", {})
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        if isinstance(name, str) and isinstance(arguments, dict):
            return ToolCall(name=name, args=arguments, id=number, type="tool_call")
        fault = "its name is no text, or its arguments are no object"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fault = f"it is no JSON object with a name and arguments ({_line(error)})"
    named = name if isinstance(name, str) else None
    return InvalidToolCall(name=named, args=text, id=number, error=fault, type="invalid_tool_call")


def _parsed(message: AIMessage, form: type[BaseModel] | None, *, as_tool: bool) -> Any:
    """The structured answer in a message.

    Raises:
        OutputParserException: There is none, or it does not fit.
    """
    text = str(message.text)
    try:
        if as_tool:
            found = message.tool_calls[0]["args"]
        else:
            start = text.find("{")  # without llguidance, there may be a fence around it
            found, _ = json.JSONDecoder().raw_decode(text, max(start, 0))
        return form.model_validate(found) if form else found
    except IndexError:
        raise OutputParserException("the answer calls no tool", llm_output=text) from None
    except ValidationError as error:
        raise OutputParserException(f"the answer does not fit its schema: {_line(error)}", llm_output=text) from error
    except ValueError as error:
        raise OutputParserException(f"the answer is no JSON: {_line(error)}", llm_output=text) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
