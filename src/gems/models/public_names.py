"""Names of models for what leaves this machine, such as an image's metadata: without addresses and without folders."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path, PureWindowsPath
from typing import Final

from gems.authority import is_file
from gems.printable import printable

__all__ = ["is_remote", "public_fingerprint", "public_name"]

_SERVERS: Final = ("http", "https", "comfyui")
"""Kinds of generators that are named by an address."""
_OF_WEIGHTS: Final = ("diffusers", "transformers")
"""Kinds of models whose names may be folders."""
_PATHS: Final = ("/", "~", ".", "\\")
"""Beginnings of names that can only be paths."""
_MAX_NAME: Final = 200
"""Characters of a name: it goes into every image."""


def is_remote(name: str) -> bool:
    """Whether an image generator of that name is behind a server."""
    return name.partition(":")[0] in (*_SERVERS, "openai")


def public_name(name: str) -> str:
    """A model's name on one line, without its server's address, and with only the last part of a folder's path.

    Args:
        name: The model's name, as ``init_image_generator`` or ``init_mllm`` takes it.
    """
    kind, colon, model = name.partition(":")
    if kind in _SERVERS or "://" in model:
        return kind
    if colon and (model.startswith(_PATHS) or model[1:2] == ":" or (kind in _OF_WEIGHTS and is_file(model))):
        name = f"{kind}:{_last_part(model)}"
    return " ".join(printable(name).split())[:_MAX_NAME]


def _last_part(path: str) -> str:
    """The name of a file or folder; ``..`` and the like stand for one."""
    with suppress(OSError, ValueError, RuntimeError):  # too long; a zero byte; nobody's home, links in a circle
        path = str(Path(path).expanduser().resolve())
    return PureWindowsPath(path).name


def public_fingerprint(fingerprint: str) -> str:
    """A fingerprint as it is, or its SHA-256 if it contains an address."""
    return hashlib.sha256(fingerprint.encode()).hexdigest() if "://" in fingerprint else fingerprint
