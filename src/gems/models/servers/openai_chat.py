"""Chat models with OpenAI's protocol: OpenAI's own, Azure's, and those of vLLM, SGLang, llama.cpp and others."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Final

import openai
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from langchain_openai.chat_models.base import BaseChatOpenAI

from gems.errors import BackendError, GemsError
from gems.models.calling import LOST_ANSWERS, REQUESTS
from gems.models.failures import advice_for, is_passing, long_wait, may_be_charged
from gems.models.servers.addresses import advice_on_certificates, advice_on_proxies
from gems.models.servers.completion_messages import REASONING_FIELD, THOUGHT_FIELDS
from gems.models.servers.completions import read_completion, tidy_completion
from gems.models.servers.error_texts import error_message
from gems.models.servers.sent_requests import answers_lost, begin_count, has_sent, requests_sent
from gems.models.unsupported_requests import is_not_understood
from gems.secrets import one_line
from gems.stopping import WaitEnded

__all__ = ["AzureChat", "OpenAIChat"]

_THOUGHT: Final = re.compile(r"\A\s*(?:<think>)?(?P<thought>(?:(?!<think>).)*?)</think>\s*", re.DOTALL)
"""Matches reasoning that a server leaves in the answer; some chat templates contain the opening tag."""


_FIELD: Final = "reasoning_field"
"""The name, in a message's ``additional_kwargs``, of the field in which its server writes what it thought."""


def _without_thoughts(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: v for name, v in turn.items() if name not in THOUGHT_FIELDS} for turn in turns]


