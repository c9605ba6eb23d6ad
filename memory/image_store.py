"""The image store: PNG files named by their own hash, on any file system that fsspec supports.

A store reads the files in its own location and nothing else. Records, memories and batches name the address of each
image too, but they are data: an address is never opened. The hash finds the image.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final
from urllib.parse import unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image, PngImagePlugin

from gems.errors import BackendError, InputError
from gems.files import read_regular, write_atomically
from gems.graph.state import ImageRef
from gems.memory.image_cache import ImageCache
from gems.models.grounds import NothingToSeeError, on_ground
from gems.models.image_work import excess_work
from gems.paths import home, home_folder, make_folder
from gems.secrets import one_line

__all__ = [
    "ImageStore",
    "decode_png",
    "encode_png",
    "is_opaque",
    "open_images",
    "read_from",
    "read_metadata",
    "size_of_sound_png",
    "stores_beside",
    "without_foreign_chunks",
]

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_URL: Final = re.compile(r"(?:[a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
"""Matches the beginning of an fsspec URL. Everything else is a path, taken literally."""

_OWN_CHUNKS: Final = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
"""The chunks of a PNG that hold pixels."""
_OWN_TEXTS: Final = frozenset({b"parameters", b"gems"})
"""The keywords of the text chunks that the generator node writes."""
_COMPRESSION: Final = {"compress_level": 1, "compress_type": 3}
"""zlib's fastest level with run-length matching: for drawn scenes a third faster than the defaults, and as small."""

_MAX_PIXELS: Final = 64 * 2**20
"""The most pixels of an image that is read, as for images from servers."""
_MAX_BYTES: Final = 4 * _MAX_PIXELS
"""The most bytes of a file that is read: such an image, uncompressed."""

_MAX_SHARED_STORES: Final = 64
"""Stores that ``open_images`` keeps open."""

_SHARED_CACHE: Final = ImageCache()
"""The cache of all stores that ``open_images`` opens."""


class _NotInStoreError(BackendError):
    """An image that is not in a store."""


