"""Vision chat models run in this process: Qwen3-VL and the like, through transformers, behind LangChain's interface.

Answers are greedy unless a temperature is set. If the package llguidance is installed, an answer that must be JSON or a
tool call is constrained to its schema while it is generated; without it, the schema is only requested in words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Literal

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel, Field, PrivateAttr

from gems.errors import BackendError, GemsError
from gems.models.diffusers.loading import is_out_of_memory
from gems.models.diffusers.source import PipelineSource
from gems.models.pocket.weights import folder_fingerprint
from gems.models.transformers.answers import write_answer
from gems.models.transformers.constrained import Form
from gems.models.transformers.loading import ChatSource, Engine, describe, load_engine
from gems.models.transformers.messages import turns_of
from gems.options import ChatOptions
from gems.secrets import one_line

__all__ = ["TransformersChatModel", "init_transformers_chat"]

_IGNORED_ARGUMENTS: Final = frozenset({"strict", "parallel_tool_calls"})
"""Arguments that LangChain's agents pass to every model and that have no effect here."""


def init_transformers_chat(
    source: str, name: str, options: ChatOptions, *, may_download: bool = True
) -> TransformersChatModel:
    """The chat model in ``FOLDER_OR_REPO[@REVISION]``; nothing is loaded yet.

    Raises:
        InputError: A local folder is given with a revision.
    """
    parsed = PipelineSource.parse(source)
    model = TransformersChatModel(path=parsed.path, revision=parsed.revision, options=options, name=name)
    model._may_download = may_download
    return model


class TransformersChatModel(BaseChatModel):
    """A vision chat model of transformers, loaded at its first use, that writes one answer at a time.

    It loads only safetensors and runs no code from the repository. Text in messages that looks like a control token of
    the chat template stays text. A reasoning model does not think first if its answer is constrained to a schema.

    Attributes:
        path: A local folder or a repository's id.
        revision: A branch, tag or commit of the repository; None is its main branch.
        options: How the model is run. The timeout covers one answer, without loading or waiting for other answers.
        logprobs: Whether to report each token's log-probability, in OpenAI's form; a call can override it.
        top_logprobs: Number of alternatives to report for each token.
    """

    path: str
    revision: str | None = None
    options: ChatOptions = Field(default_factory=ChatOptions)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0)

    _may_download: bool = PrivateAttr(default=True)
    _lock: Any = PrivateAttr(default_factory=threading.RLock)
    _loaded: Engine | None = PrivateAttr(default=None)

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
    def _source(self) -> ChatSource:
        return ChatSource(self.path, self.revision, self._may_download)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of a local folder's weights and settings; a repository's id and commit otherwise."""
        folder = self._source.folder
        return folder_fingerprint(folder) if folder else f"{self.path}@{self._source.commit}"

    def check(self) -> str:
        """Describe in one line what would be run, without loading it; raises the same errors as ``load``."""
        return describe(self._source, self.options)

    def load(self) -> Engine:
        """Load the weights now instead of at the first call.

        Raises:
            InputError: This is not a vision chat model, or this machine does not support an option.
            BackendError: The weights are missing, damaged or too large.
        """
        with self._lock:
            self._loaded = self._loaded or load_engine(self._source, self.options)
            return self._loaded

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools. ``tool_choice`` is as for OpenAI's models, or the name of the tool that must be called."""
        choice = "any" if tool_choice in (True, "required") else tool_choice or "auto"
        return self.bind(tools=[convert_to_openai_tool(tool) for tool in tools], tool_choice=choice, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """See ``BaseChatModel.with_structured_output``. Answers to a JSON schema are dicts that are not validated.

        The methods constrain the answer to the schema, offer the schema as a tool, or constrain the answer to any JSON
        object.
        """
        if method == "function_calling":
            return super().with_structured_output(schema, include_raw=include_raw, **kwargs)
        json_schema: Any = schema if isinstance(schema, dict) else schema.model_json_schema()  # type: ignore[attr-defined]
        parser: Any = JsonOutputParser() if json_schema is schema else PydanticOutputParser(pydantic_object=schema)
        response_format: dict[str, Any] = {"type": "json_object"}
        if method == "json_schema":
            response_format = {"type": "json_schema", "json_schema": {"name": "answer", "schema": json_schema}}

        def read(message: AIMessage) -> dict[str, Any]:
            try:
                return {"raw": message, "parsed": parser.invoke(message), "parsing_error": None}
            except OutputParserException as error:
                return {"raw": message, "parsed": None, "parsing_error": error}

        bound = self.bind(response_format=response_format, **kwargs)
        return bound | (RunnableLambda(read) if include_raw else parser)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        *,
        tools: Sequence[dict[str, Any]] = (),
        tool_choice: str = "auto",
        response_format: dict[str, Any] | None = None,
        logprobs: bool | None = None,
        top_logprobs: int | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        """See ``BaseChatModel._generate``.

        Raises:
            InputError: A message or the choice of a tool is invalid.
            BackendError: The model ran out of time or memory, or failed.
            NotImplementedError: The template has no tools, or the answer cannot be constrained to the schema.
            TypeError: An argument is unknown.
        """
        if unknown := kwargs.keys() - _IGNORED_ARGUMENTS:
            raise TypeError(f"{self._label} does not accept the arguments {', '.join(sorted(unknown))}")
        form = Form.of(tools, tool_choice, response_format)
        turns = turns_of(messages, form.words())
        with_logprobs = self.logprobs if logprobs is None else logprobs
        top = (self.top_logprobs if top_logprobs is None else top_logprobs) or 0
        with self._lock:
            engine = self.load()
            try:
                message = write_answer(engine, turns, form, self.options, stop or [], top if with_logprobs else None)
            except (GemsError, NotImplementedError):
                raise
            except TimeoutError as error:
                raise BackendError(f"{self._label}: {error}", retryable=False) from None
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise BackendError(
                        f"{self._label}: {engine.model.device} ran out of memory for this answer"
                    ) from error
                reason = one_line(error)
                raise BackendError(f"{self._label} failed: {reason}", retryable=False) from error
        message.response_metadata["model_name"] = self._label
        return ChatResult(generations=[ChatGeneration(message=message)])
