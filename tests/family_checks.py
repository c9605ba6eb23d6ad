"""What every pipeline class that draws must do, tried on a tiny pipeline: for the tests, and for the benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from forked import gems_here
from numpy.typing import NDArray
from PIL import Image
from tiny_families import save_family

from gems.models.diffusers.backend import DiffusersGenerator
from gems.models.diffusers.families import DRAWING
from gems.models.diffusers.option_checks import size_multiple
from gems.models.diffusers.source import PipelineSource, accepts
from gems.models.generators import Edit, GeneratedImage, ImageRequest, Step
from gems.options import GeneratorOptions

__all__ = ["TOLERANCE", "Behaviour", "behaviour_of"]

TOLERANCE: Final = 2
"""How far an image of a batch may be from the one drawn alone, of 255: random weights amplify the last bits."""

SIDE: Final = 32
STEPS: Final = 3
PROMPTS: Final = ("two red cars", "a striped cat that sits to the left of a dog")


@dataclass(frozen=True)
class Behaviour:
    """What a pipeline did.

    Attributes:
        size: Width and height of an image that was asked for with 32 x 32 pixels, or the smallest size of its class.
        generated: Whether `gems generate` left an image, and `gems doctor` approved of the pipeline.
        repeated: Largest difference of a pixel between two images with the same prompt and seed, of 255.
        reseeded: Largest difference between two images with other seeds.
        batched: Largest difference between the images of a batch and those drawn alone; None if it draws no batches.
        negated: Largest difference that a negative prompt makes; None if it takes none. It may be 0: Lumina 2 guides in
            the first quarter of its steps only, of which three steps have none.
        cancelled: Whether the listener's exception ended the call after the second step.
        edited: Largest difference between edits of two images; None if it edits none.
    """

    size: tuple[int, int]
    generated: bool
    repeated: int
    reseeded: int
    batched: int | None
    negated: int | None
    cancelled: bool
    edited: int | None

    @property
    def is_right(self) -> bool:
        """Whether it did all that a pipeline must do."""
        return (
            self.generated
            and self.repeated == 0
            and self.reseeded > 10
            and (self.batched or 0) <= TOLERANCE
            and self.cancelled
            and self.edited != 0
        )


def behaviour_of(name: str, folder: Path) -> Behaviour:
    """Build the tiny pipeline of this class, and try it.

    Args:
        name: The name of the class.
        folder: A folder for the pipeline, and for the results of a run.
    """
    source = save_family(name, folder / name)
    alone = _generator(source)
    images = [_draw(alone, [ImageRequest(prompt, 7)])[0] for prompt in PROMPTS]
    [again, other] = (_draw(alone, [ImageRequest(PROMPTS[0], seed)])[0] for seed in (7, 8))
    batched = None
    if DRAWING[name].is_batch_sound:
        batch = _draw(_generator(source, batch_size=2), [ImageRequest(prompt, 7) for prompt in PROMPTS])
        batched = max(map(_difference, images, batch))
    negated = None
    if alone.takes_negative_prompts:
        [image] = _draw(alone, [ImageRequest(PROMPTS[0], 7, negative_prompt="a striped cat")])
        negated = _difference(images[0], image)
    return Behaviour(
        size=(images[0].shape[1], images[0].shape[0]),
        generated=_generates(source, folder),
        repeated=_difference(images[0], again),
        reseeded=_difference(images[0], other),
        batched=batched,
        negated=negated,
        cancelled=_cancels(alone),
        edited=_edited(source) if alone.edits else None,
    )


def _options(source: Path, factor: int = 1) -> dict[str, int]:
    """A small size and few steps, as far as the class takes them."""
    pipeline = PipelineSource(str(source))
    side = factor * max(SIDE, size_multiple(pipeline))
    sizes = {"width": side, "height": side} if accepts(pipeline.pipeline_class, "width") else {}
    return {**sizes, "steps": STEPS}


def _generator(source: Path, factor: int = 1, batch_size: int | None = None) -> DiffusersGenerator:
    options = GeneratorOptions(**_options(source, factor), batch_size=batch_size)
    return DiffusersGenerator(str(source), name=f"diffusers:{source.name}", options=options)


def _draw(generator: DiffusersGenerator, requests: list[ImageRequest]) -> list[NDArray[np.int16]]:
    results = generator.generate(requests)
    errors = [result for result in results if not isinstance(result, GeneratedImage)]
    if errors:
        raise errors[0]
    return [np.asarray(result.image, np.int16) for result in results if isinstance(result, GeneratedImage)]


def _difference(image: NDArray[np.int16], other: NDArray[np.int16]) -> int:
    return int(abs(image - other).max())


def _generates(source: Path, folder: Path) -> bool:
    """Run `gems doctor` and `gems generate` in this process."""
    words = ["--generator", f"diffusers:{source}"]
    for option, value in _options(source).items():
        words += ["--generator-option", f"{option}={value}"]
    if gems_here("doctor", *words, home=folder / "home").returncode:
        return False
    run = ["--seed", 7, "--max-rounds", 1, "--no-memory", "--no-skills", "--quiet", "--out", folder / "out"]
    result = gems_here("generate", PROMPTS[0], *words, *run, home=folder / "home")
    return result.returncode in (0, 1) and any(folder.glob("out/*/best.png"))  # 1: the image is not what was asked for


class _StopError(Exception):
    """What a listener raises to end a call."""


def _cancels(generator: DiffusersGenerator) -> bool:
    steps: list[Step] = []

    def listener(step: Step) -> None:
        steps.append(step)
        if step.step == 2:
            raise _StopError

    try:
        generator.generate([ImageRequest(PROMPTS[0], 7)], on_step=listener)
    except _StopError:
        return [step.step for step in steps] == [1, 2]
    return False


def _edited(source: Path) -> int:
    generator = _generator(source, 2)  # Flux2 takes no smaller ones
    side = _options(source, 2)["width"]
    edits = [Edit(Image.new("RGB", (side, side), colour), (), ("Is it green?",)) for colour in ("red", "blue")]
    [red, blue] = (_draw(generator, [ImageRequest(PROMPTS[0], 7, edit)])[0] for edit in edits)
    return _difference(red, blue)
