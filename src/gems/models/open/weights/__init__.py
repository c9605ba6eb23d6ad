"""Where the open models' weights are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gems.models.pocket.weights import with_weights

__all__ = ["GENERATOR", "VISION", "open_weights"]

GENERATOR: Final = "generator"
VISION: Final = "vision"


def open_weights(name: str) -> Path:
    """The folder of one open model's weights.

    Raises:
        BackendError: The folder contains no weights.
    """
    return with_weights(Path(__file__).parent / name, f"open {name}")
