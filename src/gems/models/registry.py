"""Models by name, in the manner of LangChain's ``init_chat_model``: chat models, image generators and inspectors.

The protocols (``generators``, ``inspectors``) do not import their implementations. This module does, and imports each
one only when its name is used.
"""

from __future__ import annotations

from typing import Final

from langchain_core.language_models import BaseChatModel

from gems.authority import NO_AUTHORITY, Authority, call_factory, is_code
from gems.errors import InputError
from gems.models.generators import ImageGenerator
from gems.models.inspectors import INSPECTORS, Inspector
from gems.options import ChatOptions, GeneratorOptions
from gems.shared import shared

__all__ = [
    "CHAT_FORMS",
    "FORMS",
    "LIMITS",
    "POCKET",
    "check_chat_name",
    "check_generator_name",
    "check_inspector_name",
    "init_image_generator",
    "init_inspector",
    "init_mllm",
    "model_fingerprint",
]

CHAT_FORMS: Final = (
    "pocket, open, transformers:FOLDER_OR_REPO[@REVISION], python:MODULE:FACTORY, or PROVIDER:MODEL such as "
    "openai:gpt-5"
)
"""The names that ``init_mllm`` understands."""

FORMS: Final = (
    "pocket, pocket-large, open, diffusers:FOLDER_OR_REPO[@REVISION], diffusers:FILE.safetensors, openai:MODEL, "
    "http:URL, comfyui:URL or python:MODULE:FACTORY"
)
"""The names that ``init_image_generator`` understands."""

POCKET: Final = {"pocket": "generator", "pocket-large": "generator_large"}
"""The image generators that come with the package, and their folders of weights."""

_ANYTHING_ELSE: Final = (
    "For anything else start GEMS with real ones: --generator takes any diffusers pipeline or image server, --mllm any "
    "chat model."
)

LIMITS: Final = {
    "open": f"The open models draw simple scenes of some 800 things, in thirteen languages. {_ANYTHING_ELSE}",
    **dict.fromkeys(POCKET, f"The pocket models draw 40 things, which gems doctor lists. {_ANYTHING_ELSE}"),
}
"""What the image generators that come with the package draw, for people who meet them without a manual."""

_GENERATOR_MEMBERS: Final = ("name", "fingerprint", "edits", "generate")
"""The members of ``ImageGenerator``."""

_SERVERS: Final = ("openai", "http", "https", "comfyui")
"""Kinds of image generators behind HTTP."""

_CHAT_DEFAULTS: Final = ChatOptions()
_GENERATOR_DEFAULTS: Final = GeneratorOptions()


def check_chat_name(name: str, options: ChatOptions = _CHAT_DEFAULTS) -> None:
    """Check the form of a chat model's name. Nothing is imported for it, loaded or contacted.

    Raises:
        InputError: No chat model can have this name.
    """
    kind, _, model = name.partition(":")
    if (
        name in ("pocket", "open")
        or is_code(name)
        or (kind in ("transformers", "openai") and model)
        or options.base_url
    ):
        return
    from gems.models.servers.providers import is_of_provider

    if not is_of_provider(name):
        raise InputError(
            f"unknown chat model {name!r}; give {CHAT_FORMS}; for a model of a server of your own, openai:MODEL with "
            "base_url in the chat options"
        )


def check_generator_name(name: str) -> None:
    """Check the form of an image generator's name, as ``check_chat_name`` does.

    Raises:
        InputError: No image generator can have this name.
    """
    kind, _, where = name.partition(":")
    if name not in (*POCKET, "open") and not is_code(name) and not (kind in ("diffusers", *_SERVERS) and where):
        raise InputError(f"unknown image generator {name!r}; give {FORMS}")


def check_inspector_name(name: str) -> None:
    """Check an inspector's name.

    Raises:
        InputError: The name is unknown.
    """
    if name not in INSPECTORS:
        raise InputError(f"unknown inspector {name!r}; choose from: {', '.join(INSPECTORS)}")


def init_mllm(name: str, options: ChatOptions = _CHAT_DEFAULTS, authority: Authority = NO_AUTHORITY) -> BaseChatModel:
    """The vision chat model with this name, made once per process and set of options.

    ``python:MODULE:FACTORY`` is your own chat model: MODULE is imported, and FACTORY is called with ``options`` as its
    only argument. It returns a LangChain chat model; if that has a ``fingerprint``, records identify the model by it.
    ``authority`` must allow code, addresses, keys,
    folders and downloads.

    Args:
        name: One of ``CHAT_FORMS``. ``PROVIDER:MODEL`` is any that LangChain's ``init_chat_model`` takes; with a base
            URL in the options, a name without a provider is a model of an OpenAI-compatible server (vLLM, SGLang, ...).
        options: How the model is called. Keys and base URLs that are not given come from the provider's own environment
            variables.
        authority: What the operator allows.

    Raises:
        InputError: The name has no known provider, the provider's package or key is missing, or it names code that is
            not allowed, is missing, or returns no chat model.
    """
    authority.check_model(name, options, "chat_options")  # outside the cache: a model is not for every caller
    return _chat_model(name, options, authority.may_download(name))