class ImageStore:
    """Content-addressed images: equal pixels and metadata are one file, whoever writes them and however often.

    The files used last are kept in memory, so that each one is read and verified once.

    Args:
        url: A folder, or any fsspec URL of one, such as ``s3://BUCKET/FOLDER``. A path is taken literally; a ``file://``
            address may be percent-encoded. Default: ``GEMS_IMAGES``, or else ``images`` in the GEMS home folder.
        cache: Holds the files used last; default: a cache for this store alone.
        create: Create the folder if it does not exist; False for a store that is only read.

    Raises:
        InputError: The location cannot be written to, or its protocol needs a package that is not installed.
    """

    def __init__(self, url: str | Path | None = None, *, cache: ImageCache | None = None, create: bool = True) -> None:
        location = _location(url, create=create)
        if "@" in location.partition("://")[2].partition("/")[0]:  # records hold the addresses of images
            raise InputError("the address of the images holds a login: put it into the environment variables instead")
        try:
            self._fs, root = _file_system(location)
            if create:
                _make_folder(self._fs, root)
        except Exception as error:  # each file system raises its own errors
            raise InputError(f"cannot keep images in {location}: {one_line(error) or type(error).__name__}") from error
        self._root = root.rstrip("/")
        self._cache = cache if cache is not None else ImageCache()

    @property
    def url(self) -> str:
        """The address of the store. The path of a local one is not percent-encoded, which is how fsspec reads it."""
        return str(self._fs.unstrip_protocol(self._root))

    def put(self, image: Image.Image, metadata: Mapping[str, str]) -> ImageRef:
        """Store an image as a PNG with text chunks.

        Raises:
            OSError: A local file cannot be written.
            BackendError: A remote file cannot be written.
        """
        data = encode_png(image, metadata)
        sha256 = hashlib.sha256(data).hexdigest()
        path = f"{self._root}/{sha256[:2]}/{sha256}.png"
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
        """The bytes of an image's PNG file, found by its hash; the reference's address is not opened.

        Args:
            ref: The image.
            check_exists: If the file is cached, make sure that it still exists: another process may have deleted it.

        Raises:
            BackendError: The file is not in this store, cannot be read, or is damaged.
        """
        return self.read_hash(ref.sha256, recorded_uri=ref.uri, check_exists=check_exists)

    def read_hash(self, sha256: str, *, recorded_uri: str = "", check_exists: bool = False) -> bytes:
        """The bytes of the PNG file with a hash.

        Args:
            sha256: The hash.
            recorded_uri: The address that a record names, for the message if the image is not in this store.
            check_exists: As for ``read``.

        Raises:
            BackendError: As for ``read``.
        """
        path = self._path(sha256)
        if path is None:
            raise BackendError(f"{one_line(sha256)[:80]!r} is not the hash of an image", retryable=False)
        uri = self._fs.unstrip_protocol(path)
        png = self._cache.get(uri, sha256)
        if png is not None and check_exists and not self._exists(path):
            self._cache.drop(uri, sha256)
            png = None
        if png is None:
            png = self._read_verified(path, sha256, recorded_uri)
            self._cache.add(uri, sha256, png)
        return png

    def find(self, sha256: str) -> ImageRef | None:
        """The image with a hash; None if its file is not in this store, or is damaged."""
        path = self._path(sha256)
        if path is None or not self._exists(path):
            return None
        try:
            width, height = _png_size(self.read_hash(sha256))
        except BackendError:
            return None
        return ImageRef(uri=self._fs.unstrip_protocol(path), sha256=sha256, width=width, height=height)

    def keep(self, ref: ImageRef) -> bool:
        """Write an image again that another process has deleted since it was last used here; False if it is gone.

        Call it once there is a record of the image that others see: who deletes an image looks at the records after it.
        """
        path = self._path(ref.sha256)
        if path is None or self._exists(path):
            return path is not None
        png = self._cache.get(self._fs.unstrip_protocol(path), ref.sha256)
        if png is not None:
            self._write(path, png)
        return png is not None

    def remove(self, ref: ImageRef, is_needed: Callable[[], bool] = lambda: False) -> bool:
        """Delete an image; False if the reference names another store, or the file does not exist.

        Args:
            ref: The image.
            is_needed: Asked once the file is gone, since somebody may have begun to refer to it; if so, it is written
                again, and False is returned.
        """
        path = self._path(ref.sha256)
        if path is None:
            return False
        uri = self._fs.unstrip_protocol(path)
        self._cache.drop(uri, ref.sha256)
        is_elsewhere = isinstance(self._fs, LocalFileSystem) and not self._holds(path)
        if ref.uri != uri or is_elsewhere or not self._fs.exists(path):
            return False
        with suppress(BackendError):  # a damaged file need not come back
            self.read(ref)
        png = self._cache.get(uri, ref.sha256)
        self._cache.drop(uri, ref.sha256)
        self._fs.rm_file(path)
        if png is None or not is_needed():
            return True
        self._write(path, png)
        return False

    def address(self, sha256: str) -> str:
        """The address of the image with a hash, whether or not it is there."""
        return str(self._fs.unstrip_protocol(f"{self._root}/{sha256[:2]}/{sha256}.png"))

    def flush(self, ref: ImageRef) -> None:
        """Make sure that a power failure cannot lose an image of this store; nothing for one that is not in it."""
        path = self._path(ref.sha256)
        if path is not None and isinstance(self._fs, LocalFileSystem) and Path(path).is_file():
            with Path(path).open("rb") as file:
                os.fsync(file.fileno())

    def _path(self, sha256: str) -> str | None:
        """The path of an image's file; None if this is no hash, which could name any file."""
        return f"{self._root}/{sha256[:2]}/{sha256}.png" if _HASH.fullmatch(sha256) else None

    def _write(self, path: str, data: bytes) -> None:
        """Write a file so that no reader, and no run after a crash, sees half of it."""
        if not isinstance(self._fs, LocalFileSystem):  # object stores show an object once it is complete
            self._fs.pipe_file(path, data)
            return
        folder = path.rpartition("/")[0]
        if not self._holds(folder):
            raise OSError(errno.ELOOP, "it is a link that leads out of the image store", folder)
        make_folder(Path(folder))
        write_atomically(Path(path), data)

    def _holds(self, path: str) -> bool:
        """Whether a path of a local store lies in it, and no link on the way leads elsewhere."""
        return Path(path).resolve().is_relative_to(Path(self._root).resolve())

    def _read_verified(self, path: str, sha256: str, recorded_uri: str) -> bytes:
        uri = self._fs.unstrip_protocol(path)
        try:
            if isinstance(self._fs, LocalFileSystem):
                data = read_regular(Path(path), within=Path(self._root), limit=_MAX_BYTES)
            else:
                data = bytes(self._fs.cat_file(path, start=0, end=_MAX_BYTES + 1))
        except FileNotFoundError:
            raise _NotInStoreError(self._why_missing(uri, sha256, recorded_uri), retryable=False) from None
        except Exception as error:  # each file system raises its own errors
            raise BackendError(f"the image {uri} cannot be read: {one_line(error)}", retryable=False) from error
        if len(data) > _MAX_BYTES:
            raise BackendError(f"the image {uri} has more than {_MAX_BYTES >> 20} MB", retryable=False)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BackendError(f"the image {uri} is damaged: its hash is not its name", retryable=False)
        _png_size(data)
        return data

    def _why_missing(self, uri: str, sha256: str, recorded_uri: str) -> str:
        if recorded_uri in ("", uri):
            return f"the image {uri} cannot be read: the file does not exist"
        return (
            f"the image {sha256[:12]} cannot be read: it is not in the image store {self.url}, and the address in its "
            f"record, {one_line(recorded_uri)[:200]!r}, is not opened; name the store that holds it with --images, "
            "images_url or GEMS_IMAGES"
        )

    def _exists(self, path: str) -> bool:
        try:
            return bool(self._fs.exists(path))
        except Exception:  # each file system raises its own errors; the read that follows reports them
            return False


