"""API keys: who a client is, and what it may use in a day."""

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

__all__ = ["ANYBODY", "Client", "DayLimits", "Keys", "new_key"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
"""A user's name. It also names the folder of the user's images."""


class DayLimits(BaseModel):
    """Limits of one key per day, from midnight to midnight UTC. None is no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    images: int | None = Field(default=None, ge=0)
    chat_calls: int | None = Field(default=None, ge=0)
    tokens: int | None = Field(default=None, ge=0)
    cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    daily: DayLimits = DayLimits()
    metrics: bool = False


@dataclass(frozen=True, slots=True)
class Client:
    """The sender of a request. Memory, images and runs belong to ``name``."""

    name: str
    daily: DayLimits
    metrics: bool = False
    """Whether it may read the metrics, which cover all users."""


ANYBODY: Final = Client("default", DayLimits(), metrics=True)
"""Every client of a service without keys."""


class Keys:
    """The API keys in a TOML file: a table ``[name]`` per key, with its ``sha256`` and, if it has limits, ``daily``.

    ``metrics = true`` lets a key read the metrics of all users.

    Args:
        path: The file that holds the keys.

    Raises:
        InputError: The file cannot be read, or an entry is not valid.
    """

    def __init__(self, path: Path) -> None:
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot read the keys in {path} ({error}); 'gems new-key NAME' prints an entry"
            ) from error
        if not tables:
            raise InputError(f"{path} holds no key; 'gems new-key NAME' prints an entry")
        self._entries = [_read_entry(path, name, table) for name, table in tables.items()]

    def client(self, key: str) -> Client | None:
        """The client with this key.

        The key is compared with every entry, each in constant time, so that the time taken reveals nothing.
        """
        digest, match = hashlib.sha256(key.encode()).digest(), None
        for digest_of_entry, client in self._entries:
            if hmac.compare_digest(digest, digest_of_entry):
                match = client
        return match

    def limiting_cost(self) -> list[str]:
        """The names of the users whose cost of a day is limited, which needs prices."""
        return [client.name for _, client in self._entries if client.daily.cost is not None]


def _read_entry(path: Path, name: str, table: object) -> tuple[bytes, Client]:
    """The hash of an entry's key, and whose key it is."""
    try:
        entry = _Entry.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        location = ".".join(map(str, (name, *first["loc"])))
        raise InputError(f"{path}: {location}: {first['msg'].lower()}") from None
    if not _NAME.fullmatch(name):
        raise InputError(f"{path}: {name!r} is not a valid user's name: use lower-case letters, digits, - and _")
    return bytes.fromhex(entry.sha256), Client(name, entry.daily, entry.metrics)


def new_key(name: str, *, metrics: bool = False) -> tuple[str, str]:
    """A new key, and its entry for the file. The entry holds the key's hash only.

    Args:
        name: The name of the key's user.
        metrics: Whether the key may read the metrics of all users.

    Raises:
        InputError: The name is not valid.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a valid user's name: use lower-case letters, digits, - and _, at most 64")
    key = f"gems-{secrets.token_urlsafe(32)}"
    entry = f'[{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\n'
    return key, entry + ("metrics = true\n" if metrics else "")
