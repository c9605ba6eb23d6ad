"""Image generators by name, after the pattern of LangChain's ``init_chat_model``.

One protocol serves every backend: a batch of requests in; one result or one error per request out, in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from PIL import Image

from gems.errors import BackendError
from gems.options import GeneratorOptions

__all__ = [
    "Edit",
    "GeneratedImage",
    "Guided",
    "ImageGenerator",
    "ImageRequest",
    "Local",
    "Step",
    "StepCallback",
    "edit_instruction",
    "guide_of",
    "objection_to",
]


DEFAULTS: Final = GeneratorOptions()


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """An image to start from, what is right in it and has to stay, and what is wrong and has to change.

    Both as yes/no questions: ``keep`` was answered "yes", ``fix`` was not.
    """

    image: Image.Image
    keep: tuple[str, ...]
    fix: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to make. The seed is always honoured: the same request gives the same image on the same backend.

    ``edit`` is only ever given to a generator that ``edits``.
    """

    prompt: str
    seed: int
    edit: Edit | None = None


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One image and the request that it answers; ``note`` is what the user should know of how it was made."""

    request: ImageRequest
    image: Image.Image
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """How far an image has come: ``step`` counts from 1 to ``steps``; a preview is small, and not always there."""

    index: int
    step: int
    steps: int
    preview: Image.Image | None = None


StepCallback = Callable[[Step], None]
"""Called after each denoising step of the request at ``Step.index``. What it raises ends the generation."""


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

    @property
    def edits(self) -> bool:
        """Whether it can start from an image: requests with an ``edit`` are honoured."""
        ...

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """Make one image per request. A request that fails gives its error, in its place; the others go on."""
        ...


@runtime_checkable
class Guided(Protocol):
    """What a backend may offer besides: advice to those who write its prompts."""

    @property
    def guide(self) -> str:
        """How this model wants to be prompted, for a chat model to read; empty if nothing is known."""
        ...

    def objection(self, prompt: str) -> str:
        """Why this prompt cannot be drawn, for a chat model to read; empty if it can."""
        ...


class Devices(Protocol):
    """Where copies of a model are."""

    @property
    def devices(self) -> Sequence[str]:
        """The devices' names, such as "cuda:0" or "cpu"."""
        ...


@runtime_checkable
class Local(Protocol):
    """What a backend that draws in this process may offer as well.

    Bulk runs then call it from one thread, with the requests of many prompts at a time. On Ray it runs in one process
    for each GPU, instead of in every worker.
    """

    @property
    def batch_size(self) -> int:
        """The most requests that one copy draws in one pass."""
        ...

    @property
    def replicas(self) -> Devices:
        """Its copies, one on each device."""
        ...

    def load(self) -> None:
        """Load the weights now, rather than at the first image."""
        ...


def guide_of(generator: ImageGenerator) -> str:
    """The advice of a generator that has some; empty for others, and where the model is not there to be asked."""
    try:
        return generator.guide if isinstance(generator, Guided) else ""
    except BackendError:
        return ""


def objection_to(generator: ImageGenerator, prompt: str) -> str:
    """Why a generator cannot draw a prompt; empty if it can, or does not tell beforehand."""
    try:
        return generator.objection(prompt) if isinstance(generator, Guided) else ""
    except BackendError:
        return ""


def edit_instruction(request: ImageRequest) -> str:
    """The prompt or, of an edit, what to tell a model that reads instructions: what has to stay and what to change."""
    if request.edit is None:
        return request.prompt
    parts = [f"Change the image so that it shows: {request.prompt}"]
    if request.edit.fix:
        parts.append("These must become true: " + " ".join(request.edit.fix))
    if request.edit.keep:
        parts.append("These are true already and must stay so: " + " ".join(request.edit.keep))
    return "\n".join(parts)
