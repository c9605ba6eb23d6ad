"""Modular repositories of diffusers, run as what they are in other repositories: pipelines with a call.

A modular pipeline is put together from blocks and takes whatever these take. The class that is made here has the call,
the loading and the parts of a ``DiffusionPipeline``, as far as this package uses them. It draws from text: arguments
that begin with an image, latents or a mask are left out. How it is guided, its own guider decides.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Self

from gems.errors import BackendError, InputError

__all__ = ["MODULAR_INDEX", "modular_class"]

MODULAR_INDEX: Final = "modular_model_index.json"
"""The index of a modular repository."""

_ARGUMENTS: Final = frozenset(
    {
        "prompt",
        "negative_prompt",
        "height",
        "width",
        "num_inference_steps",
        "max_sequence_length",
        "generator",
        "sigmas",
    }
)
"""The inputs of the blocks that the call takes, if they have them."""


class _ModularCall:
    """A modular pipeline with the interface of a ``DiffusionPipeline``; ``modular_class`` makes subclasses of it."""

    model_cpu_offload_seq: Final = None

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @classmethod
    def from_pretrained(
        cls, path: str, *, revision: str | None, dtype: Any, variant: str | None = None, **options: Any
    ) -> Self:
        """Load all parts; those that lie beside the index are taken from there, wherever the index says they are.

        Raises:
            BackendError: A part cannot be loaded.
            InputError: An option is not for modular pipelines.
        """
        from diffusers import ModularPipeline

        if options.get("local_files_only"):  # its index may say that parts are in other repositories
            raise InputError(f"{path} is a modular repository, which may download: name it on the command line")
        if options.get("quantization_config") is not None:
            raise InputError("quantization: the parts of a modular repository are not quantized; leave it out")
        inner = ModularPipeline.from_pretrained(path, revision=revision, trust_remote_code=False)
        names = inner.pretrained_component_names
        folders = {name: path for name in names if (Path(path) / name).is_dir()}
        models = {name: True for name in names if name not in ("scheduler", "tokenizer", "processor")}
        inner.load_components(
            dtype=dtype,
            use_safetensors=models,
            **({"variant": variant} if variant else {}),
            **({"pretrained_model_name_or_path": folders} if folders else {}),
        )
        if missing := [name for name in names if getattr(inner, name, None) is None]:
            raise BackendError(f"{path}: its {', '.join(missing)} cannot be loaded", retryable=False)
        return cls(inner)

    def to(self, device: str) -> Self:
        """Move all parts to a device."""
        self._inner.to(device)
        return self

    def register_modules(self, **parts: Any) -> None:
        """Exchange parts."""
        self._inner.update_components(**parts)

    def maybe_free_model_hooks(self) -> None:
        """Do nothing: there is no offloading."""

    def enable_sequential_cpu_offload(self, **_: Any) -> None:
        """Refuse.

        Raises:
            InputError: Always.
        """
        raise InputError("offload: modular pipelines are not offloaded; leave it out")

    def draw(self, **arguments: Any) -> SimpleNamespace:
        """The images for these inputs of the blocks, as the output of a pipeline's call."""
        return SimpleNamespace(images=self._inner(output="images", **arguments))


def modular_class(index: Mapping[str, Any], path: str) -> type:
    """A pipeline class for a modular repository, under the name of the family's ordinary class.

    Args:
        index: The content of its index.
        path: Names it in errors.

    Raises:
        BackendError: diffusers does not have its blocks, or they make no images from text.
    """
    import diffusers

    kind = getattr(diffusers, str(index.get("_class_name")), None)
    name = index.get("_blocks_class_name") or getattr(kind, "default_blocks_name", None)
    blocks = getattr(diffusers, str(name), None) or getattr(diffusers.modular_pipelines, str(name), None)
    if not inspect.isclass(blocks):
        raise BackendError(
            f"{path} is a modular repository of blocks ({name}) that diffusers {diffusers.__version__} does not have: "
            "use one with a model_index.json, or a server that runs it",
            retryable=False,
        )
    assembled_blocks: Any = blocks()
    inputs = {item.name for item in assembled_blocks.inputs}
    if "prompt" not in inputs or "images" not in {item.name for item in assembled_blocks.outputs}:
        raise BackendError(f"{path} is a modular repository that makes no images from text", retryable=False)
    return _with_call(str(index["_class_name"]).replace("Modular", ""), assembled_blocks.inputs)


def _with_call(name: str, inputs: list[Any]) -> type:
    """The class with a call that takes the inputs for drawing from text, with their defaults."""
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter("self", positional)]
    parameters += [
        inspect.Parameter(item.name, positional, default=item.default) for item in inputs if item.name in _ARGUMENTS
    ]

    def call(self: _ModularCall, **arguments: Any) -> SimpleNamespace:
        return self.draw(**arguments)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return type(name, (_ModularCall,), {"__call__": call, "__module__": __name__})
