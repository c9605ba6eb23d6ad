"""Chat models behind the OpenAI protocol: OpenAI's own, and those of vLLM, SGLang, llama.cpp and the like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import ChatOpenAI

from gems.graph.errors import BackendError, GemsError
from gems.models.secrets import conceal

__all__ = ["OpenAIChat"]


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
            passing = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
            said = f"{self._where} answers {error.status_code}{_said(error)}"
            raise BackendError(said, retryable=passing, status_code=error.status_code) from None
        except openai.OpenAIError as error:
            cause = error.__cause__ or error
            raise BackendError(f"{self._where}: {_line(str(error))} ({_line(str(cause))})") from None
        except (ValueError, KeyError, TypeError) as error:  # status 200, and something else than an answer
            raise BackendError(f"{self._where} answers with no chat completion: {_line(str(error))}") from None

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        result = super()._create_chat_result(response, generation_info)
        answer = response if isinstance(response, dict) else response.model_dump(warnings=False)
        for generation, choice in zip(result.generations, answer["choices"], strict=True):
            # vLLM, SGLang, DeepSeek and llama.cpp call it the one or the other.
            reasoning = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
            if isinstance(reasoning, str):
                generation.message.additional_kwargs["reasoning_content"] = reasoning
        return result

    @property
    def _where(self) -> str:
        return f"{self.model_name} at {self.root_client.base_url.netloc.decode()}"


def _said(error: openai.APIStatusError) -> str:
    body = error.body
    told = body.get("message") or body.get("detail") or body.get("error") if isinstance(body, Mapping) else body
    text = _line(str(told or ""))
    return f": {text}" if text and "<html" not in text.lower() else ""


def _line(text: str) -> str:
    return conceal(" ".join(text.split()))[:300]
