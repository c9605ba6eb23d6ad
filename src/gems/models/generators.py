"""The protocol of image generators: a batch of requests in, one image or one error per request out, in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar, runtime_checkable

from langgraph.errors import GraphDrained
from PIL import Image

from gems.errors import BackendError
from gems.models.grounds import NothingToSeeError, on_ground
from gems.models.option_effects import ExplainsOptions, require_honoured
from gems.options import GeneratorOptions

__all__ = [
    "ASKS",
    "FURTHER_IMAGES",
    "Asynchronous",
    "Edit",
    "GeneratedImage",
    "Guided",
    "ImageGenerator",
    "ImageRequest",
    "Local",
    "ReadsSoMuch",
    "Step",
    "StepCallback",
    "check_generator_options",
    "draws_for_many",
    "edit_instruction",
    "excess_of",
    "guide_of",
    "images_at_once",
    "is_reproducible",
    "join_notes",
    "joint_negative_prompt",
    "objection_to",
    "opaque",
    "redraws_edits",
    "size_note",
    "takes_negative_prompts",
    "unless_stopped",
]

T = TypeVar("T")

ASKS: Final[ContextVar[Callable[[bool | None], bool]]] = ContextVar("gems_asks", default=lambda is_asked: True)
"""Called with True before a server is asked for the image that is being made, with False once it has made none, and
with None if it may have charged for one that is lost. Returns whether the budget has room for another request."""

FURTHER_IMAGES: Final[ContextVar[Callable[[int], None]]] = ContextVar("gems_further", default=lambda images: None)
"""Called before a server is asked for more images than a step draws, since earlier ones are lost and may be charged:
with the images that the run has asked for by then. Whoever reads about a killed run then knows of them."""

DEFAULTS: Final = GeneratorOptions()
"""The options of a generator that is given none."""


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """An image to start from, with what must stay and what must change, both as yes/no questions."""

    image: Image.Image
    keep: tuple[str, ...]
    """Questions that were answered "yes"."""
    fix: tuple[str, ...]
    """Questions that were not answered "yes"."""


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """One image to draw.

    On one machine, requests with the same prompt and seed give the same image from generators with the same
    fingerprint. There are two exceptions. A server that takes no seed, such as OpenAI's own API, draws a new image each
    time, and its runs cannot be replayed. A generator that draws several requests in one pass (``batch_size`` above 1)
    may give an image that differs in the last bits from the same request drawn alone.
    """

    prompt: str
    seed: int
    edit: Edit | None = None
    """Only a generator that ``edits`` is given one."""
    negative_prompt: str = ""
    """What must not be there; only a generator of which ``takes_negative_prompts`` is true is given one."""


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """An image, and the request that it answers."""

    request: ImageRequest
    image: Image.Image
    note: str | None = None
    """What the user should know about how it was drawn."""


@dataclass(frozen=True, slots=True)
class Step:
    """The progress of one image."""

    index: int
    """The index of its request."""
    step: int
    """Counts from 1 to ``steps``."""
    steps: int
    preview: Image.Image | None = None
    """A small picture of the unfinished image; None if there is none for this step."""


StepCallback = Callable[[Step], None]
"""Called after each denoising step of each image. An exception that it raises ends the generation."""


@runtime_checkable
class ImageGenerator(Protocol):
    """What every backend provides."""

    @property
    def name(self) -> str:
        """The name under which ``init_image_generator`` finds it, such as "pocket"."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identifies the weights, by a revision or a hash. See ``ImageRequest`` for what equal fingerprints promise."""
        ...

    @property
    def edits(self) -> bool:
        """Whether it can start from an image, that is, whether it honours ``ImageRequest.edit``."""
        ...

    def generate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """Draw one image per request. A request that fails has its error in its place; the others are not affected."""
        ...


@runtime_checkable
class Guided(Protocol):
    """What a backend may provide in addition: advice on writing its prompts."""

    @property
    def guide(self) -> str:
        """Advice on writing prompts for this model, read by chat models; empty if there is none."""
        ...

    def objection(self, prompt: str) -> str:
        """Why a prompt cannot be drawn, read by chat models; empty if it can."""
        ...


@runtime_checkable
class ReadsSoMuch(Protocol):
    """What a backend may provide in addition if its model reads no more than so much of a prompt."""

    def excess(self, prompt: str) -> str:
        """What is not read of a prompt, read by chat models; empty if all is, or if it cannot be told."""
        ...


