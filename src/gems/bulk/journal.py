"""What a batch has begun: a prompt is written down before it spends anything, so that a kill hides no spending."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from gems.bulk.row_checks import MAX_USAGE, BoundedUsage
from gems.errors import InputError
from gems.files import append_whole, write_atomically
from gems.graph.state import Usage
from gems.json_text import parse_model
from gems.line_files import lines_in

__all__ = ["Journal", "PartialRun"]


class PartialRun(BaseModel):
    """What a run has spent, which may have no result yet."""

    model_config = ConfigDict(frozen=True)

    key: str
    run_id: str
    usage: BoundedUsage
    interrupted: BoundedUsage = Usage()
    """What steps that were interrupted have spent: paid for, but not in ``usage``; the steps are done again."""


class _Entry(BaseModel):
    """A line of the journal."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    begin: str = ""
    """The key of a prompt that begins."""
    end: str = ""
    """The key of a prompt that has ended, for now or for good."""
    run: PartialRun | None = None
    """What it has spent."""
    lost_images: Annotated[NonNegativeInt, Field(le=MAX_USAGE)] = 0
    """Images that may have been paid for, and are in no result: they were in flight when a process was killed."""
    interrupted: BoundedUsage = Usage()
    """See ``PartialRun.interrupted``."""
    asks: str = ""
    """The key of a prompt for which more images are asked for than a step draws, since earlier ones are lost."""
    images: Annotated[NonNegativeInt, Field(le=MAX_USAGE)] = 0
    """All images that its run has asked for by then."""


@dataclass
class Journal:
    """``begun.jsonl``: a line when a prompt begins, and another one when it ends.

    A prompt that has begun and not ended was killed, or is in flight. What was killed may have cost as many images as
    its process had asked for at that moment, and nobody has them: those that a step draws, and, where some were lost
    and asked for again, as many as another kind of line says.
    """

    path: Path
    open: Counter[str] = field(default_factory=Counter)
    """How often each prompt has begun without having ended, by key."""
    asked_images: dict[str, int] = field(default_factory=dict)
    """Images that the runs of open prompts have asked for, where some were asked for again, by key."""
    runs: dict[str, PartialRun] = field(default_factory=dict)
    """What runs had spent when the file was opened, by run id."""
    lost_images: int = 0
    """The most images that were in flight when a process was killed, all kills together."""
    interrupted: Usage = field(default_factory=Usage)
    """What steps that were interrupted have spent, all interruptions together."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for entry in _read(self.path):
            self._note(entry)
            if entry.run is not None:
                self.runs[entry.run.run_id] = entry.run

    def begin(self, key: str) -> None:
        """Note that a prompt begins. Once this returns, a crash of the machine does not lose it."""
        self._write(_Entry(begin=key), flush=True)

    def end(self, key: str, run: PartialRun | None = None, *, lost_images: int = 0) -> None:
        """Note that a prompt has ended, for now or for good.

        Args:
            key: The prompt's.
            run: What it has spent.
            lost_images: Images that may have been paid for, and are in no result.
        """
        interrupted = run.interrupted if run else Usage()
        run = run and run.model_copy(update={"interrupted": Usage()})
        self._write(_Entry(end=key, run=run, lost_images=lost_images, interrupted=interrupted))

    def ask(self, key: str, images: int) -> None:
        """Note that a prompt's run has asked for so many images in all, before it asks for the last of them.

        Once this returns, a crash of the machine does not lose it. Nothing need be noted as long as the run's latest
        step has asked for no more images than it draws.
        """
        self._write(_Entry(asks=key, images=images), flush=True)

    def lose(self, key: str, images: int) -> None:
        """Note images that may have been paid for when the worker of a prompt died that goes on: it begins again."""
        self._write(_Entry(end=key, begin=key, lost_images=images))

    def lost_with(self, key: str, images: int, usage: Usage) -> int:
        """The most images that an open prompt may have cost without having them.

        Args:
            key: The prompt's.
            images: How many its latest step draws.
            usage: What its run has spent before that step, by its checkpoint.
        """
        return max(images, self.asked_images.get(key, 0) - usage.images)

    def compact(self, is_recorded: Callable[[PartialRun], bool]) -> None:
        """Rewrite the file without what the results say too. For the one process that writes, before it begins.

        Args:
            is_recorded: Whether the results say all that a run has spent.
        """
        self.runs = {run_id: run for run_id, run in self.runs.items() if not is_recorded(run)}
        entries = [_Entry(run=run) for run in self.runs.values()]
        if self.lost_images:
            entries.append(_Entry(lost_images=self.lost_images))
        if self.interrupted != Usage():
            entries.append(_Entry(interrupted=self.interrupted))
        entries += [_Entry(begin=key) for key in self.open.elements()]
        entries += [_Entry(asks=key, images=images) for key, images in self.asked_images.items()]
        if entries:
            write_atomically(self.path, b"".join(map(_line, entries)))
        else:
            self.path.unlink(missing_ok=True)

    def _write(self, entry: _Entry, *, flush: bool = False) -> None:
        with self._lock:
            append_whole(self.path, _line(entry), flush=flush)
            self._note(entry)

    def _note(self, entry: _Entry) -> None:
        if entry.begin:
            self.open[entry.begin] += 1
        if entry.end:
            self.open[entry.end] -= 1
            if self.open[entry.end] <= 0:
                del self.open[entry.end]
            self.asked_images.pop(entry.end, None)
        if entry.asks:
            self.asked_images[entry.asks] = max(entry.images, self.asked_images.get(entry.asks, 0))
        self.lost_images += entry.lost_images
        self.interrupted += entry.interrupted


def _line(entry: _Entry) -> bytes:
    return entry.model_dump_json(exclude_defaults=True).encode() + b"\n"


def _read(path: Path) -> Iterator[_Entry]:
    try:
        for line in lines_in(path):
            try:
                yield parse_model(_Entry, line.text)
            except ValueError as error:
                raise InputError(f"{path}, line {line.number} cannot be read ({error}); delete that line") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
