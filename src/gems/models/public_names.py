"""Names of models for what leaves this machine, such as an image's metadata: without addresses and without folders."""

from __future__ import annotations

import hashlib
from pathlib import Path, PureWindowsPath
from typing import Final

__all__ = ["is_remote", "public_fingerprint", "public_name"]

_SERVERS: Final = ("http", "https", "comfyui")
"""Kinds of generators that are named by an address."""
_PATHS: Final = ("/", "~", ".", "\\")
"""Beginnings of names that can only be paths."""


def is_remote(name: str) -> bool:
    """Whether an image generator of that name is behind a server."""
    return name.partition(":")[0] in (*_SERVERS, "openai")


def public_name(name: str) -> str:
    """A model's name without its server's address, and with only the last part of a folder's path.

    Args:
        name: The model's name, as ``init_image_generator`` or ``init_mllm`` takes it.
    """
    kind, colon, model = name.partition(":")
    if kind in _SERVERS or "://" in model:
        return kind
    if colon and (model.startswith(_PATHS) or model[1:2] == ":" or (kind == "diffusers" and Path(model).exists())):
        return f"{kind}:{PureWindowsPath(Path(model).expanduser().resolve()).name}"
    return name


def public_fingerprint(fingerprint: str) -> str:
    """A fingerprint as it is, or its SHA-256 if it contains an address."""
    return hashlib.sha256(fingerprint.encode()).hexdigest() if "://" in fingerprint else fingerprint
