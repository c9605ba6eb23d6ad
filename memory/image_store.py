"""The image store: PNG files named by their own hash, on any file system that fsspec supports."""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image, PngImagePlugin

from gems.errors import BackendError, InputError
from gems.graph.state import ImageRef
from gems.memory.image_cache import ImageCache
from gems.paths import home, make_file, make_folder
from gems.secrets import one_line

__all__ = ["ImageStore", "encode_png", "open_images", "read_image", "read_metadata"]

_HASH: Final = re.compile(r"[0-9a-f]{64}")

_COMPRESSION: Final = {"compress_level": 1, "compress_type": 3}
"""zlib's fastest level with run-length matching: for drawn scenes a third faster than the defaults, and as small."""

_MAX_SHARED_STORES: Final = 64
"""Stores that ``open_images`` keeps open."""

_SHARED_CACHE: Final = ImageCache()
"""The cache of all stores that ``open_images`` opens."""


class ImageStore:
    """Content-addressed images: equal pixels and metadata are one file, whoever writes them and however often.

    The files used last are kept in memory, so that each one is read and verified once.

    Args:
        url: A folder, or any fsspec URL of one, such as ``s3://BUCKET/FOLDER``. Default: ``GEMS_IMAGES``, or else
            ``images`` in the GEMS home folder.
        cache: Holds the files used last; default: a cache for this store alone.

    Raises:
        InputError: The location cannot be written to, or its protocol needs a package that is not installed.
    """

    def __init__(self, url: str | Path | None = None, *, cache: ImageCache | None = None) -> None:
        location = _location(url)
        if "@" in location.partition("://")[2].partition("/")[0]:  # records hold the addresses of images
            raise InputError("the address of the images holds a login: put it into the environment variables instead")
        try:
            self._fs, root = fsspec.core.url_to_fs(location)
            _make_folder(self._fs, str(root))
        except Exception as error:  # each file system raises its own errors
            raise InputError(f"cannot keep images in {location}: {one_line(error) or type(error).__name__}") from error
        self._root = str(root).rstrip("/")
        self._cache = cache if cache is not None else ImageCache()

    def put(self, image: Image.Image, metadata: Mapping[str, str]) -> ImageRef:
        """Store an image as a PNG with text chunks.

        Raises:
            OSError: A local file cannot be written.
            BackendError: A remote file cannot be written.
        """
        data = encode_png(image, metadata)
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        uri = self._fs.unstrip_protocol(path)
        try:
            if not self._fs.exists(path):
                self._write(path, data)
                self._cache.add(uri, sha256, data)
        except Exception as error:  # each file system raises its own errors
            # A local error, such as a full disk, has a clear message of its own; a remote one may be worth a retry.
            if isinstance(error, OSError) and isinstance(self._fs, LocalFileSystem):
                raise
            raise BackendError(f"the image cannot be kept in {self._root}: {one_line(error)}") from error
        return ImageRef(uri=uri, sha256=sha256, width=image.width, height=image.height)

    def read(self, ref: ImageRef, *, check_exists: bool = False) -> bytes:
        """The bytes of an image's PNG file, which may be in another store.

        Args:
            ref: The image.
            check_exists: If the file is cached, make sure that it still exists: another process may have deleted it.

        Raises:
            BackendError: The file does not exist, cannot be read, or is damaged.
        """
        if check_exists and self._cache.get(ref.uri, ref.sha256) is not None and not self._exists(ref.uri):
            self._cache.drop(ref.uri, ref.sha256)
        return self._read(ref.uri, ref.sha256)

    def find(self, sha256: str) -> ImageRef | None:
        """The image with a hash; None if its file is not in this store, or is damaged."""
        path = self._path(sha256)
        if not _HASH.fullmatch(sha256) or not self._fs.exists(path):
            return None
        uri = self._fs.unstrip_protocol(path)
        try:
            png = self._read(uri, sha256)
        except BackendError:
            return None
        with Image.open(io.BytesIO(png)) as image:
            return ImageRef(uri=uri, sha256=sha256, width=image.width, height=image.height)

    def remove(self, ref: ImageRef) -> bool:
        """Delete an image; False if it is not in this store."""
        self._cache.drop(ref.uri, ref.sha256)
        path = self._path(ref.sha256)
        if ref.uri != self._fs.unstrip_protocol(path) or not self._fs.exists(path):
            return False
        self._fs.rm_file(path)
        return True

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}.png"

    def _write(self, path: str, data: bytes) -> None:
        """Write a file so that no reader, and no run after a crash, sees half of it."""
        if not isinstance(self._fs, LocalFileSystem):  # object stores show an object once it is complete
            self._fs.pipe_file(path, data)
            return
        folder = path.rpartition("/")[0]
        temporary = f"{folder}/.{uuid.uuid4().hex}"
        make_file(Path(temporary))
        self._fs.pipe_file(temporary, data)
        self._fs.mv(temporary, path)

    def _read(self, uri: str, sha256: str) -> bytes:
        png = self._cache.get(uri, sha256)
        if png is None:
            path = self._path(sha256)
            if uri == self._fs.unstrip_protocol(path):
                png = _read_verified(self._fs, path, uri, sha256)
            else:
                png = read_image(uri, sha256)
            self._cache.add(uri, sha256, png)
        return png

    def _exists(self, uri: str) -> bool:
        try:
            fs, path = fsspec.core.url_to_fs(uri)
            return bool(fs.exists(path))
        except Exception:  # each file system raises its own errors; the read that follows reports them
            return False


