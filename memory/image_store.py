"""The image store: PNG files named by their own hash, on any file system that fsspec knows."""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image, PngImagePlugin

from gems.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.paths import home
from gems.secrets import one_line

__all__ = ["ImageStore", "encode_png", "read_image", "read_metadata"]

_HASH: Final = re.compile(r"[0-9a-f]{64}")

_COMPRESSION = {"compress_level": 1, "compress_type": 3}
"""zlib's fastest level with run-length matching: on drawn scenes a third faster than the defaults, and as small."""


class ImageStore:
    """Content-addressed images: the same pixels and metadata are one file, whoever writes them and however often.

    Args:
        url: A folder, or any fsspec URL of one, such as ``s3://BUCKET/FOLDER``. Default: ``GEMS_IMAGES``, then
            ``images`` in the GEMS home folder.

    Raises:
        InputError: It cannot be written to, or its protocol needs a package that is not there.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        where = str(url or os.environ.get("GEMS_IMAGES") or home() / "images")
        if "@" in where.partition("://")[2].partition("/")[0]:  # images and records are named by this address
            raise InputError("the address of the images holds a login: leave it to the environment of its protocol")
        try:
            self._fs, root = fsspec.core.url_to_fs(where)
            _make(self._fs, str(root))
        except Exception as error:  # each file system has errors of its own
            raise InputError(f"cannot keep images in {where}: {one_line(error) or type(error).__name__}") from error
        self._root = str(root).rstrip("/")

    def put(self, image: Image.Image, metadata: Mapping[str, str]) -> ImageRef:
        """Store an image as PNG with text chunks, and say where it lies."""
        data = encode_png(image, metadata)
        digest = hashlib.sha256(data).hexdigest()
        path = f"{self._root}/{digest[:2]}/{digest}.png"
        try:
            if not self._fs.exists(path):
                self._write(path, data)
        except Exception as error:  # each file system has errors of its own
            if isinstance(error, OSError) and isinstance(self._fs, LocalFileSystem):
                raise  # a disk that is full says so best itself; a bucket that is busy may soon not be
            raise BackendError(f"the image cannot be kept in {self._root}: {one_line(error)}") from error
        return ImageRef(uri=self._fs.unstrip_protocol(path), sha256=digest, width=image.width, height=image.height)

    def _write(self, path: str, data: bytes) -> None:
        """Write a file so that a reader, or a run after a crash, never meets half of it."""
        if not isinstance(self._fs, LocalFileSystem):  # an object store shows an object when it is whole
            self._fs.pipe_file(path, data)
            return
        aside = f"{path.rpartition('/')[0]}/.{uuid.uuid4().hex}"
        self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._fs.pipe_file(aside, data)
        self._fs.mv(aside, path)

    def read(self, ref: ImageRef) -> bytes:
        """The PNG's bytes.

        Raises:
            BackendError: The file is gone, or is not what was written.
        """
        return read_image(ref.uri, ref.sha256)

    def find(self, sha256: str) -> ImageRef | None:
        """The image of that hash, if it is in this store."""
        path = f"{self._root}/{sha256[:2]}/{sha256}.png"
        if not _HASH.fullmatch(sha256) or not self._fs.exists(path):
            return None
        with self._fs.open(path) as file, Image.open(file) as image:
            width, height = image.size
        return ImageRef(uri=self._fs.unstrip_protocol(path), sha256=sha256, width=width, height=height)

    def remove(self, ref: ImageRef) -> bool:
        """Remove an image, if it lies in this store; tells whether it did."""
        path = f"{self._root}/{ref.sha256[:2]}/{ref.sha256}.png"
        if ref.uri != self._fs.unstrip_protocol(path) or not self._fs.exists(path):
            return False
        self._fs.rm_file(path)
        return True

    def open(self, ref: ImageRef) -> Image.Image:
        """The decoded image."""
        return Image.open(io.BytesIO(self.read(ref)))


def read_image(uri: str, sha256: str) -> bytes:
    """The bytes of an image, wherever it lies.

    Raises:
        BackendError: The file is gone, or is not what was written.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
        data: bytes = fs.cat_file(path)
    except Exception as error:  # each file system has errors of its own
        raise BackendError(f"the image {uri} cannot be read: {one_line(error)}", retryable=False) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BackendError(f"the image {uri} is damaged: its hash is not its name", retryable=False)
    return data


def _make(fs: fsspec.AbstractFileSystem, root: str) -> None:
    """Make a folder, or see that its bucket is there: a misspelt one is not to be made, nor paid for."""
    if "s3" in fs.protocol:
        fs.mkdir(f"{root.rstrip('/')}/images", create_parents=False)  # makes nothing, and says why a bucket is no use
    else:
        fs.makedirs(root, exist_ok=True)


def encode_png(image: Image.Image, metadata: Mapping[str, str]) -> bytes:
    """An image as PNG with one text chunk per entry. The same arguments give the same bytes."""
    chunks = PngImagePlugin.PngInfo()
    for key, text in metadata.items():
        chunks.add_itxt(key, text) if not text.isascii() else chunks.add_text(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, **_COMPRESSION)
    return buffer.getvalue()


def read_metadata(png: bytes) -> dict[str, str]:
    """The text chunks of a PNG."""
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        return {str(key): text for key, text in image.info.items() if isinstance(text, str)}
