"""Chat models with OpenAI's protocol: OpenAI's own, and those of vLLM, SGLang, llama.cpp and others."""

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
"""Matches reasoning that a server leaves in the answer; some chat templates contain the opening tag."""


class OpenAIChat(ChatOpenAI):
    """``ChatOpenAI`` that keeps the reasoning of other servers, and raises one-line errors without keys.

    A call raises ``BackendError`` if the server cannot be reached, is too slow, or answers with an error. Its
    ``status_code`` is the HTTP status.
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
            return self._create_chat_result(error.completion)  # cut off, which the message's metadata says
        except openai.APITimeoutError:
            # Not retryable: the client has retried already, and a hanging server would be waited for nine times.
            tries = 1 + (self.max_retries or 0)
            raise BackendError(f"{self._address}: no answer ({tries} tries)", retryable=False) from None
        except openai.APIStatusError as error:
            reason = one_line(error_message(error.response.content))
            message = f"{self._address} answers {error.status_code}{reason and f': {reason}'}"
            retryable = is_passing_status(error.status_code) and not is_not_understood(error)
            raise BackendError(message, retryable=retryable, status_code=error.status_code) from None
        except openai.OpenAIError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = f" ({one_line(cause)})" if cause is not error else ""
            raise BackendError(f"{self._address}: {one_line(error)}{reason}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # status 200 without a chat completion
            content = one_line(_content_instead(error))
            raise BackendError(f"{self._address} answers with no chat completion: {content}") from None

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        if not result.generations:
            raise BackendError(f"{self._address} answers with no choices: it may have refused the question")
        answer = response if isinstance(response, dict) else response.model_dump(warnings=False)
        for generation, choice in zip(result.generations, answer["choices"], strict=True):
            message = generation.message
            # vLLM, SGLang, DeepSeek and llama.cpp use one name or the other.
            reasoning = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
            if isinstance(message.content, str) and (match := _THOUGHT.match(message.content)):
                message.content = message.content[match.end() :]
                reasoning = reasoning or match["thought"].strip()
            if isinstance(reasoning, str) and reasoning:
                message.additional_kwargs["reasoning_content"] = reasoning
        return result

    @property
    def _address(self) -> str:
        return f"{self.model_name} at {self.root_client.base_url.netloc.decode()}"


def _content_instead(error: Exception) -> str:
    """What a server answered instead of a chat completion, from the error that a client raised when it parsed it."""
    body = getattr(getattr(error, "response", None), "content", b"")
    if body:
        return error_message(body) or "a page or another kind of document"
    first = error.args[0] if error.args else ""
    return str(first.get("message") or first) if isinstance(first, Mapping) else str(error)
