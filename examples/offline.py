"""A stand-in for a language model, so that the examples run offline.

It ignores its input and returns prepared answers in order. To use a real model instead, give the examples ``--mllm``
with a name that LangChain's ``init_chat_model`` accepts (``openai:gpt-5``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from langchain.chat_models import init_chat_model
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from gems.errors import GemsError


class StandIn(BaseChatModel):
    """Returns its answers in order: the first in a conversation that has none yet, then the second, and so on."""

    answers: Sequence[AIMessage]

    @property
    def _llm_type(self) -> str:
        return "stand-in"

    def bind_tools(self, tools: Sequence[Any], **_: Any) -> BaseChatModel:
        """Return the model unchanged: it calls the tools that its answers name."""
        return self

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **_: Any,
    ) -> ChatResult:
        answer_count = sum(isinstance(message, AIMessage) for message in messages)
        return ChatResult(generations=[ChatGeneration(message=self.answers[min(answer_count, len(self.answers) - 1)])])


def language_model(name: str | None, *answers: AIMessage) -> BaseChatModel:
    """The model of that name, or, without a name, the stand-in with these answers."""
    return init_chat_model(name) if name else StandIn(answers=answers)


def arguments(about: str | None) -> argparse.ArgumentParser:
    """A parser with the options of all examples."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mllm", metavar="NAME", help="a language model, such as openai:gpt-5; default: a stand-in")
    parser.add_argument("--seed", type=int, default=7, help="seed of the images (default %(default)s)")
    return parser


def guarded(main: Any) -> None:
    """Run ``main``, and report an error of GEMS in one line."""
    try:
        main()
    except GemsError as error:
        raise SystemExit(f"error: {error}") from None
