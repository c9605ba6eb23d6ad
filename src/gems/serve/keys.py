"""API keys: who is asking, and what they may spend in a day."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gems.errors import InputError

__all__ = ["ANYBODY", "Client", "Keys", "new_key"]

NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""Of a user: it names a folder of images too."""


class DayLimits(BaseModel):
    """What one key may spend from midnight to midnight, UTC; empty is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int | None = Field(default=None, ge=0)
    chat_calls: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    daily: DayLimits = DayLimits()


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who may ask: whose memory, images and runs these are, and what they may cost."""

    name: str
    daily: DayLimits


ANYBODY: Final = Client("default", DayLimits())
"""Who asks where there are no keys."""


class Keys:
    """The keys of a file: ``[name]`` tables with ``sha256`` of the key and, if it has limits, ``daily``.

    Raises:
        InputError: The file cannot be read, or is not what it should be.
    """

    def __init__(self, path: Path) -> None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot read the keys in {path} ({error}); 'gems new-key NAME' prints an entry"
            ) from error
        self._entries: list[tuple[bytes, Client]] = []
        for name, table in tables.items():
            try:
                entry = _Entry.model_validate(table)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, (name, *first["loc"])))
                raise InputError(f"{path}: {where}: {first['msg'].lower()}") from None
            if not NAME.fullmatch(name):
                raise InputError(f"{path}: {name!r} is no user's name: lower-case letters, digits, - and _")
            self._entries.append((bytes.fromhex(entry.sha256), Client(name, entry.daily)))
        if not self._entries:
            raise InputError(f"{path} holds no key; 'gems new-key NAME' prints an entry")

    def client(self, key: str) -> Client | None:
        """Whose key it is. Every key is compared, each in constant time: how long it takes tells nothing."""
        digest, found = hashlib.sha256(key.encode()).digest(), None
        for held, client in self._entries:
            if hmac.compare_digest(digest, held):
                found = client
        return found


def new_key(name: str) -> tuple[str, str]:
    """A fresh key, and its entry for the file, which does not hold the key itself.

    Raises:
        InputError: The name cannot be used.
    """
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is no user's name: lower-case letters, digits, - and _, at most 64")
    key = f"gems-{secrets.token_urlsafe(32)}"
    return key, f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
