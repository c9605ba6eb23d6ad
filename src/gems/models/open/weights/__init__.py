"""Where the open models' weights are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gems.errors import BackendError

__all__ = ["GENERATOR", "VISION", "open_weights"]

GENERATOR: Final = "generator"
VISION: Final = "vision"


def open_weights(name: str) -> Path:
    """The folder of one open model's weights.

    Raises:
        BackendError: The folder contains no weights.
    """
    folder = Path(__file__).parent / name
    if not any(path.is_file() for path in folder.rglob("*.safetensors")):  # a strict editable install leaves dead links
        raise BackendError(
            f"the open {name} model's weights are missing from {folder}: install the package again", retryable=False
        )
    return folder