@shared
def _chat_model(name: str, options: ChatOptions, may_download: bool) -> BaseChatModel:
    kind, _, model = name.partition(":")
    if name == "pocket":
        from gems.models.pocket.chat import PocketChatModel

        return PocketChatModel()
    if name == "open":
        from gems.models.open.chat import OpenChatModel

        return OpenChatModel()
    if kind == "transformers" and model:
        from gems.models.transformers.chat import init_transformers_chat

        return init_transformers_chat(model, name, options, may_download=may_download)
    if is_code(name):
        return _own_chat_model(name, options)
    from gems.models.servers.providers import init_provider_chat

    return init_provider_chat(name, options, CHAT_FORMS)


def _own_chat_model(name: str, options: ChatOptions) -> BaseChatModel:
    model = call_factory(name, options)
    if not isinstance(model, BaseChatModel):
        raise InputError(f"{name} returned {type(model).__name__}, which is not a LangChain chat model")
    return model


def init_image_generator(
    name: str, options: GeneratorOptions = _GENERATOR_DEFAULTS, authority: Authority = NO_AUTHORITY
) -> ImageGenerator:
    """The image generator with this name, made once per process and set of options.

    ``python:MODULE:FACTORY`` is your own generator: MODULE is imported, and FACTORY is called with ``options`` as its
    only argument. It returns an ``ImageGenerator``, which can also be ``Guided`` and ``Local``, and refuses an option
    that it cannot honour with an ``InputError``. ``authority`` must allow code, addresses, keys,
    folders and downloads.

    Args:
        name: One of ``FORMS``: a model that comes with the package, any text-to-image pipeline that
            ``diffusers.DiffusionPipeline.from_pretrained`` loads, a server, or your own code.
        options: How the generator is run.
        authority: What the operator allows.

    Raises:
        InputError: The name has no known form, or names code that is not allowed, is missing, or returns no generator.
        BackendError: The weights are missing or cannot be loaded.
    """
    authority.check_model(name, options, "generator_options")  # outside the cache: it is not for every caller
    return _image_generator(name, options, authority.may_download(name))


@shared
def _image_generator(name: str, options: GeneratorOptions, may_download: bool) -> ImageGenerator:
    check_generator_name(name)
    kind, _, where = name.partition(":")
    if name in POCKET:
        from gems.models.diffusers.backend import DiffusersGenerator
        from gems.models.pocket.weights import weights_folder

        folder = weights_folder(POCKET[name])
        return DiffusersGenerator(str(folder), name=name, options=options)
    if name == "open":
        from gems.models.diffusers.backend import DiffusersGenerator
        from gems.models.open.weights import GENERATOR, open_weights

        folder = open_weights(GENERATOR)
        return DiffusersGenerator(str(folder), name=name, options=options)
    if kind == "diffusers":
        from gems.models.diffusers.backend import DiffusersGenerator

        return DiffusersGenerator(where, name=name, options=options, may_download=may_download)
    if kind == "openai":
        from gems.models.servers.openai_images import OpenAIImages

        return OpenAIImages(where, name=name, options=options)
    if kind in ("http", "https"):
        from gems.models.servers.openai_images import PlainImages

        return PlainImages(where if "://" in where else name, name=name, options=options)
    if kind == "comfyui":
        from gems.models.servers.comfyui import ComfyUIImages

        return ComfyUIImages(where, name=name, options=options)
    return _own_generator(name, options)


def _own_generator(name: str, options: GeneratorOptions) -> ImageGenerator:
    generator = call_factory(name, options)
    if missing_members := [member for member in _GENERATOR_MEMBERS if not hasattr(generator, member)]:
        kind, missing = type(generator).__name__, ", ".join(missing_members)
        raise InputError(f"{name} returned {kind}, which is not an image generator: it has no {missing}")
    checked: ImageGenerator = generator
    return checked


@shared
def init_inspector(name: str) -> Inspector | None:
    """The inspector with a name, one per process; None if its packages are not installed.

    Raises:
        InputError: The name is unknown.
    """
    check_inspector_name(name)
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
