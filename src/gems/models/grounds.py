"""What is behind the transparent parts of an image: chat models, JPEG and viewers each make another ground of them."""

from __future__ import annotations

import math
from typing import Any, Final

from PIL import Image

__all__ = ["GREY_NOTE", "NothingToSeeError", "on_ground", "shows_nothing"]

GREY_NOTE: Final = "the image is white on a transparent ground, which was made grey so that it can be seen"
"""What to tell the user about an image that is not on white."""

_GREY: Final = (128, 128, 128)


class NothingToSeeError(ValueError):
    """An image is transparent everywhere."""


def shows_nothing(image: Image.Image) -> bool:
    """Whether an image has a single colour, as those that a filter has blacked out."""
    extremes: Any = image.convert("RGB").getextrema()
    return all(math.isclose(low, high, abs_tol=2) for low, high in extremes)


def on_ground(image: Image.Image) -> tuple[Image.Image, str]:
    """An image without transparency, and a note about its ground, which may be empty.

    The ground is white, or grey if all would be white then. An image without transparency stays as it is.

    Raises:
        NothingToSeeError: It is transparent everywhere.
    """
    if not image.has_transparency_data or image.mode.startswith("I"):  # of 16 bits, a single grey is transparent
        return image, ""
    layer = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    least, most = layer.getchannel("A").getextrema()
    if most == 0:
        raise NothingToSeeError("transparent everywhere")
    if least == 255:
        return layer.convert("RGB"), ""
    on_white = _composed(layer, (255, 255, 255))
    if shows_nothing(on_white) and not shows_nothing(on_grey := _composed(layer, _GREY)):
        return on_grey, GREY_NOTE
    return on_white, ""


def _composed(layer: Image.Image, ground: tuple[int, int, int]) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", layer.size, ground), layer).convert("RGB")
