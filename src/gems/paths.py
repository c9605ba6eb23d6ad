"""The folder in which GEMS keeps what outlives a run."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_data_path

from gems.errors import InputError

__all__ = ["home", "home_folder"]


def home_folder() -> Path:
    """``$GEMS_HOME``, or else the user's data folder for gems; it need not exist."""
    return Path(os.environ.get("GEMS_HOME") or user_data_path("gems", appauthor=False)).expanduser().absolute()


def home() -> Path:
    """The home folder, created if it does not exist.

    Raises:
        InputError: It cannot be created or written to.
    """
    folder = home_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot use {folder} to keep memory and checkpoints ({error.strerror}); set GEMS_HOME to a writable folder"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} is not writable; set GEMS_HOME to a writable folder")
    return folder
