"""Signed addresses of images and reports. They need no key, because an ``<img>`` has none, and they expire."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Literal, get_args

from itsdangerous import BadSignature, URLSafeTimedSerializer

from gems.errors import InputError

__all__ = ["Links"]

_Kind = Literal["artifacts", "reports"]


class Links:
    """Signs addresses and reads them.

    Args:
        secret_file: Holds the secret for the signatures; created if it does not exist. A new one voids all addresses.
        seconds: Seconds for which an address is valid.

    Raises:
        InputError: The file cannot be used.
    """

    def __init__(self, secret_file: Path, seconds: int) -> None:
        try:
            if not secret_file.exists():
                secret_file.parent.mkdir(parents=True, exist_ok=True)
                secret_file.touch(mode=0o600)
                secret_file.write_text(secrets.token_hex(32))
            secret = secret_file.read_text()
        except OSError as error:
            raise InputError(
                f"cannot store a secret in {secret_file} ({error.strerror}); set GEMS_HOME to a writable folder"
            ) from error
        self._signers = {kind: URLSafeTimedSerializer(secret, salt=f"gems {kind}") for kind in get_args(_Kind)}
        self._seconds = seconds

    def image(self, user: str, sha256: str) -> str:
        """The path of a user's image."""
        return f"/artifacts/{self._signers['artifacts'].dumps([user, sha256])}.png"

    def report(self, user: str, run: str) -> str:
        """The path of the report of a user's run."""
        return f"/reports/{self._signers['reports'].dumps([user, run])}.html"

    def read(self, kind: _Kind, token: str) -> tuple[str, str] | None:
        """The user, and the image's hash or the run's id, in an address. None if it is forged or has expired."""
        try:
            user, name = self._signers[kind].loads(token, max_age=self._seconds)
        except (BadSignature, ValueError, TypeError):
            return None
        return str(user), str(name)
