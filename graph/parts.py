"""What a graph is built from: objects, or names and places, which become settings of the graph."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.store.base import BaseStore

from gems.errors import InputError
from gems.graph.context import ROLES, GemsContext
from gems.memory.image_store import ImageStore
from gems.nodes.resources import Resources, check_names

__all__ = ["check_checkpointer", "resources_of"]


@dataclass(frozen=True, slots=True)
class _Part:
    setting: str
    """The setting that a name becomes."""
    fits: Callable[[Any], bool]
    """Whether an object can be used."""
    description: str


def _has(*members: str) -> Callable[[Any], bool]:
    # The class is asked first: a property of an object may be costly.
    return lambda part: all(hasattr(type(part), member) or hasattr(part, member) for member in members)


def _is_chat_model(part: object) -> bool:
    return isinstance(part, BaseChatModel)


_CHAT: Final = "a LangChain chat model, or a model's name such as openai:gpt-5"
_GENERATOR: Final = ("name", "fingerprint", "edits", "generate")
_PARTS: Final[dict[str, _Part]] = {
    "mllm": _Part("mllm", _is_chat_model, _CHAT),
    **{role: _Part(role, _is_chat_model, _CHAT) for role in ROLES},
    "generator": _Part("generator", _has(*_GENERATOR), "an ImageGenerator, or a name such as pocket"),
    "embedder": _Part(
        "embedder", lambda part: isinstance(part, Embeddings), "a LangChain embedder, or a name such as minilm"
    ),
    "store": _Part(
        "memory_url",
        lambda part: isinstance(part, BaseStore),
        "a LangGraph store, a folder, or postgresql://USER@HOST/DATABASE",
    ),
    "images": _Part("images_url", lambda part: isinstance(part, ImageStore), "an ImageStore, a folder, or its address"),
}
_is_inspector: Final = _has("name", "kinds", "inspect")


def resources_of(
    parts: Mapping[str, Any], inspectors: object, settings: Mapping[str, Any] | GemsContext | None, thumbnails: int
) -> Resources:
    """The resources of a graph. The operator wrote all of it, so names may stand for code and addresses.

    Args:
        parts: An object, a name or None for each argument of ``build_graph`` that takes one.
        inspectors: Inspectors and names of inspectors.
        settings: The other settings that are fixed for the graph.
        thumbnails: Size in pixels of the small pictures in ``messages``.

    Raises:
        InputError: A part is of the wrong type, a setting is unknown or out of bounds, or something is given twice.
    """
    names: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for argument, part in parts.items():
        if isinstance(part, str | os.PathLike):
            names[_PARTS[argument].setting] = os.fspath(part)
        elif part is not None:
            if isinstance(part, type) or not _PARTS[argument].fits(part):
                raise InputError(f"{argument} is {_described(part)}; give {_PARTS[argument].description}")
            if argument == "generator":
                _check_plain(part, "generate", "name a coroutine function agenerate, beside a plain generate")
            objects[argument] = part
    own_inspectors, named_inspectors = _inspectors(inspectors)
    if named_inspectors:
        names["inspectors"] = named_inspectors
    return Resources(
        mllm=objects.get("mllm"),
        role_models={role: objects[role] for role in ROLES if role in objects},
        image_generator=objects.get("generator"),
        embedder=objects.get("embedder"),
        store=objects.get("store"),
        image_store=objects.get("images"),
        own_inspectors=own_inspectors,
        settings=_fixed_settings(settings, names, {_PARTS[argument].setting for argument in objects}),
        thumbnails=thumbnails,
    )


def check_checkpointer(checkpointer: object) -> None:
    """Check what is given as a checkpointer.

    Raises:
        InputError: It is neither a checkpointer, nor True, False or None, which LangGraph understands.
    """
    if not isinstance(checkpointer, BaseCheckpointSaver | bool | None):
        raise InputError(
            f"checkpointer is {_described(checkpointer)}; give a LangGraph checkpointer, such as InMemorySaver()"
        )


def _inspectors(inspectors: object) -> tuple[tuple[Any, ...], tuple[str, ...]]:
    """The inspectors that are objects, and the names of the others."""
    if isinstance(inspectors, str):
        inspectors = (inspectors,)
    choice = 'your own inspectors, or names such as "ocr"'
    if not isinstance(inspectors, Sequence):
        raise InputError(f"inspectors is {_described(inspectors)}; give a list of {choice}")
    for inspector in inspectors:
        if not isinstance(inspector, str) and (isinstance(inspector, type) or not _is_inspector(inspector)):
            raise InputError(f"an inspector is {_described(inspector)}; give {choice}")
        _check_plain(inspector, "inspect", "write a plain function: ainvoke calls it in a thread")
    objects = tuple(inspector for inspector in inspectors if not isinstance(inspector, str))
    return objects, tuple(inspector for inspector in inspectors if isinstance(inspector, str))


def _check_plain(part: object, method: str, what_to_do: str) -> None:
    if inspect.iscoroutinefunction(getattr(part, method, None)):
        raise InputError(f"{method} of {type(part).__name__} is a coroutine function; {what_to_do}")


def _fixed_settings(
    settings: Mapping[str, Any] | GemsContext | None, names: Mapping[str, Any], replaced: set[str]
) -> GemsContext | None:
    """The settings that are fixed for the graph, with the names that stand in for objects."""
    if settings is None and not names:
        return None
    context = (
        settings if isinstance(settings, GemsContext) else GemsContext.exactly({} if settings is None else settings)
    )
    if twice := sorted(context.model_fields_set & (names.keys() | replaced)):
        raise InputError(f"{twice[0]} is given twice, in settings and as an argument: leave one out")
    if names:
        fields = {name: getattr(context, name) for name in context.model_fields_set}
        context = GemsContext.exactly({**fields, **names}).with_authority(context.authority)
    check_names(context)
    return context.as_operator()


def _described(part: object) -> str:
    """A part of the wrong type, in words."""
    if isinstance(part, type):
        return f"the class {part.__name__}"
    is_wrapper = isinstance(part, RunnableBindingBase | RunnableWithFallbacks)
    wrapped = ", which is around a model, as bind, with_retry and with_fallbacks make it" if is_wrapper else ""
    return f"of type {type(part).__name__}{wrapped}"
