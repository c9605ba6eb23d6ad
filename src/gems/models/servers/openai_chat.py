"""Chat models behind the OpenAI protocol: OpenAI's own, and those of vLLM, SGLang, llama.cpp and the like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import openai
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI

from gems.errors import BackendError, GemsError, is_passing_status
from gems.models.servers.base import error_message
from gems.models.structured import is_not_understood
from gems.secrets import one_line

__all__ = ["OpenAIChat"]

_THOUGHT: Final = re.compile(r"\A\s*(?:<think>)?(?P<thought>.*?)</think>\s*", re.DOTALL)
"""Reasoning that a server leaves in the answer; chat templates at times open it themselves."""


class OpenAIChat(ChatOpenAI):
    """``ChatOpenAI`` that keeps the reasoning text of other servers, and whose errors are one line without a key.

    Raises, when called:
        BackendError: The server cannot be reached, is too slow, or answers with an error; ``status_code`` tells which.
    """

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            return super()._generate(messages, stop, run_manager, **kwargs)
        except GemsError:
            raise
        except openai.LengthFinishReasonError as error:
            return self._create_chat_result(error.completion)  # cut off; what there is of it says so
        except openai.APITimeoutError:
            # The client has tried again already: a server that hangs would be waited for nine times.
            tries = self.max_retries or 0
            raise BackendError(f"{self._where}: no answer ({1 + tries} tries)", retryable=False) from None
        except openai.APIStatusError as error:
            told = _line(error_message(error.response.content))
            said = f"{self._where} answers {error.status_code}{told and f': {told}'}"
            retryable = is_passing_status(error.status_code) and not is_not_understood(error)
            raise BackendError(said, retryable=retryable, status_code=error.status_code) from None
        except openai.OpenAIError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            why = f" ({_line(str(cause))})" if cause is not error else ""
            raise BackendError(f"{self._where}: {_line(str(error))}{why}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # status 200, and no answer
            raise BackendError(f"{self._where} answers with no chat completion: {_line(_instead(error))}") from None

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        if not result.generations:
            raise BackendError(f"{self._where} answers with no choices: it may have refused the question")
        answer = response if isinstance(response, dict) else response.model_dump(warnings=False)
        for generation, choice in zip(result.generations, answer["choices"], strict=True):
            message = generation.message
            # vLLM, SGLang, DeepSeek and llama.cpp call it the one or the other.
            reasoning = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
            if isinstance(message.content, str) and (found := _THOUGHT.match(message.content)):
                message.content = message.content[found.end() :]
                reasoning = reasoning or found["thought"].strip()
            if isinstance(reasoning, str) and reasoning:
                message.additional_kwargs["reasoning_content"] = reasoning
        return result

    @property
    def _where(self) -> str:
        return f"{self.model_name} at {self.root_client.base_url.netloc.decode()}"


def _instead(error: Exception) -> str:
    """What a server answered instead of a completion; LangChain's and OpenAI's clients stumble in ways of their own."""
    body = getattr(getattr(error, "response", None), "content", b"")
    if body:
        return error_message(body) or "a page or a document of some other kind"
    first = error.args[0] if error.args else ""
    return str(first.get("message") or first) if isinstance(first, Mapping) else str(error)


def _line(text: str) -> str:
    return one_line(text)
