"""What the options of chat models do: which of them a model honours.

The options are the same for all roles of a run, whose models may differ. An option is refused if none of the run's
models honours it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.language_models import BaseChatModel
from pydantic import AliasChoices, SecretStr

from gems.authority import is_code
from gems.errors import InputError
from gems.models.option_effects import OptionEffect, RefusedOptionsError, changed_options, effects_of
from gems.models.servers.provider_settings import honours, provider_of
from gems.options import ChatOptions

__all__ = ["chat_option_effects", "check_chat_options"]

_BY_GEMS: Final = frozenset({"image_size", "logprobs"})
"""Options that GEMS itself honours, whatever the model: how large images are, and whether log-probabilities count."""
_OF_LOCAL_MODELS: Final = frozenset({"device", "dtype", "quantization"})
_OF_SERVERS: Final = frozenset(
    {"base_url", "api_key", "headers", "extra_body", "num_ctx", "reasoning_effort", "thinking_budget"}
)
_MAY_BE_DROPPED: Final = frozenset({"temperature"})
"""Options that a package drops in silence for some of its models."""


def check_chat_options(
    models: Mapping[str, BaseChatModel], options: ChatOptions, *, on_this_machine: bool = True
) -> None:
    """Check that each option that was set is honoured by at least one of a run's models.

    Args:
        models: The run's chat models, by name.
        options: Their options.
        on_this_machine: Also judge what depends on this machine. False where the models will run on another one.

    Raises:
        RefusedOptionsError: An option has no effect at all; the message has the reasons of the first model.
    """
    tables = [
        chat_option_effects(name, model, options, on_this_machine=on_this_machine) for name, model in models.items()
    ]
    honoured = {effect.option for table in tables for effect in table if effect.status == "honoured"}
    useless = [effect for effect in tables[0] if effect.option not in honoured and effect.status == "refused"]
    if useless:
        reasons = "; ".join(effect.detail for effect in useless)
        raise RefusedOptionsError(f"{', '.join(models)}: {reasons}", tables[0])


def chat_option_effects(
    name: str, model: BaseChatModel, options: ChatOptions, *, on_this_machine: bool = True
) -> tuple[OptionEffect, ...]:
    """What each option that was set does with one model.

    Args:
        name: The model's name, as ``init_mllm`` takes it.
        model: The model, made with these options.
        options: The options.
        on_this_machine: Also judge what depends on this machine.
    """
    set_options = changed_options(options)
    structured = options.structured
    methods = _methods(name, model)
    reasons: dict[str, str] = {}
    if structured != "auto" and structured not in methods:
        reasons["structured"] = f"structured={structured}: {name} can only be asked by {', '.join(methods)}, or auto"
    for option in set_options.keys() - _BY_GEMS - {"structured"}:
        if reason := _refusal(name, model, option, set_options[option]):
            reasons[option] = reason
    if on_this_machine and name.startswith("transformers:"):
        reasons |= _on_this_machine(options)
    return effects_of(options, reasons)


def _refusal(name: str, model: BaseChatModel, option: str, value: Any) -> str:
    """Why a model does not honour an option that it would have to honour itself; empty if it does."""
    if name in ("pocket", "open"):
        return f"the {name} chat model answers at once, by rules, and has no {option}; leave it out"
    if is_code(name):
        return ""  # its factory was called with the options, and refuses what it cannot honour
    if name.startswith("transformers:"):
        return f"{option} is for servers, and {name} runs in this process" if option in _OF_SERVERS else ""
    if option in _OF_LOCAL_MODELS:
        return f"{option} is for transformers: models; the server of {name} decides it"
    # With a base URL, a name without a provider is a model of a server with OpenAI's protocol.
    honoured = honours("openai" if model._llm_type == "openai-chat" else provider_of(name), option)
    if honoured is None or option in _MAY_BE_DROPPED:
        honoured = _has(model, option, value)
    return "" if honoured else f"{name} does not take {option}={_shown(value)}; leave it out"


def _on_this_machine(options: ChatOptions) -> dict[str, str]:
    """Why this machine does not support an option of a model in this process, by the option's name."""
    from gems.models.transformers.loading import placement

    for option in ("device", "quantization"):
        try:
            placement(options if option == "quantization" else options.model_copy(update={"quantization": None}))
        except InputError as error:
            return {option: str(error)}
    return {}


def _has(model: BaseChatModel, option: str, value: Any) -> bool:
    """Whether a provider's model has kept the value. Some packages drop what their model does not support."""
    for field, info in type(model).model_fields.items():
        aliases = {field, info.alias, info.validation_alias}
        if isinstance(info.validation_alias, AliasChoices):
            aliases.update(choice for choice in info.validation_alias.choices if isinstance(choice, str))
        if option in aliases and _plain(getattr(model, field)) == _plain(value):
            return True
    return False


def _plain(value: Any) -> Any:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _shown(value: Any) -> str:
    return "..." if isinstance(value, SecretStr) else str(value)


def _methods(name: str, model: BaseChatModel) -> list[str]:
    """The ways in which a model can be asked for structured answers, by its class."""
    kind, methods = type(model), ["text"]
    if name in ("pocket", "open"):
        return ["tool"]
    if kind.with_structured_output is not BaseChatModel.with_structured_output:
        methods += ["json_schema", "json_mode"]
    if kind.bind_tools is not BaseChatModel.bind_tools:
        methods.append("tool")
    return methods
