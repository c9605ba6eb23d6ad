"""The index of an open store: loaded at the first search, kept up to date, and saved by a background thread."""

from __future__ import annotations

import logging
import shutil
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import numpy as np
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import Progress

from gems.memory.index import (
    EXACT_UP_TO,
    Manifest,
    VectorIndex,
    build,
    newest_index,
    newest_manifest,
    publish,
    remove,
    too_sparse,
)
from gems.memory.records import Records, open_snapshot
from gems.paths import make_file

__all__ = ["LiveIndex"]

_LOG: Final = logging.getLogger(__name__)
_SAVE_AT: Final = 8
"""A new file is due once a number of vectors equal to 1/8 of the file's own is missing from it, or has been removed."""
_MAX_LOG: Final = 1_000
"""Removals that are kept in the log of a store without a file, for other processes that have it open."""
_RETRY_SECONDS: Final = 60.0
"""Pause after a failed save, in seconds."""


class LiveIndex:
    """The ``VectorIndex`` over a store's records, with its life on disk. The store's lock protects every method.

    Several processes may share the folder: one of them saves a file, the others load it.

    Args:
        folder: The folder of the saved indexes, created by the first save.
        records: The store's records.
        embedder: The fingerprint of the embedder that made the vectors.
    """

    def __init__(self, folder: Path, records: Records, embedder: str) -> None:
        self._folder = folder
        self._records = records
        self._embedder = embedder
        self._index: VectorIndex | None = None
        self._worker = ThreadPoolExecutor(1, "gems-index")
        self._saving: Future[None] | None = None
        self._not_before = 0.0
        """Time of the monotonic clock before which no save is started."""
        self._saved: Manifest | None = None
        """The manifest of the newest file, as last read."""

    def close(self) -> None:
        """Wait for a save that is in progress."""
        self._worker.shutdown()

    @property
    def is_saving(self) -> bool:
        """Whether a file is being saved in the background."""
        return self._saving is not None and not self._saving.done()

    def open(self) -> VectorIndex | None:
        """The index as of the last ``catch_up``; None while the store holds no vectors.

        If no file can be used although there are too many vectors for an exact search, a file is made first, unless
        the records are only read.
        """
        if self._index and not self._index.manifest and self._index.dead > EXACT_UP_TO:
            self._index = None  # it is loaded again without its removed vectors
        if self._index is None and (dims := self._records.dims()):
            index = self._load()
            if index is None and not self._records.read_only and self._records.count("vectors") > EXACT_UP_TO:
                _LOG.info("rebuilding %s: the index is missing, damaged, or of other records", self._folder)
                try:
                    self._save(wait=True)
                except Exception as error:  # whatever went wrong, an exact search needs no file
                    _LOG.warning("cannot build %s, comparing all vectors instead: %s", self._folder, error)
                    self._not_before = time.monotonic() + _RETRY_SECONDS
                index = self._load()
            self._index = index or VectorIndex(dims)
        return self._index

    def catch_up(self, index: VectorIndex) -> None:
        """Add and remove the vectors that any process has written since the last call."""
        vectors = self._records.vectors
        for chunk in vectors.added(index.last_vector_id):
            index.add(chunk)
        index.removals, removed_ids = vectors.removed(index.removals)
        if removed_ids is None:
            removed_ids = np.setdiff1d(index.surviving_ids(), vectors.ids(), assume_unique=True)
        if len(removed_ids):
            index.remove(removed_ids)

    def save_if_due(self) -> None:
        """If many vectors are missing from our file, load a newer one or start saving one in the background."""
        if self.is_saving or self._records.read_only:
            return
        self._note_finished_save()
        self.trim_log(_MAX_LOG)
        # A process that only writes does not load the index.
        manifest = self._index.manifest if self._index else self._saved
        if not self._is_behind(manifest):
            return
        self._saved = newest_manifest(self._folder, **self._records.identity())
        if self._saved and self._saved != manifest:
            self._index = self._load() if self._index else None
            if not self._is_behind(self._saved):
                return
        if time.monotonic() > self._not_before:
            with suppress(RuntimeError):  # another thread has closed the store: whoever opens it next will save
                self._saving = self._worker.submit(self._save)

    def rebuild(self) -> None:
        """Build a new file from the records, or remove the file if an exact search will do."""
        ids = self._records.vectors.ids()
        if len(ids) > EXACT_UP_TO and not too_sparse(int(ids[-1]), len(ids)):
            self._save(wait=True, retrain=True)
        else:
            with self._records.writing():
                remove(self._folder)
                self._records.set_meta("index", None)
        self._index = None

    def _is_behind(self, saved: Manifest | None) -> bool:
        """Whether a file lacks too many vectors, or holds too many that have been removed."""
        if saved is None:
            return self._records.vectors.is_behind(0, EXACT_UP_TO)
        tolerance = max(EXACT_UP_TO, saved.count // _SAVE_AT)
        removals = self._records.vectors.last_removal() - saved.removals
        return removals > tolerance or self._records.vectors.is_behind(saved.upto, tolerance)

    def trim_log(self, limit: int = 0) -> None:
        """Keep only so many of the last removals in the log, if there is no file that has to follow them."""
        vectors = self._records.vectors
        if self._records.read_only:
            return
        if vectors.logged_removals() > 2 * limit and self._records.meta("index") is None:
            with self._records.writing():
                vectors.forget_removals(vectors.last_removal() - limit)

    def _note_finished_save(self) -> None:
        """Log the error of a save that has failed, and delay the next one."""
        if self._saving is not None and (error := self._saving.exception()):
            _LOG.warning("cannot save %s: %s", self._folder, error)
            self._not_before = time.monotonic() + _RETRY_SECONDS
        self._saving = None

    def _load(self) -> VectorIndex | None:
        return newest_index(self._folder, **self._records.identity())

    def _save(self, *, wait: bool = False, retrain: bool = False) -> None:
        """Build and publish a file of all vectors.

        Args:
            wait: If another process is saving, wait for it instead of returning, and show a progress bar.
            retrain: Train new cells, and publish the file even if another process has just published one.
        """
        make_file(self._folder / "lock")
        # A connection of its own: this may be the background thread.
        with suppress(Timeout), closing(Records(self._records.file)) as records:
            before = records.meta("index")
            with FileLock(self._folder / "lock", timeout=-1 if wait else 0):
                if records.meta("index") != before and not retrain:  # saved by another process meanwhile
                    return
                for abandoned in self._folder.glob("draft-*"):  # by a process that was killed
                    shutil.rmtree(abandoned, ignore_errors=True)
                self._build_and_publish(records, show_progress=wait, retrain=retrain)

    def _build_and_publish(self, records: Records, *, show_progress: bool, retrain: bool) -> None:
        with (
            open_snapshot(self._records.file, self._embedder) as snapshot,
            Progress(console=Console(stderr=True), transient=True, disable=not show_progress) as bar,
        ):
            task = bar.add_task("Indexing memory", total=snapshot.count)
            draft = build(self._folder, snapshot, retrain=retrain, on_progress=lambda n: bar.advance(task, n))
        with records.writing():
            if records.meta("store") == snapshot.store:
                records.set_meta("index", publish(draft))
                records.vectors.forget_removals(snapshot.removals)
            else:  # the draft still holds vectors that have been forgotten since
                shutil.rmtree(draft)
