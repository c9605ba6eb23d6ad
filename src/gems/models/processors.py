"""Processors of transformers without torchvision, which no CPU build of torch has a match for in the package registry.

Many processors name torchvision although only videos, or images, need it: a pipeline that draws from text asks its
processor for tokens alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["missing_backends", "replaced_processors", "without_video"]


def missing_backends(component: object) -> list[str]:
    """The packages that a class misses: transformers and diffusers give a dummy that names them in its place."""
    return list(vars(component).get("_backends", ())) if isinstance(component, type) else []


@contextmanager
def replaced_processors(names: Iterable[str]) -> Iterator[None]:
    """For the duration of the block, let transformers find processors that load without torchvision under these names.

    Args:
        names: Names of classes of transformers. Those that load as they are stay.
    """
    import transformers
    from transformers.utils import is_torchvision_available

    originals = {} if is_torchvision_available() else {name: getattr(transformers, name, None) for name in names}
    try:
        for name, kind in originals.items():
            if kind is not None:
                setattr(transformers, name, _replacement(kind))
        yield
    finally:
        for name, kind in originals.items():
            if kind is not None:
                setattr(transformers, name, kind)


@cache
def _replacement(kind: Any) -> Any:
    """The class to load in place of a processor's class; the class itself if there is no need."""
    missing = missing_backends(kind)
    if missing == ["torchvision"] and kind.__name__.endswith("Processor"):
        return _text_processor(kind.__name__, kind.__module__)
    parts = None if missing else getattr(kind, "get_attributes", None)  # of processors alone
    return without_video(kind) if parts and "video_processor" in parts() else kind


@cache
def without_video(kind: Any) -> Any:
    """A subclass of a processor's class that takes no video processor.

    Video processors need torchvision. The processors of Qwen's models require one although images never use it. A
    processor's parts are the arguments of its ``__init__``, so removing that argument removes the requirement.
    """

    def __init__(  # noqa: N807
        self: Any, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **kwargs: Any
    ) -> None:
        kind.__init__(self, image_processor=image_processor, tokenizer=tokenizer, chat_template=chat_template, **kwargs)

    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})


def _text_processor(name: str, module: str) -> Any:
    """A processor for a class whose module cannot be imported: its tokenizer and chat template, for text alone."""
    from transformers import ProcessorMixin

    def __init__(self: Any, tokenizer: Any = None, chat_template: Any = None, **_: Any) -> None:  # noqa: N807
        ProcessorMixin.__init__(self, tokenizer, chat_template=chat_template)

    def __call__(self: Any, images: Any = None, text: Any = None, **kwargs: Any) -> Any:  # noqa: N807
        if images is not None:
            raise ImportError(f"{name} needs torchvision for images: pip install torchvision")
        return self.tokenizer(text, **{key: value for key, value in kwargs.items() if key != "videos"})

    return type(name, (ProcessorMixin,), {"__init__": __init__, "__call__": __call__, "__module__": module})
