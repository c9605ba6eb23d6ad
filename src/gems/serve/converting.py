"""Reads stored images and converts them to the size and format that a request asks for."""

from __future__ import annotations

import io
import re
from typing import Final, Literal, get_args

from PIL import Image

from gems.errors import BackendError
from gems.memory.image_store import ImageStore, decode_png

__all__ = ["ImageFormat", "convert", "fitted_size", "read_png", "size_in_pixels", "size_of"]

ImageFormat = Literal["png", "jpeg", "webp"]

_SIZE: Final = re.compile(r"(\d{2,4})x(\d{2,4})")


def size_in_pixels(size: str) -> tuple[int, int] | None:
    """The width and height in ``WIDTHxHEIGHT``; None if it is something else."""
    match = _SIZE.fullmatch(size)
    return (int(match[1]), int(match[2])) if match else None


def size_of(image: bytes) -> str:
    """The size of an image, as ``WIDTHxHEIGHT``."""
    with Image.open(io.BytesIO(image), formats=[name.upper() for name in get_args(ImageFormat)]) as opened:
        return f"{opened.width}x{opened.height}"


def fitted_size(original: tuple[int, int], box: tuple[int, int]) -> tuple[int, int]:
    """The largest size with the original's proportions that fits into a box. No side is shorter than a pixel."""
    scale = min(box[0] / original[0], box[1] / original[1])
    return max(1, round(original[0] * scale)), max(1, round(original[1] * scale))


def read_png(images: ImageStore, sha256: str) -> bytes | None:
    """The image with this hash, as PNG. None if the store does not hold it."""
    ref = images.find(sha256)
    if ref is None:
        return None
    try:
        return images.read(ref)
    except BackendError:
        return None


def convert(png: bytes, *, size: tuple[int, int] | None = None, image_format: ImageFormat = "png") -> bytes:
    """An image in another size and format.

    Args:
        png: The image to convert.
        size: Width and height that it is scaled to fit into, in pixels; None keeps its size.
        image_format: The format of the result. PNG without a size gives the same bytes.
    """
    if size is None and image_format == "png":
        return png
    with decode_png(png) as original:
        new_size = original.size if size is None else fitted_size(original.size, size)
        image = original.copy() if new_size == original.size else original.resize(new_size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    options = {} if image_format == "png" else {"quality": 90}
    (image.convert("RGB") if image_format == "jpeg" else image).save(buffer, image_format, **options)
    return buffer.getvalue()
