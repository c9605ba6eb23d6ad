"""Reads stored images and converts them to the size and format that a request asks for."""

from __future__ import annotations

import io
from typing import Literal

from PIL import Image, ImageOps

from gems.errors import BackendError
from gems.memory.image_store import ImageStore

__all__ = ["ImageFormat", "convert", "read_png"]

ImageFormat = Literal["png", "jpeg", "webp"]


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
    with Image.open(io.BytesIO(png)) as original:
        same_size = size is None or original.size == size
        image = (
            original.copy() if same_size or size is None else ImageOps.contain(original, size, Image.Resampling.LANCZOS)
        )
    buffer = io.BytesIO()
    options = {} if image_format == "png" else {"quality": 90}
    (image.convert("RGB") if image_format == "jpeg" else image).save(buffer, image_format, **options)
    return buffer.getvalue()
