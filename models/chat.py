"""Chat models by name: the embedded pocket model, or anything that LangChain's ``init_chat_model`` knows."""

from __future__ import annotations

from functools import cache
from typing import Final

from langchain_core.language_models import BaseChatModel

from gems.graph.errors import InputError
from gems.graph.options import ChatOptions

__all__ = ["init_mllm", "model_fingerprint"]


DEFAULTS: Final = ChatOptions()


@cache
def init_mllm(name: str, options: ChatOptions = DEFAULTS) -> BaseChatModel:
    """The vision chat model of that name, made once per process and set of options.

    Args:
        name: ``"pocket"``, or ``"PROVIDER:MODEL"`` as ``init_chat_model`` takes it. Keys and base URLs come from the
            provider's own environment variables.
        options: How it is called.

    Raises:
        InputError: The name has no known provider, or the provider's package or key is missing.
    """
    if name == "pocket":
        from gems.models.pocket.chat import PocketChatModel

        return PocketChatModel()
    from langchain.chat_models import init_chat_model

    try:
        model = init_chat_model(name)
    except Exception as error:  # each provider's package has errors of its own, all raised before anything is sent
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f'cannot use the chat model {name!r}: {reason}; give "pocket" or PROVIDER:MODEL such as openai:gpt-5'
        ) from error
    if not isinstance(model, BaseChatModel):
        raise InputError(f"{name!r} is not one chat model; give PROVIDER:MODEL such as openai:gpt-5")
    return model


def model_fingerprint(model: BaseChatModel) -> str:
    """What identifies a chat model in a run's record: its weights' hash where it has one, else its model name."""
    for attribute in ("fingerprint", "model_name", "model"):
        value = getattr(model, attribute, None)
        if isinstance(value, str) and value:
            return value
    return type(model).__name__
