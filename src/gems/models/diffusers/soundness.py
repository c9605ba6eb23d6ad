"""Tells images from what a pipeline returns in place of one.

A pipeline whose numbers overflow, often in the decoder in float16, returns black pixels without an error: numpy makes 0
of NaN. A safety checker returns black images too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from gems.errors import BackendError, ContentRefusedError
from gems.models.grounds import NothingToSeeError, on_ground

__all__ = ["PixelWatch", "watch_pixels"]

NOT_FINITE: Final = (
    "the pipeline's pixels are not numbers (NaN), so there is no image; try the option dtype=float32 or bfloat16, or "
    "other weights"
)
REFUSED: Final = "the pipeline's safety checker blacked the image out"


class PixelWatch:
    """What was noticed during one call of a pipeline."""

    def __init__(self) -> None:
        self.are_finite: list[bool] = []
        """For each image, whether its decoded pixels are finite numbers; empty if the pipeline does not show them."""
        self.has_invalid_casts = False
        """Whether NaN was cast to an integer somewhere."""

    def results_of(self, output: Any, field: str, name: str) -> list[Image.Image | BackendError]:
        """The images of a pipeline's output, each without transparency, or the reason why it is none.

        Args:
            output: What the pipeline returned.
            field: The field of the output that holds the images.
            name: The names of the generator and the pipeline, for messages.

        Raises:
            BackendError: The output holds no images.
        """
        images = getattr(output, field, None)
        if not isinstance(images, Sequence) or not all(isinstance(image, Image.Image) for image in images):
            raise BackendError(f"{name} returned a {type(output).__name__} without images", retryable=False)
        flags = getattr(output, "nsfw_content_detected", None)
        refused = flags if isinstance(flags, Sequence) and len(flags) == len(images) else [False] * len(images)
        return [
            ContentRefusedError(f"{name}: {REFUSED}") if flag else self._sound(index, images, name)
            for index, flag in enumerate(refused)
        ]

    def _sound(self, index: int, images: Sequence[Image.Image], name: str) -> Image.Image | BackendError:
        image = images[index]
        if len(self.are_finite) == len(images):
            is_image = self.are_finite[index]
        else:
            is_image = not (self.has_invalid_casts and _is_black(image))
        if not is_image:
            return BackendError(f"{name}: {NOT_FINITE}", retryable=False)
        try:
            return on_ground(image)[0]
        except NothingToSeeError as nothing:
            return BackendError(f"{name} drew an image that is {nothing}", retryable=False)


@contextmanager
def watch_pixels(pipeline: Any) -> Iterator[PixelWatch]:
    """Watch the pixels of a pipeline, which nobody else may use meanwhile, for the duration of the block."""
    watch = PixelWatch()
    processor = getattr(pipeline, "image_processor", None)
    postprocess = getattr(processor, "postprocess", None)

    def watched(image: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(image, torch.Tensor) and image.ndim == 4:
            watch.are_finite += torch.isfinite(image).flatten(1).all(1).tolist()
        return postprocess(image, *arguments, **options)  # type: ignore[misc]

    def on_invalid(*_: Any) -> None:
        watch.has_invalid_casts = True

    if callable(postprocess):
        processor.postprocess = watched  # type: ignore[union-attr]
    try:
        with np.errstate(invalid="call", call=on_invalid):
            yield watch
    finally:
        if callable(postprocess):
            del processor.postprocess  # type: ignore[union-attr]


def _is_black(image: Image.Image) -> bool:
    return image.convert("RGB").getbbox() is None