def stores_beside(folder: Path, url: str | None = None) -> tuple[ImageStore, ImageStore]:
    """The stores to read a batch's or an evaluation's images from: ``images`` in its folder, then the configured one.

    Args:
        folder: The folder of the batch or the evaluation.
        url: The location of the configured store, as for ``ImageStore``.
    """
    return ImageStore(folder.absolute() / "images", create=False), ImageStore(url, create=False)


def read_from(stores: Sequence[ImageStore], sha256: str, recorded_uri: str) -> bytes:
    """The bytes of an image from the first store that holds it.

    Args:
        stores: The stores that the operator has recorded_uri, at least one.
        sha256: The image's hash.
        recorded_uri: The address that a record names, for the message.

    Raises:
        BackendError: No store holds it, or the first one that does cannot read it.
    """
    for store in stores[:-1]:
        try:
            return store.read_hash(sha256, recorded_uri=recorded_uri)
        except _NotInStoreError:
            continue
    return stores[-1].read_hash(sha256, recorded_uri=recorded_uri)


def open_images(url: str | Path | None = None) -> ImageStore:
    """The image store at a location; everyone in this process who opens the same location shares it and its cache.

    Args:
        url: The location, as for ``ImageStore``.

    Raises:
        InputError: As for ``ImageStore``.
    """
    location = _location(url, create=True)
    return _shared_store(location, "" if _URL.match(location) else str(Path.cwd()))


@lru_cache(maxsize=_MAX_SHARED_STORES)
def _shared_store(location: str, _working_folder: str) -> ImageStore:
    """One store per location; a relative location depends on the working folder."""
    return ImageStore(location, cache=_SHARED_CACHE)


def _location(url: str | Path | None, *, create: bool) -> str:
    return str(url or os.environ.get("GEMS_IMAGES") or (home() if create else home_folder()) / "images")


