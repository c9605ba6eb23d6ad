"""Models by name, in the manner of LangChain's ``init_chat_model``: chat models, image generators and inspectors.

The protocols (``generators``, ``inspectors``) do not import their implementations. This module does, and imports each
one only when its name is used.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from langchain_core.language_models import BaseChatModel

from gems.errors import InputError
from gems.models.generators import ImageGenerator
from gems.models.inspectors import INSPECTORS, Inspector
from gems.options import ChatOptions, GeneratorOptions

__all__ = ["CHAT_FORMS", "FORMS", "POCKET", "init_image_generator", "init_inspector", "init_mllm", "model_fingerprint"]

CHAT_FORMS: Final = "pocket, transformers:FOLDER_OR_REPO[@REVISION], or PROVIDER:MODEL such as openai:gpt-5"
"""The names that ``init_mllm`` understands."""

FORMS: Final = "pocket, pocket-large, diffusers:FOLDER_OR_REPO[@REVISION], openai:MODEL, http:URL or comfyui:URL"
"""The names that ``init_image_generator`` understands."""

POCKET: Final = {"pocket": "generator", "pocket-large": "generator_large"}
"""The image generators that come with the package, and their folders of weights."""

_CHAT_DEFAULTS: Final = ChatOptions()
_GENERATOR_DEFAULTS: Final = GeneratorOptions()


@cache
def init_mllm(name: str, options: ChatOptions = _CHAT_DEFAULTS) -> BaseChatModel:
    """The vision chat model with a name; one per process and set of options.

    Args:
        name: One of ``CHAT_FORMS``. ``PROVIDER:MODEL`` is any name that LangChain's ``init_chat_model`` accepts. With a
            base URL in the options, a name without a provider is a model of an OpenAI-compatible server (vLLM, SGLang).
        options: How it is called. Keys and base URLs that are not given come from the environment variables of the
            provider.

    Raises:
        InputError: The provider is unknown, or its package or key is missing.
    """
    kind, _, model = name.partition(":")
    if name == "pocket":
        from gems.models.pocket.chat import PocketChatModel

        return PocketChatModel()
    if kind == "transformers" and model:
        from gems.models.transformers.chat import init_transformers_chat

        return init_transformers_chat(model, name, options)
    from gems.models.servers.providers import init_provider_chat

    return init_provider_chat(name, options, CHAT_FORMS)


@cache
def init_image_generator(name: str, options: GeneratorOptions = _GENERATOR_DEFAULTS) -> ImageGenerator:
    """The image generator with a name; one per process and set of options.

    Args:
        name: One of ``FORMS``: a model that comes with the package, any text-to-image pipeline that
            ``diffusers.DiffusionPipeline.from_pretrained`` loads, or a server.
        options: How images are drawn.

    Raises:
        InputError: The name has no known form.
        BackendError: The weights are missing or cannot be loaded.
    """
    kind, _, where = name.partition(":")
    if name in POCKET:
        from gems.models.diffusers.backend import DiffusersGenerator
        from gems.models.pocket.weights import weights_folder

        folder = weights_folder(POCKET[name])
        return DiffusersGenerator(str(folder), name=name, options=options, module="gems.models.pocket.pipeline")
    if kind == "diffusers" and where:
        from gems.models.diffusers.backend import DiffusersGenerator

        return DiffusersGenerator(where, name=name, options=options)
    if kind == "openai" and where:
        from gems.models.servers.openai_images import OpenAIImages

        return OpenAIImages(where, name=name, options=options)
    if kind in ("http", "https") and where:
        from gems.models.servers.openai_images import PlainImages

        return PlainImages(where if "://" in where else name, name=name, options=options)
    if kind == "comfyui" and where:
        from gems.models.servers.comfyui import ComfyUIImages

        return ComfyUIImages(where, name=name, options=options)
    raise InputError(f"unknown image generator {name!r}; give {FORMS}")


@cache
def init_inspector(name: str) -> Inspector | None:
    """The inspector with a name, one per process; None if its packages are not installed.

    Raises:
        InputError: The name is unknown.
    """
    if name not in INSPECTORS:
        raise InputError(f"unknown inspector {name!r}; there is {', '.join(INSPECTORS)}")
    try:
        from gems.models.ocr import OcrInspector
    except ImportError:
        return None
    return OcrInspector()


def model_fingerprint(model: BaseChatModel) -> str:
    """Identifies a chat model in a run's record, by the hash of its weights, or else by its model name."""
    for attribute in ("fingerprint", "model_name", "model"):
        value = getattr(model, attribute, None)
        if isinstance(value, str) and value:
            return value
    return type(model).__name__