def open_images(url: str | Path | None = None) -> ImageStore:
    """The image store at a location; everyone in this process who opens the same location shares it and its cache.

    Args:
        url: The location, as for ``ImageStore``.

    Raises:
        InputError: As for ``ImageStore``.
    """
    location = _location(url)
    return _shared_store(location, "" if "://" in location else str(Path.cwd()))


@lru_cache(maxsize=_MAX_SHARED_STORES)
def _shared_store(location: str, _working_folder: str) -> ImageStore:
    """One store per location; a relative location depends on the working folder."""
    return ImageStore(location, cache=_SHARED_CACHE)


def read_image(uri: str, sha256: str) -> bytes:
    """The bytes of an image's file, in whatever store it is.

    Raises:
        BackendError: The file does not exist, cannot be read, or is damaged.
    """
    try:
        fs, path = fsspec.core.url_to_fs(uri)
    except Exception as error:  # each file system raises its own errors
        raise BackendError(f"the image {uri} cannot be read: {one_line(error)}", retryable=False) from error
    return _read_verified(fs, path, uri, sha256)


def _read_verified(fs: fsspec.AbstractFileSystem, path: str, uri: str, sha256: str) -> bytes:
    try:
        data: bytes = fs.cat_file(path)
    except Exception as error:  # each file system raises its own errors
        raise BackendError(f"the image {uri} cannot be read: {one_line(error)}", retryable=False) from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise BackendError(f"the image {uri} is damaged: its hash is not its name", retryable=False)
    return data


def _location(url: str | Path | None) -> str:
    return str(url or os.environ.get("GEMS_IMAGES") or home() / "images")


def _make_folder(fs: fsspec.AbstractFileSystem, root: str) -> None:
    """Create a folder, or make sure that its bucket exists: buckets are never created, since they cost money."""
    if "s3" in fs.protocol:
        fs.mkdir(f"{root.rstrip('/')}/images", create_parents=False)  # creates nothing, and fails without a bucket
    else:
        make_folder(Path(root)) if isinstance(fs, LocalFileSystem) else fs.makedirs(root, exist_ok=True)


def encode_png(image: Image.Image, metadata: Mapping[str, str]) -> bytes:
    """An image as a PNG with one text chunk per entry. Equal arguments give equal bytes."""
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