@runtime_checkable
class Asynchronous(Protocol):
    """What a backend may provide in addition: a client for event loops, so that waiting for it holds no thread."""

    async def agenerate(
        self, requests: Sequence[ImageRequest], *, on_step: StepCallback | None = None
    ) -> list[GeneratedImage | BackendError]:
        """See ``ImageGenerator.generate``. A cancelled call ends at once, and sends nothing more."""
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
    per GPU, instead of in every worker.
    """

    @property
    def batch_size(self) -> int:
        """The most requests that one copy draws in one pass."""
        ...

    @property
    def replicas(self) -> Devices:
        """Its copies, one per device. The object's ``devices`` are the devices' names, such as "cuda:0" or "cpu"."""
        ...

    def load(self) -> None:
        """Load the weights now, rather than at the first image."""
        ...


def images_at_once(generator: ImageGenerator) -> int | None:
    """How many images a generator draws at the same time; None if only ``generate`` knows."""
    if isinstance(generator, Local):
        return max(1, generator.batch_size * len(generator.replicas.devices))
    return None


def draws_for_many(generator: ImageGenerator) -> bool:
    """Whether several calls of a generator, one image each, are as good as one call: those to a server."""
    return bool(getattr(generator, "draws_for_many", False))


def unless_stopped(results: Sequence[T | BackendError | GraphDrained]) -> list[T | BackendError]:
    """What became of images. If the run was stopped, those that were made meanwhile are paid for, and kept.

    Raises:
        GraphDrained: The run was stopped before any image was made.
    """
    is_empty = all(isinstance(result, (BackendError, GraphDrained)) for result in results)
    outcomes: list[T | BackendError] = []
    for result in results:
        if not isinstance(result, GraphDrained):
            outcomes.append(result)
        elif is_empty:
            raise result
        else:
            outcomes.append(BackendError("was not drawn, since the run was stopped", retryable=False))
    return outcomes


def guide_of(generator: ImageGenerator) -> str:
    """A generator's advice on prompts; empty if it has none, or if the model cannot be found."""
    try:
        return generator.guide if isinstance(generator, Guided) else ""
    except BackendError:
        return ""


def objection_to(generator: ImageGenerator, prompt: str) -> str:
    """Why a generator cannot draw a prompt; empty if it can, or if it cannot tell in advance."""
    try:
        return generator.objection(prompt) if isinstance(generator, Guided) else ""
    except BackendError:
        return ""


def excess_of(generator: ImageGenerator, prompt: str) -> str:
    """What a generator does not read of a prompt; empty if it reads all, or if it cannot tell in advance."""
    try:
        return generator.excess(prompt) if isinstance(generator, ReadsSoMuch) else ""
    except BackendError:
        return ""


def check_generator_options(generator: ImageGenerator, *, on_this_machine: bool = True) -> None:
    """Check that a generator honours each of its options, as far as it can tell before it draws.

    Args:
        generator: The generator; one that is not ``ExplainsOptions`` has refused options when it was made, or never.
        on_this_machine: Also judge what depends on this machine.

    Raises:
        RefusedOptionsError: It would ignore an option.
        BackendError: The model cannot be found.
    """
    if isinstance(generator, ExplainsOptions):
        require_honoured(generator.name, generator.option_effects(on_this_machine=on_this_machine))


def is_reproducible(generator: ImageGenerator) -> bool:
    """Whether the same prompt and seed give the same image again; see ``ImageRequest``.

    A generator whose ``reproducible`` is False takes no seed. One without the attribute honours seeds.
    """
    return bool(getattr(generator, "reproducible", True))


def redraws_edits(generator: ImageGenerator) -> bool:
    """Whether an edit draws the whole image again, with noise on it, instead of what is wrong in it.

    A generator whose ``redraws_edits`` is True does, as image-to-image models do.
    """
    return bool(getattr(generator, "redraws_edits", False))


def takes_negative_prompts(generator: ImageGenerator) -> bool:
    """Whether the model reads ``ImageRequest.negative_prompt`` as its options are: mostly a matter of guidance.

    A generator without the attribute ``takes_negative_prompts`` does not.
    """
    try:
        return bool(getattr(generator, "takes_negative_prompts", False))
    except BackendError:  # the model cannot be found
        return False


def joint_negative_prompt(of_all: str | None, request: ImageRequest) -> str | None:
    """The negative prompt of all images, with what must not be in this one; None if there is neither."""
    parts = [part for part in (of_all, request.negative_prompt) if part and part.strip()]
    return ", ".join(parts) or of_all


def size_note(name: str, size: tuple[int | None, int | None], image: Image.Image) -> str | None:
    """What to tell the user about an image of another size than requested; None if it has that size.

    Args:
        name: The generator's name.
        size: The requested width and height; None for a side that was left to the model.
        image: The image that was drawn.
    """
    width, height = size[0] or image.width, size[1] or image.height
    if image.size == (width, height):
        return None
    return f"{name} was asked for {width}x{height} pixels and drew {image.width}x{image.height}"


def opaque(outcome: GeneratedImage | BackendError) -> GeneratedImage | BackendError:
    """What a generator drew, without transparency, which whoever looks at it would each fill with another colour."""
    if isinstance(outcome, BackendError):
        return outcome
    try:
        image, note = on_ground(outcome.image)
    except NothingToSeeError as nothing:
        return BackendError(f"the generator drew an image that is {nothing}", retryable=False)
    return outcome if image is outcome.image else replace(outcome, image=image, note=join_notes(outcome.note, note))


def join_notes(*notes: str | None) -> str | None:
    """Several notes about one image; None if there are none."""
    return "; ".join(filter(None, notes)) or None


def edit_instruction(request: ImageRequest) -> str:
    """The prompt of a request or, for an edit, an instruction: what must become true, and what must stay true."""
    if request.edit is None:
        return request.prompt
    parts = [f"Change the image so that it shows: {request.prompt}"]
    if request.edit.fix:
        parts.append("These must become true: " + " ".join(request.edit.fix))
    if request.edit.keep:
        parts.append("These are true already and must stay so: " + " ".join(request.edit.keep))
    return "\n".join(parts)
