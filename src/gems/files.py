"""Files that appear complete or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

from gems.errors import InputError
from gems.paths import is_in_home, private_folder

__all__ = [
    "append_whole",
    "atomic_replacement",
    "cannot_lock",
    "check_own_files",
    "held_alone",
    "lines_of",
    "open_regular",
    "own_secret",
    "read_regular",
    "write_atomically",
]

MOST_BYTES: Final = 64 * 2**20
"""The most bytes of a file that is read whole, or of a line: no record has as many."""

MIN_SECRET: Final = 32
"""Characters of a secret; those that are made here have twice as many."""

_DRAFT: Final = re.compile(r"\..+\.[0-9a-f]{32}\.gems-draft")
"""Matches the names of drafts, which nobody else gives to a file."""


@contextmanager
def atomic_replacement(path: Path, *, overwrite: bool = True) -> Iterator[Path]:
    """A draft, which replaces the file ``path`` after the block, or is deleted on an error.

    In the home folder, the file is for its owner alone, and so are folders that it needs. What killed processes have
    left in its folder is removed.

    Args:
        path: The file.
        overwrite: Whether the draft may replace a file.

    Raises:
        FileExistsError: There is a file, and it may not be replaced.
    """
    _remove_abandoned(path.parent.absolute())
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.gems-draft")
    try:
        with _locked_draft(draft):
            yield draft
            draft.replace(path) if overwrite else os.link(draft, path)
    except OSError as error:
        if error.errno and error.filename in (None, str(draft)):  # nobody knows the draft's name
            error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _locked_draft(draft: Path) -> Iterator[None]:
    """Make a draft, and lock it as long as this process lives and writes it."""
    while True:
        if is_in_home(draft):
            private_folder(draft.parent)
        mode = 0o600 if is_in_home(draft) else 0o666
        descriptor = os.open(draft, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with suppress(OSError):  # a file system without locks: nobody can lock it to remove it either
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # at once, or as soon as another process has removed it
            if draft.exists():  # else another process has taken it for abandoned before it was locked
                yield
                return
        finally:
            os.close(descriptor)


@lru_cache(maxsize=256)
def _remove_abandoned(folder: Path) -> None:
    """Remove the drafts in a folder that no living process has locked; once per process and folder."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if _DRAFT.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):  # locked, or somebody else's
                    _remove_unlocked(Path(entry.path))


