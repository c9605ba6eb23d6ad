"""``latest.json``: the current or last start of a batch, for whoever watches it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gems.bulk.limits import Limits
from gems.errors import GemsError, InputError
from gems.files import check_own_files, read_regular, write_atomically
from gems.graph.state import Prices
from gems.json_text import parse_model, strict_json
from gems.secrets import one_line

__all__ = ["Latest", "note_end", "note_start", "noting_failure", "read_latest"]


_SIZE: Final = 4096
"""Bytes of the file, spaces at its end included: the end of a start needs no more room than its beginning."""


class Latest(BaseModel):
    """A start of a batch."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    started: AwareDatetime | None = None
    host: str = ""
    pid: int = 0
    process_started: str = ""
    """When the process started, as its system tells, since numbers of processes are used again."""
    concurrency: int = 1
    on: str = ""
    limits: dict[str, int | float] = Field(default_factory=dict)
    prices: Prices = Prices()
    ended: str | None = None
    """Why the start has ended before all prompts had a result."""
    is_over: bool = False
    """Whether the start has ended."""

    @property
    def life(self) -> Literal["running", "over", "unknown"]:
        """Whether the process still runs. Nobody can tell about another machine's."""
        if self.is_over or not self.pid:
            return "over"
        if self.host != socket.gethostname():
            return "unknown"
        return "running" if _process_started(self.pid) == self.process_started else "over"


def note_start(folder: Path, limits: Limits, concurrency: int, ray: str | None) -> None:
    """Write down that this process works on the batch in a folder."""
    all_limits = {"hours": limits.hours, **limits.spending.model_dump(exclude={"prices"})}
    start = Latest(
        started=datetime.now(UTC).replace(microsecond=0),
        host=socket.gethostname(),
        pid=os.getpid(),
        process_started=_process_started(os.getpid()),
        concurrency=concurrency,
        on=f"ray {ray}" if ray else "this machine",
        limits={name: value for name, value in all_limits.items() if value is not None},
        prices=limits.spending.prices,
    )
    _write(folder, start)


def note_end(folder: Path, reason: str | None) -> None:
    """Write down that the start has ended, and why if not all prompts have a result."""
    _write(folder, read_latest(folder).model_copy(update={"ended": reason, "is_over": True}))


@contextmanager
def noting_failure(folder: Path) -> Iterator[None]:
    """Write down why this process's start has ended, if an error ends it in the block."""
    try:
        yield
    except BaseException as error:
        with suppress(OSError, GemsError):  # the folder may be gone; the error is told whatever happens here
            latest = read_latest(folder)
            is_ours = (latest.host, latest.pid) == (socket.gethostname(), os.getpid())
            if is_ours and latest.process_started == _process_started(os.getpid()) and not latest.is_over:
                note_end(folder, "stopped" if isinstance(error, KeyboardInterrupt) else f"failed: {_in_words(error)}")
        raise


def _in_words(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else error
    return one_line(text, 500) or type(error).__name__


def read_latest(folder: Path) -> Latest:
    """The batch's current or last start.

    Raises:
        InputError: The file is damaged.
    """
    path = folder / "latest.json"
    try:
        return parse_model(Latest, read_regular(path, within=folder))
    except FileNotFoundError:
        return Latest()
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}); delete it, or start the batch again") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error


def _write(folder: Path, latest: Latest) -> None:
    path = folder / "latest.json"
    content = strict_json(latest.model_dump(mode="json"), indent=1).encode().ljust(_SIZE)
    try:
        write_atomically(path, content)
    except OSError:  # a full disk has no room for a new file, but the old one can be overwritten
        if not latest.is_over or path.stat().st_size < len(content):
            raise
        check_own_files(folder, [path.name])
        with path.open("r+b") as file:
            file.write(content)


def _process_started(pid: int) -> str:
    """When a process started, in its system's own terms; empty if it does not run, "?" if nobody can tell."""
    try:
        # The second field is the command's name in brackets, which may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        pass
    if Path("/proc/self/stat").exists():
        return ""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return "?"
    except OSError:
        return ""
    return "?"