def _file_system(location: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a location, and its path there.

    fsspec reads ``::`` in a path as a chain of URLs, and takes a percent-encoded ``file://`` address literally. Local
    paths therefore do not go through its parser.
    """
    if location.startswith("file://"):
        literal = location.removeprefix("file://")
        location = literal if Path(literal).exists() else unquote(literal)
    elif _URL.match(location):
        fs, root = fsspec.core.url_to_fs(location)
        return fs, str(root)
    return LocalFileSystem(), os.path.abspath(Path(location).expanduser())  # noqa: PTH100 - keeps links as they are


def _make_folder(fs: fsspec.AbstractFileSystem, root: str) -> None:
    """Create a folder, or make sure that its bucket exists: buckets are never created, since they cost money."""
    if "s3" in fs.protocol:
        fs.mkdir(f"{root.rstrip('/')}/images", create_parents=False)  # creates nothing, and fails without a bucket
    else:
        make_folder(Path(root)) if isinstance(fs, LocalFileSystem) else fs.makedirs(root, exist_ok=True)


def _png_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels, from the first bytes of a PNG file.

    Raises:
        BackendError: It is not a PNG file, or has more than ``_MAX_PIXELS``.
    """
    if len(data) < 24 or data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR":
        raise BackendError("the file in the image store is not a PNG image", retryable=False)
    width, height = struct.unpack(">II", data[16:24])
    if width * height > _MAX_PIXELS:
        raise BackendError(f"the image has more than {_MAX_PIXELS:,} pixels", retryable=False)
    return width, height


def encode_png(image: Image.Image, metadata: Mapping[str, str]) -> bytes:
    """An image as a PNG with one text chunk per entry. Equal arguments give equal bytes.

    Nothing else of what came with the image is kept: a colour profile can hold anything.
    """
    chunks = PngImagePlugin.PngInfo()
    for key, text in metadata.items():
        chunks.add_itxt(key, text) if not text.isascii() else chunks.add_text(key, text)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=chunks, icc_profile=None, **_COMPRESSION)
    return buffer.getvalue()


def size_of_sound_png(png: bytes) -> tuple[int, int]:
    """Width and height in pixels of a PNG file whose chunks are all there as they were written; cheaper than decoding.

    Raises:
        BackendError: The file is damaged, or takes too much work.
    """
    try:
        with _opened(png) as image:
            size = image.size
            image.verify()
    except _DAMAGE as error:
        raise BackendError(f"the image is damaged ({one_line(error)})", retryable=False) from error
    return size


_DAMAGE: Final = (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError)
"""What Pillow raises of a damaged file."""


def is_opaque(png: bytes) -> bool:
    """Whether a PNG file has no transparent parts, by its beginning."""
    has_alpha = png[25:26] in (b"\x04", b"\x06")
    return not has_alpha and b"tRNS" not in png[: max(0, png.find(b"IDAT"))]


def decode_png(png: bytes) -> Image.Image:
    """The image in a PNG file, which may be somebody else's, without transparency.

    Raises:
        BackendError: The file is damaged, takes too much work, or shows nothing.
    """
    try:
        return on_ground(_loaded(png))[0]
    except NothingToSeeError as error:
        raise BackendError(f"the image is {error}", retryable=False) from None


def _loaded(png: bytes) -> Image.Image:
    try:
        image = _opened(png)
        image.load()
    except _DAMAGE as error:
        raise BackendError(f"the image is damaged ({one_line(error)})", retryable=False) from error
    return image


def _opened(png: bytes) -> Image.Image:
    """A PNG whose pixels have not been read.

    Raises:
        BackendError: It takes too much work, or has two headers.
    """
    if excess := excess_work(png):
        raise BackendError(f"the image has {excess}", retryable=False)
    image = Image.open(io.BytesIO(png), formats=("PNG",))
    if image.size != _png_size(png):  # Pillow believes the last header, and ours was checked
        raise BackendError("the image is damaged (it has two headers)", retryable=False)
    return image


def without_foreign_chunks(png: bytes) -> bytes:
    """A PNG without what no image of ours holds: EXIF, profiles, other texts, animations, and what follows its end.

    Somebody else's file can hold anything there, which whoever gets a copy of it would pass on. Ours stay as they are.

    Raises:
        BackendError: The file is damaged.
    """
    chunks, position, kind = [png[:8]], 8, b""
    while kind != b"IEND":
        length = int.from_bytes(png[position : position + 4])
        kind, end = png[position + 4 : position + 8], position + 12 + length
        if len(kind) < 4 or end > len(png):
            raise BackendError("the image is damaged: its PNG file has no end", retryable=False)
        is_own_text = kind in (b"tEXt", b"iTXt") and png[position + 8 : end].partition(b"\0")[0] in _OWN_TEXTS
        if kind in _OWN_CHUNKS or is_own_text:
            chunks.append(png[position:end])
        position = end
    return b"".join(chunks)


def read_metadata(png: bytes) -> dict[str, str]:
    """The text chunks of a PNG.

    Raises:
        BackendError: The file is damaged.
    """
    return {str(key): text for key, text in _loaded(png).info.items() if isinstance(text, str)}