class _LenientChat(BaseChatOpenAI):
    """A chat model of OpenAI's package that keeps the reasoning of other servers, and raises one-line errors, keyless.

    A call raises ``BackendError`` if the server cannot be reached, is too slow, or answers with an error. Its
    ``status_code`` is the HTTP status.
    """

    heeds_one_try: ClassVar[bool] = True
    """Whether ``IN_ONE_TRY`` keeps the client from sending a request again."""

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        begin_count()
        try:
            result = self._answer_or_error(messages, stop, run_manager, **kwargs)
        except (BackendError, WaitEnded) as error:
            error.requests, error.lost_answers = requests_sent(), answers_lost()
            raise
        metadata = result.generations[0].message.response_metadata
        metadata[REQUESTS], metadata[LOST_ANSWERS] = max(1, requests_sent()), max(0, answers_lost() - 1)
        return result

    def _answer_or_error(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | None,
        **kwargs: Any,
    ) -> ChatResult:
        try:
            return self._answer(messages, stop, run_manager, **kwargs)
        except GemsError:
            raise
        except openai.APITimeoutError:
            # Not retryable: the client has retried already, and a hanging server would be waited for nine times.
            tries = self._tries_made if has_sent() else ""
            raise BackendError(f"{self._address}: no answer{tries}", retryable=False) from None
        except openai.APIStatusError as error:
            reason = one_line(error_message(error.response.content))
            advice = advice_for(error)
            if 300 <= error.status_code < 400:
                advice = "; it redirects: give the final address as base_url"
            passes = is_passing(error) and not is_not_understood(error)
            # The client has retried already: each try may have been charged, unless the server says that it is busy.
            retryable = passes and not may_be_charged(error)
            tries = self._tries_made if passes and not retryable else ""
            words = f"{reason and f': {reason}'}{long_wait(error)}{tries}{advice}"
            message = f"{self._address} answers {error.status_code}{words}"
            raise BackendError(message, retryable=retryable, status_code=error.status_code, reason=reason) from None
        except openai.OpenAIError as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            reason = f" ({one_line(cause)})" if cause is not error else ""
            if advice := advice_on_certificates(reason, is_sent=may_be_charged(error)) or advice_on_proxies(cause):
                raise BackendError(f"{self._address}{reason}{advice}", retryable=False) from None
            # A server that cannot be reached costs nothing, whichever proxy was asked for it; an answer that was lost
            # on its way, at whichever try, may be paid.
            is_lost = may_be_charged(error) or (isinstance(error, openai.APIConnectionError) and has_sent())
            tries = self._tries_made if is_lost else ""
            retryable = is_passing(error) and not is_lost
            raise BackendError(f"{self._address}: {one_line(error)}{reason}{tries}", retryable=retryable) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # status 200 without a chat completion
            raise BackendError(f"{self._address} answers with no chat completion: {one_line(error)}") from None

    def _answer(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | None,
        **kwargs: Any,
    ) -> ChatResult:
        payload = self._get_request_payload(messages, stop=stop, **kwargs)
        if self._use_responses_api(payload):  # it has no log-probabilities of a form, and its client fails on these
            kwargs = {name: value for name, value in kwargs.items() if name not in ("logprobs", "top_logprobs")}
            return self._response(messages, stop, run_manager, **kwargs)
        if not isinstance(payload.get("response_format", {}), dict):
            return super()._generate(messages, stop, run_manager, **kwargs)
        # The body as it came: OpenAI's own types fail on answers that other servers write in another way.
        try:
            body: bytes = self.client.with_raw_response.create(**payload).content
        except openai.BadRequestError as error:
            plain = _without_thoughts(payload["messages"])
            if plain == payload["messages"] or "reasoning" not in error.response.text:
                raise
            body = self.client.with_raw_response.create(**{**payload, "messages": plain}).content
        answer: Any = read_completion(body)
        return self._create_chat_result(answer)

    def _response(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        run_manager: CallbackManagerForLLMRun | None,
        **kwargs: Any,
    ) -> ChatResult:
        """An answer of the Responses API; one that LangChain fails on is read as other servers' answers are."""
        try:
            return super()._generate(messages, stop, run_manager, **kwargs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            body = getattr(getattr(error, "response", None), "content", None)  # LangChain adds the response
            if not isinstance(body, bytes):
                raise
        answer: Any = read_completion(body)
        return self._create_chat_result(answer)

    def _get_request_payload(
        self, input_: LanguageModelInput, *, stop: list[str] | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The request; what was thought before a call of tools goes back to servers that tell it apart.

        Kimi and DeepSeek refuse the next turn without it.
        """
        payload: dict[str, Any] = super()._get_request_payload(input_, stop=stop, **kwargs)
        turns = payload.get("messages")
        if isinstance(turns, list):
            for turn, message in zip(turns, self._convert_input(input_).to_messages(), strict=False):
                field = message.additional_kwargs.get(_FIELD)
                if field and turn.get("tool_calls"):
                    turn[field] = message.additional_kwargs["reasoning_content"]
        return payload

    def _create_chat_result(
        self, response: dict[str, Any] | openai.BaseModel, generation_info: dict[str, Any] | None = None
    ) -> ChatResult:
        raw = response.model_dump(warnings=False) if isinstance(response, openai.BaseModel) else response
        answer = tidy_completion(raw, self._address)
        # Azure's own way would raise an exception on an answer that was filtered.
        result = BaseChatOpenAI._create_chat_result(self, answer, generation_info)
        for generation, choice in zip(result.generations, answer["choices"], strict=True):
            message = generation.message
            # vLLM, SGLang, DeepSeek and llama.cpp use one name or the other.
            reasoning = choice["message"].get("reasoning_content") or choice["message"].get("reasoning")
            if isinstance(field := choice["message"].get(REASONING_FIELD), str):
                message.additional_kwargs[_FIELD] = field
            if isinstance(message.content, str) and (match := _THOUGHT.match(message.content)):
                message.content = message.content[match.end() :]
                reasoning = reasoning or match["thought"].strip()
            if isinstance(reasoning, str) and reasoning:
                message.additional_kwargs["reasoning_content"] = reasoning
            if refusal := choice["message"].get("refusal"):
                message.additional_kwargs["refusal"] = refusal
        return result

    @property
    def _tries_made(self) -> str:
        return f" (up to {1 + self.root_client.max_retries} tries, each of which may have been charged)"

    @property
    def _address(self) -> str:
        return f"{self.model_name} at {self.root_client.base_url.netloc.decode()}"


class OpenAIChat(_LenientChat, ChatOpenAI):
    """The chat model of OpenAI, and of other servers with its protocol."""


class AzureChat(_LenientChat, AzureChatOpenAI):
    """The chat model of a deployment in Azure.

    LangChain's own has the client of OpenAI check each answer, which raises exceptions on one that was cut off.
    """
