"""The folder of an export: a manifest lists the files that the export made, and no other file is ever touched."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from gems.errors import InputError
from gems.files import read_regular, write_atomically
from gems.json_text import parse_model, strict_json
from gems.paths import make_folder

__all__ = ["check_target", "lock_draft", "publish", "remove_abandoned_drafts"]

_MANIFEST: Final = ".gems-export.json"


_DRAFT_SECONDS: Final = 60.0
"""Age in seconds below which a draft is not taken for abandoned."""


class _Manifest(BaseModel):
    """What an export made."""

    model_config = ConfigDict(hide_input_in_errors=True)

    files: dict[str, str]
    """SHA-256 of each file, by its path in the folder."""


def check_target(target: Path) -> None:
    """Check that an export can be written to a folder: a new or empty one, or that of an earlier export.

    Raises:
        InputError: The folder holds other files alone, or a file of the earlier export was changed since.
    """
    if not target.exists():
        return
    if not target.is_dir() or (not (target / _MANIFEST).exists() and any(target.iterdir())):
        raise InputError(f"{target} exists and is no export; choose another folder")
    for name, digest in _read(target).items():
        path = target / name
        if path.exists() and _digest(path) != digest:
            raise InputError(f"{path} was changed since it was exported; move it away, or choose another folder")


def lock_draft(draft: Path) -> int:
    """Make a folder for a new export, and lock it until this process ends, or the returned descriptor is closed."""
    make_folder(draft)
    descriptor = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
    with suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def remove_abandoned_drafts(target: Path) -> None:
    """Remove what exports to a folder have left that were killed: old drafts that no living process has locked."""
    form = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{32}}")
    for path in target.parent.iterdir():
        if not form.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(OSError):  # locked, or somebody else's
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - path.stat().st_mtime > _DRAFT_SECONDS:  # it may be about to be locked
                    shutil.rmtree(path)
            finally:
                os.close(descriptor)


def publish(draft: Path, target: Path, about: dict[str, Any]) -> None:
    """Move a finished export to its folder, in place of the files of an earlier export there. Other files stay.

    Args:
        draft: A folder with the new files, on the same file system.
        target: The folder.
        about: What else the manifest says.

    Raises:
        InputError: A file that is not an export's has the name of a new one.
    """
    files = {path.relative_to(draft).as_posix(): _digest(path) for path in draft.rglob("*") if path.is_file()}
    earlier = _read(target) if target.exists() else {}
    for name in files:
        if not _lies_inside(target.resolve(), name) or (name not in earlier and os.path.lexists(target / name)):
            raise InputError(f"{target / name} exists and is not the export's; choose another folder")
    make_folder(target)
    # Until the end, the manifest lists the files of both: a crash leaves none that nobody made.
    _write(target, about, {**earlier, **files})
    for name in earlier:
        (target / name).unlink(missing_ok=True)
    for name in files:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (draft / name).replace(target / name)
    for name in earlier:
        _remove_empty_folders(target, name)
    _write(target, about, files)
    shutil.rmtree(draft)


def _remove_empty_folders(target: Path, name: str) -> None:
    for folder in list(PurePosixPath(name).parents)[:-1]:
        path = target / folder
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def _write(target: Path, about: dict[str, Any], files: dict[str, str]) -> None:
    write_atomically(target / _MANIFEST, strict_json({**about, "files": files}, indent=1).encode())


def _read(target: Path) -> dict[str, str]:
    """The files of an earlier export, by path. A manifest that names others is somebody's trap, or damaged."""
    path = target / _MANIFEST
    try:
        files = parse_model(_Manifest, read_regular(path, within=target)).files
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} cannot be read ({reason}); choose another folder") from None
    root = target.resolve()
    for name in files:
        if name == _MANIFEST or not _lies_inside(root, name) or (root / name).is_dir():
            raise InputError(f"{path} lists {name}, which is no file of an export; choose another folder")
    return files


def _lies_inside(root: Path, name: str) -> bool:
    """Whether a path in a manifest is that of a file in the folder, and no link to elsewhere."""
    try:
        return (root / name).resolve().is_relative_to(root) and not (root / name).is_symlink()
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, or links in a circle: no system has such a file
        return False


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
