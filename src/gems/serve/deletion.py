"""Deletes runs that have ended, with everything that only they need: at a client's request, or because of their age."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog
from langgraph.checkpoint.base import BaseCheckpointSaver

from gems.graph.state import GemsState, ImageRef
from gems.memory.experience import past_runs
from gems.memory.image_store import ImageStore
from gems.memory.opening import memory_location
from gems.nodes.resources import user_store
from gems.paths import home_folder
from gems.serve.deleted_runs import DeletedRuns
from gems.serve.settings import ServiceSettings

__all__ = ["Deletion"]

LOG: Final = structlog.get_logger("gems.serve")

_SECONDS_PER_SWEEP: Final = 3600.0
_SECONDS_TO_RETRY: Final = 5.0
"""Until the next sweep, if something could not be removed."""


class Deletion:
    """Deletes runs in two steps: marks them, so that nobody sees them, then removes what belongs to them.

    The second step can be interrupted anywhere; the next sweep completes it. What the runs used stays charged to their
    day. An image stays while another run of its user, or the user's memory, refers to it.

    Args:
        settings: The settings of the service.
        runs: The runs in the ledger that are being deleted.
        saver: The checkpoints.
        values: Reads the state of a run that has not ended.
        images: Opens the image store of a user.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        runs: DeletedRuns,
        saver: BaseCheckpointSaver[Any],
        *,
        values: Callable[[str], GemsState],
        images: Callable[[str], ImageStore],
    ) -> None:
        self._settings, self._runs, self._saver = settings, runs, saver
        self._values, self._images = values, images
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._sweep_hourly, name="deletion", daemon=True)

    def start(self) -> None:
        """Sweep now and once an hour, in a thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def delete(self, user: str, run: str) -> None:
        """Delete a user's run, which has ended. What cannot be removed now, a later sweep removes."""
        self._runs.mark(run)
        if not self._completed(lambda: self._remove(user, [run])):
            self._wake.set()

    def sweep(self) -> bool:
        """Mark the runs that are too old, and remove what belongs to marked runs. False if some of it has to wait."""
        if self._settings.keep_days is not None:
            self._runs.mark_older(time.time() - self._settings.keep_days * 86_400)
        marked = self._runs.marked()
        are_complete = [
            self._remove(user, [run for owner, run in marked if owner == user])
            for user in sorted({user for user, _ in marked})
        ]
        return all(are_complete)

    def _remove(self, user: str, runs: Sequence[str]) -> bool:
        """Remove the marked runs of a user. False if some of them have to wait."""
        remembered_hashes, is_complete = self._remembered_hashes(user), True
        for run in runs:
            if self._stopped:
                return False
            with self._lock:
                if self._runs.is_drawn_again(run):
                    is_complete = False
                    continue
                needed_hashes = remembered_hashes | self._unfinished_hashes(user)
                self._remove_images(
                    user, [ref for ref in self._runs.own_images(run) if ref.sha256 not in needed_hashes]
                )
                self._saver.delete_thread(run)
                self._runs.drop(run)
            LOG.info("deleted", run=run, user=user)
        return is_complete

    def _remove_images(self, user: str, refs: Sequence[ImageRef]) -> None:
        """Remove images by their hashes: the store may have moved since their addresses were recorded."""
        store = self._images(user)
        for ref in refs:
            is_needed = partial(self._is_needed, user, ref.sha256)
            store.remove(ref.model_copy(update={"uri": store.address(ref.sha256)}), is_needed)

    def _is_needed(self, user: str, sha256: str) -> bool:
        """Whether a user's runs or memory have begun to refer to an image."""
        # In this order: a run that ends meanwhile is in the one or in the other.
        return sha256 in self._unfinished_hashes(user) or sha256 in self._remembered_hashes(user)

    def _unfinished_hashes(self, user: str) -> set[str]:
        """The images of a user's runs that have not ended."""
        states = [self._values(run) for run in self._runs.unfinished_of(user)]
        return {attempt.image.sha256 for state in states for attempt in state.get("attempts") or ()}

    def _remembered_hashes(self, user: str) -> set[str]:
        """The images that a user's memory refers to, even if the memory is now switched off."""
        context = self._settings.context
        location = memory_location(context)
        if not context.memory and location is None and not (home_folder() / "memory").exists():
            return set()
        store = user_store(location, context.embedder)
        return {attempt.image.sha256 for _, past in past_runs(store, user) for attempt in past.attempts}

    def _sweep_hourly(self) -> None:
        while not self._stopped:
            is_complete = self._completed(self.sweep)
            self._wake.wait(_SECONDS_PER_SWEEP if is_complete else _SECONDS_TO_RETRY)
            self._wake.clear()

    def _completed(self, remove: Callable[[], bool]) -> bool:
        try:
            return remove()
        except Exception as error:  # each store raises its own errors; the next sweep tries again
            LOG.warning("deletion_postponed", exc_info=error)
            return False