def _remove_unlocked(draft: Path) -> None:
    descriptor = os.open(draft, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        draft.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that no reader sees half of it, and no crash leaves half of it."""
    with atomic_replacement(path) as draft:
        draft.write_bytes(data)


def own_secret(file: Path, loss: str) -> str:
    """The secret in a file of the home folder, which is made if there is none, for its owner alone.

    Of processes that start at once, all get the same one, and none sees half of it.

    Args:
        file: The file.
        loss: What a new secret does, for the message.

    Raises:
        InputError: The file cannot be used, or holds too short a secret.
    """
    try:
        if not file.exists():
            private_folder(file.parent)
            with (
                suppress(FileExistsError),
                atomic_replacement(file, overwrite=False) as draft,
            ):  # another one was faster
                draft.chmod(0o600)
                draft.write_text(secrets.token_hex(32), encoding="ascii")
        file.chmod(0o600)
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InputError(f"cannot store a secret in {file} ({reason}); set GEMS_HOME to a writable folder") from error
    if len(secret) < MIN_SECRET:
        raise InputError(
            f"the secret in {file} has {len(secret)} characters, fewer than {MIN_SECRET}: delete the file, and the "
            f"next start makes a new one, which {loss}"
        )
    return secret


def append_whole(path: Path, data: bytes, *, flush: bool = True) -> int:
    """Append to a file, or leave it as it was: after a full disk, for example, nothing may follow half of a line.

    Args:
        path: The file, to which no other process writes. It is created if it does not exist.
        data: What is appended. A link that somebody has put in the file's place is an error: it leads to another file.
        flush: Whether a crash of the machine may not lose it either, once this returns.

    Returns:
        The offset in the file at which it begins.
    """
    try:
        # Without a buffer, so that nothing is written later than here.
        with open(path, "ab", buffering=0, opener=_itself) as file:  # Path.open takes no opener
            end = file.tell()
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) :]
                if flush:
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return end


def _itself(path: str, flags: int) -> int:
    """Open a file. What somebody has put in its place is an error: a link, or a pipe, which would wait for ever."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "is not a file")
    return descriptor


@contextmanager
def held_alone(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file for the duration of the block. The system releases it if the process is killed.

    Args:
        lock: The file, in a folder that exists.
        refusal: What is said if another process of this machine holds it.

    Raises:
        InputError: Another process holds it, or the file system has no locks.
    """
    from filelock import FileLock, Timeout  # imports asyncio, and most commands lock nothing

    own_lock = FileLock(lock)
    try:
        own_lock.acquire(timeout=0)
    except Timeout:
        raise InputError(refusal) from None
    except OSError as error:
        raise cannot_lock(lock, error, "use a folder") from error
    try:
        yield
    finally:
        own_lock.release()


def cannot_lock(lock: Path, error: OSError, remedy: str) -> InputError:
    """The error to raise if a file system has no locks; ``remedy`` says where the user names another folder."""
    return InputError(
        f"cannot lock {lock} ({error.strerror}): without a lock, two processes could do the same work twice; {remedy} "
        "on a file system that has locks, such as this machine's own disk"
    )


def check_own_files(folder: Path, names: Collection[str], depth: int = 2) -> None:
    """Check files and folders in a folder that somebody else may have made: nothing in it may lead anywhere else.

    Args:
        folder: The folder. It may itself be a link, as its user wishes.
        names: The names in it that are read or written; there need not be such files.
        depth: To what depth the folders among them are searched too.

    Raises:
        InputError: There is a link that leads out of the folder, or what is neither a file nor a folder.
    """
    root = folder.resolve()
    pending = [(folder / name, 1) for name in names]
    while pending:
        path, level = pending.pop()
        _check_own(path, root)
        if level < depth and path.is_dir() and not path.is_symlink():
            pending += [(entry, level + 1) for entry in path.iterdir()]


def _check_own(path: Path, root: Path) -> None:
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            if not path.resolve().is_relative_to(root):
                raise InputError(f"{path} is a link that leads out of its folder; put the file or folder itself there")
            mode = path.stat().st_mode
    except FileNotFoundError:
        return
    except (OSError, RuntimeError) as error:  # links in a circle
        raise InputError(f"{path} cannot be used ({getattr(error, 'strerror', error)}); move it away") from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path} is neither a file nor a folder; move it away")


def read_regular(path: Path, *, within: Path, limit: int = MOST_BYTES) -> bytes:
    """The bytes of a file in a folder that somebody else may have made.

    Raises:
        OSError: It does not exist, is no regular file inside the folder, has more bytes than the limit, or cannot be
            read. ``strerror`` says which.
    """
    with open_regular(path, within=within) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it has more than {_size(limit)}", str(path))
    return content


def open_regular(path: Path, *, within: Path) -> BinaryIO:
    """A file in a folder that somebody else may have made, open for reading.

    Raises:
        OSError: As for ``read_regular``, apart from its size.
    """
    try:
        is_inside = path.resolve().is_relative_to(within.resolve())
    except (RuntimeError, ValueError):  # links in a circle; a zero byte in a name
        is_inside = False
    if not is_inside:
        raise OSError(errno.ELOOP, "it is a link that leads out of its folder", str(path))
    # Without O_NONBLOCK, the opening of a pipe would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return os.fdopen(descriptor, "rb")


def lines_of(path: Path, *, within: Path, limit: int = MOST_BYTES) -> Iterator[bytes]:
    """The lines of such a file, with their line feeds; none if it does not exist.

    Raises:
        OSError: As for ``read_regular``; the limit is that of a line.
    """
    try:
        file = open_regular(path, within=within)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(limit + 1):
            if len(line) > limit:
                raise OSError(errno.EFBIG, f"it has a line of more than {_size(limit)}", str(path))
            yield line


def _size(limit: int) -> str:
    return f"{limit >> 20} MB" if limit >> 20 else f"{limit >> 10} KB"
