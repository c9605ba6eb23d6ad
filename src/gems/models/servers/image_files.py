"""Image files as servers send them, which may be torn, huge, or no images at all."""

from __future__ import annotations

import io
import math
from typing import Final

from PIL import Image, ImageFile, ImageOps

from gems.errors import BackendError
from gems.models.grounds import NothingToSeeError, on_ground, shows_nothing
from gems.models.image_work import excess_work
from gems.models.servers.bodies import JPEG
from gems.models.servers.retries import PassingError

__all__ = ["MAX_PIXELS", "NOTE", "decode_image"]

MAX_PIXELS: Final = 64 * 2**20
"""Size of the largest accepted image, in pixels: a small file can unfold into gigabytes (a decompression bomb)."""

NOTE: Final = "gems_note"
"""The entry of an image's ``info`` that says what the user should know of it."""

_FORMATS: Final = ("PNG", "JPEG", "WEBP", "AVIF")


def decode_image(data: bytes, source: str) -> Image.Image:
    """Decode an image file completely, so that using the image later cannot fail.

    Args:
        data: The bytes of the image file.
        source: The server that sent the file, for error messages.

    Raises:
        PassingError: The file is torn.
        BackendError: The file is not a PNG, JPEG, WebP or AVIF image, takes too much work, or shows nothing.
    """
    if excess := excess_work(data):
        raise BackendError(f"{source} sent an image file that is too much work: {excess}", retryable=False)
    too_large = BackendError(f"{source} sent an image of more than {MAX_PIXELS:,} pixels", retryable=False)
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise too_large from None
    except Exception:  # the decoders raise whatever a damaged file leads them to
        raise BackendError(f"{source} did not send a {', '.join(_FORMATS)} image", retryable=False) from None
    if math.prod(image.size) > MAX_PIXELS:
        raise too_large
    if not math.prod(image.size):
        raise BackendError(f"{source} sent an image without pixels", retryable=False)
    try:
        image.load()
        return _visible(_upright(image), source)
    except BackendError:
        raise
    except Exception:  # as above
        rest = _visible(_upright(whole), source) if (whole := _completed(data, image)) else None
        raise PassingError(f"{source} sent a torn image", may_cost=True, rest=rest) from None


_LOST_ROWS: Final = 18
"""Rows that are not decoded if anything is missing from the last row of a JPEG's blocks, which are 16 pixels high."""


def _completed(data: bytes, torn: ImageFile.ImageFile) -> Image.Image | None:
    """A JPEG that lacks its last bytes, its missing blocks in the colour of the one before them.

    None if more may be missing than the end of its last row of blocks. Of a progressive one, that cannot be told.

    Args:
        data: The file.
        torn: The image as far as it was decoded.
    """
    if not data.startswith(JPEG) or "progression" in torn.info or torn.height < 10 * _LOST_ROWS:
        return None
    try:
        torn.tile = []
        box = torn.getbbox()  # rows that were not decoded are black
        image = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=("JPEG",))
        image.load()
    except Exception:
        return None
    return image if box and box[3] >= torn.height - _LOST_ROWS else None


def _upright(image: Image.Image) -> Image.Image:
    """The image as viewers show it, which turn it as its EXIF data say."""
    try:
        return ImageOps.exif_transpose(image) if "exif" in image.info else image
    except Exception:  # of damaged EXIF data, which say nothing about the image
        return image


def _visible(image: Image.Image, source: str) -> Image.Image:
    """The image in RGB, if there is anything to see, with a ``NOTE`` if there is anything to tell."""
    is_first = bool(getattr(image, "is_animated", False))
    if image.mode.startswith("I"):  # 16 bits for each pixel, which `convert` would cut off at 255
        image = image.convert("F").point(lambda value: value / 256 + 0).convert("L")
    try:
        image, note = on_ground(image)
    except NothingToSeeError as nothing:
        raise BackendError(f"{source} sent an image that is {nothing}", retryable=False) from None
    if image.mode != "RGB":  # `convert` would copy it
        image = image.convert("RGB")
    if is_first and shows_nothing(image):
        note = "the image is the first one of an animation, and has a single colour"
    image.info.pop(NOTE, None)  # what the file itself says under that name
    if note:
        image.info[NOTE] = f"{source}: {note}"
    return image
