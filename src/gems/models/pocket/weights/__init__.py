"""Where the pocket models' weights are stored, and the hash that identifies them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from gems.errors import BackendError

__all__ = ["GENERATOR", "VISION", "folder_fingerprint", "weights_folder", "with_weights"]

GENERATOR: Final = "generator"
VISION: Final = "vision"


def weights_folder(name: str) -> Path:
    """The folder of one pocket model's weights.

    Raises:
        BackendError: The folder contains no weights.
    """
    return with_weights(Path(__file__).parent / name, f"pocket {name}")


def with_weights(folder: Path, model: str) -> Path:
    """A folder of a model that comes with the package.

    Raises:
        BackendError: The folder contains no weights.
    """
    if not any(path.is_file() for path in folder.rglob("*.safetensors")):  # a strict editable install leaves dead links
        raise BackendError(
            f"the {model} model's weights are missing from {folder}: install the package again", retryable=False
        )
    return folder


@cache
def folder_fingerprint(folder: Path) -> str:
    """SHA-256 over a model folder's weights and configuration, names and contents, in order of name."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".safetensors", ".json")):
        digest.update(path.relative_to(folder).as_posix().encode())
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
