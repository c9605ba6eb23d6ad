"""Image generators by name, after the pattern of LangChain's ``init_chat_model``.

One protocol serves every backend: a batch of requests in; one result or one error per request out, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol, runtime_checkable

from PIL import Image

from gems.graph.errors import BackendError, InputError

__all__ = ["POCKET", "GeneratedImage", "ImageGenerator", "ImageRequest", "StepCallback", "init_image_generator"]


POCKET: Final = {"pocket": "generator", "pocket-large": "generator_large"}
"""Names of the models that come with the package, and their folders of weights."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to make. The seed is always honoured: the same request gives the same image on the same backend."""

    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One image and the request that it answers."""

    request: ImageRequest
    image: Image.Image


StepCallback = Callable[[int, int, int], None]
"""Called as (request index, denoising step from 1, number of steps)."""


@runtime_checkable
class ImageGenerator(Protocol):
    """What every backend offers."""

    @property
    def name(self) -> str:
        """The name that ``init_image_generator`` knows it by, such as "pocket"."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the weights: a revision or a hash. The same fingerprint and request give the same image."""
        ...

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """Make one image per request. A request that fails gives its error, in its place; the others go on."""
        ...


@cache
def init_image_generator(name: str) -> ImageGenerator:
    """The image generator of that name, made once per process.

    Args:
        name: ``"pocket"``, the model that comes with the package, ``"pocket-large"``, the same with ten times the
            parameters, or ``"diffusers:FOLDER_OR_REPO"``, any text-to-image pipeline that
            ``diffusers.DiffusionPipeline.from_pretrained`` loads.

    Raises:
        InputError: The name is of no known form.
        BackendError: The weights are not there or cannot be loaded.
    """
    kind, _, where = name.partition(":")
    if name in POCKET:
        from gems.models.diffusers_backend import DiffusersGenerator
        from gems.models.pocket.weights import weights_folder

        return DiffusersGenerator(weights_folder(POCKET[name]), name=name, module="gems.models.pocket.pipeline")
    if kind == "diffusers" and where:
        from gems.models.diffusers_backend import DiffusersGenerator

        return DiffusersGenerator(where, name=name)
    raise InputError(f'unknown image generator {name!r}; give "pocket", "pocket-large" or "diffusers:FOLDER_OR_REPO"')
