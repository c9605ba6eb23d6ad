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

    def fault_of(self, index: int, output: Any, name: str) -> BackendError | None:
        """Why an image of the pipeline's output is none; None if it is one.

        Args:
            index: The index of the image.
            output: What the pipeline returned.
            name: The generator's name, for the message.
        """
        flags = getattr(output, "nsfw_content_detected", None)
        if isinstance(flags, Sequence) and index < len(flags) and flags[index]:
            return ContentRefusedError(f"{name}: {REFUSED}")
        images: Sequence[Image.Image] = output.images
        if len(self.are_finite) == len(images):
            is_image = self.are_finite[index]
        else:
            is_image = not (self.has_invalid_casts and _is_black(images[index]))
        return None if is_image else BackendError(f"{name}: {NOT_FINITE}", retryable=False)


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
