"""Signed addresses of images and reports. They need no key, because an ``<img>`` has none, and they expire."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal, get_args

from itsdangerous import BadData, URLSafeTimedSerializer

from gems.errors import InputError
from gems.files import atomic_replacement
from gems.paths import private_folder
from gems.serve.converting import ImageFormat

__all__ = ["Links"]

_Kind = Literal["artifacts", "reports"]
_MIN_LENGTH: Final = 32
"""Characters of a secret; those that are made here have twice as many."""


class Links:
    """Signs addresses and reads them.

    Args:
        secret_file: Holds the secret for the signatures; created if it does not exist. A new one voids all addresses.
        seconds: Seconds for which an address is valid.

    Raises:
        InputError: The file cannot be used, or holds too short a secret.
    """

    def __init__(self, secret_file: Path, seconds: int) -> None:
        try:
            secret = _read_or_create(secret_file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise InputError(
                f"cannot store a secret in {secret_file} ({reason}); set GEMS_HOME to a writable folder"
            ) from error
        if len(secret) < _MIN_LENGTH:
            raise InputError(
                f"the secret in {secret_file} has {len(secret)} characters, fewer than {_MIN_LENGTH}: delete the file, "
                "and the next start makes a new one, which voids the addresses of images"
            )
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


def _read_or_create(file: Path) -> str:
    """The secret in a file. Of processes that start at once, all get the same one, and none sees half of it."""
    if not file.exists():
        private_folder(file.parent)
        with suppress(FileExistsError), atomic_replacement(file, overwrite=False) as draft:  # another one was faster
            draft.chmod(0o600)
            draft.write_text(secrets.token_hex(32), encoding="ascii")
    file.chmod(0o600)
    return file.read_text(encoding="utf-8").strip()
