"""Addresses of images that nobody can guess, that expire, and that need no key: an <img> or a chat client has none."""

from __future__ import annotations

import io
import secrets
from pathlib import Path
from typing import Literal, get_args

from itsdangerous import BadSignature, URLSafeTimedSerializer
from PIL import Image, ImageOps

from gems.errors import BackendError, InputError
from gems.memory.image_store import ImageStore

__all__ = ["Format", "Links", "as_asked", "stored"]

Format = Literal["png", "jpeg", "webp"]

Kind = Literal["artifacts", "reports"]


class Links:
    """Signs addresses, and reads what they are of.

    Args:
        secret_file: Holds what they are signed with; made if it is not there. Without it, old addresses are void.
        seconds: How long an address works.
    """

    def __init__(self, secret_file: Path, seconds: int) -> None:
        try:
            if not secret_file.exists():
                secret_file.parent.mkdir(parents=True, exist_ok=True)
                secret_file.touch(mode=0o600)
                secret_file.write_text(secrets.token_hex(32))
            secret = secret_file.read_text()
        except OSError as error:
            raise InputError(f"cannot keep a secret in {secret_file} ({error.strerror})") from error
        self._signers = {kind: URLSafeTimedSerializer(secret, salt=f"gems {kind}") for kind in get_args(Kind)}
        self._seconds = seconds

    def image(self, user: str, sha256: str) -> str:
        """The address of a user's image, without the server's own."""
        return f"/artifacts/{self._signers['artifacts'].dumps([user, sha256])}.png"

    def report(self, user: str, run: str) -> str:
        """The address of the report of a user's run."""
        return f"/reports/{self._signers['reports'].dumps([user, run])}.html"

    def read(self, kind: Kind, token: str) -> tuple[str, str] | None:
        """User, and image or run, that an address is of; None if it is not ours, or too old."""
        try:
            user, name = self._signers[kind].loads(token, max_age=self._seconds)
        except (BadSignature, ValueError, TypeError):
            return None
        return str(user), str(name)


def stored(images: ImageStore, sha256: str) -> bytes | None:
    """The PNG of that hash, if this store holds it."""
    ref = images.find(sha256)
    if ref is None:
        return None
    try:
        return images.read(ref)
    except BackendError:
        return None


def as_asked(png: bytes, *, size: tuple[int, int] | None = None, form: Format = "png") -> bytes:
    """An image scaled to fit into a size, in another format; as it is stored if nothing else is asked for."""
    if size is None and form == "png":
        return png
    with Image.open(io.BytesIO(png)) as whole:
        fits = size is None or whole.size == size
        image = whole.copy() if fits or size is None else ImageOps.contain(whole, size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    (image.convert("RGB") if form == "jpeg" else image).save(buffer, form, **({"quality": 90} if form != "png" else {}))
    return buffer.getvalue()
