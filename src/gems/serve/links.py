"""Signed addresses of images and reports. They need no key, because an ``<img>`` has none, and they expire."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from itsdangerous import BadData, URLSafeTimedSerializer

from gems.files import own_secret
from gems.serve.converting import ImageFormat

__all__ = ["Links"]

_Kind = Literal["artifacts", "reports"]


class Links:
    """Signs addresses and reads them.

    Args:
        secret_file: Holds the secret for the signatures; created if it does not exist. A new one voids all addresses.
        seconds: Seconds for which an address is valid.

    Raises:
        InputError: The file cannot be used, or holds too short a secret.
    """

    def __init__(self, secret_file: Path, seconds: int) -> None:
        secret = own_secret(secret_file, "voids the addresses of images")
        self._signers = {kind: URLSafeTimedSerializer(secret, salt=f"gems {kind}") for kind in get_args(_Kind)}
        self._seconds = seconds

    def image(self, user: str, sha256: str, *, size: str = "", image_format: ImageFormat = "png") -> str:
        """The path of a user's image, or of a copy in another format that is scaled to fit into ``WIDTHxHEIGHT``."""
        address = [user, sha256, size] if size else [user, sha256]
        return f"/artifacts/{self._signers['artifacts'].dumps(address)}.{image_format}"

    def report(self, user: str, run: str) -> str:
        """The path of the report of a user's run."""
        return f"/reports/{self._signers['reports'].dumps([user, run])}.html"

    def read(self, kind: _Kind, token: str) -> tuple[str, ...] | None:
        """The user, and the image's hash (and size, if it has one) or the run's id, in an address.

        None if the address is forged or has expired.
        """
        try:
            return tuple(map(str, self._signers[kind].loads(token, max_age=self._seconds)))
        except (BadData, ValueError, TypeError):
            return None
