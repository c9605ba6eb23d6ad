"""The folder in which GEMS keeps what outlives a run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from platformdirs import user_data_path

from gems.errors import InputError

__all__ = [
    "home",
    "home_folder",
    "is_in_home",
    "keep_private",
    "make_file",
    "make_folder",
    "private_file",
    "private_folder",
]


def home_folder() -> Path:
    """``$GEMS_HOME``, or else the user's data folder for gems; it need not exist."""
    return Path(os.environ.get("GEMS_HOME") or user_data_path("gems", appauthor=False)).expanduser().absolute()


def home() -> Path:
    """The home folder, created for its owner alone if it does not exist.

    Raises:
        InputError: It cannot be created or written to.
    """
    folder = home_folder()
    try:
        private_folder(folder)
    except OSError as error:
        raise InputError(
            f"cannot use {folder} to keep memory and checkpoints ({error.strerror}); set GEMS_HOME to a writable folder"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder} is not writable; set GEMS_HOME to a writable folder")
    return folder


def is_in_home(path: Path) -> bool:
    """Whether a path is the home folder or lies in it. What GEMS creates there is for its owner alone."""
    return path.expanduser().absolute().is_relative_to(home_folder())


def private_folder(folder: Path) -> Path:
    """Create a folder, and those that it lies in, for their owner alone; existing ones stay as they are.

    Raises:
        OSError: It cannot be created.
    """
    if not folder.is_dir():
        private_folder(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def private_file(file: Path) -> None:
    """Create an empty file for its owner alone, unless it exists.

    Raises:
        OSError: It cannot be created.
    """
    private_folder(file.parent)
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


def make_folder(folder: Path) -> Path:
    """Create a folder and those that it lies in: for their owner alone if they are in the home folder.

    Raises:
        OSError: It cannot be created.
    """
    if is_in_home(folder):
        return private_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_file(file: Path) -> None:
    """Create an empty file unless it exists, and its folder: for their owner alone if they are in the home folder.

    Raises:
        OSError: It cannot be created.
    """
    if is_in_home(file):
        private_file(file)
    elif not file.exists():
        make_folder(file.parent)
        file.touch()


def keep_private(*files: Path) -> None:
    """Take files that a library has written in the home folder away from other users.

    Raises:
        OSError: One cannot be changed.
    """
    for file in files:
        if is_in_home(file):
            file.chmod(0o600)
