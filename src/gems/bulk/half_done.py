"""What prompts without a result have spent, by their checkpoints: for the next start, and for whoever watches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from langgraph.types import StateSnapshot

from gems.bulk.journal import Journal, PartialRun
from gems.graph.builder import GemsGraph, build_graph
from gems.graph.state import Usage
from gems.runs.checkpoints import read_checkpoints

__all__ = ["HalfDone", "Killed", "read_half_done"]


@dataclass(frozen=True, slots=True)
class Killed:
    """A prompt that has begun and not ended."""

    key: str
    run: PartialRun | None
    """What the prompt's run has spent; None if it has no checkpoint."""
    lost_images: int
    """The most images that it may have asked for and that no checkpoint has."""


@dataclass(frozen=True, slots=True)
class HalfDone:
    """The checkpoints of a batch."""

    graph: GemsGraph
    batch_id: str
    candidates: int
    """Images that a prompt asks for at a time."""

    def thread(self, key: str) -> str:
        """The name of the thread of the prompt with this key."""
        return f"{self.batch_id}-{key}"

    def state(self, key: str) -> StateSnapshot:
        """The state of the prompt with this key."""
        return self.graph.get_state({"configurable": {"thread_id": self.thread(key)}})

    def spent(self, key: str) -> PartialRun | None:
        """What the run of a prompt has spent so far; None if it has not begun.

        The state has what steps have spent that ended beside one that was killed: they are not done again.
        """
        values = self.state(key).values
        if not values.get("run_id"):
            return None
        return PartialRun(key=key, run_id=values["run_id"], usage=values["usage"])

    def killed(self, journal: Journal) -> Iterator[Killed]:
        """The prompts that have begun and not ended, for a batch that nobody works on."""
        for key in list(journal.open.elements()):
            run = self.spent(key)
            usage = run.usage if run else Usage()
            # What a step has spent that failed is in the checkpoint behind it, which the kill may have prevented.
            is_drawing = self.is_drawing(key, or_has_failed=True)
            lost_images = journal.lost_with(key, self.candidates, usage) if is_drawing else 0
            yield Killed(key, run, lost_images)

    def is_drawing(self, key: str, *, or_has_failed: bool = False) -> bool:
        """Whether a run was in a step that draws when it was killed, or its database failed.

        No checkpoint says of such a step that it has ended, be it with images or with an error.

        Args:
            key: The prompt's.
            or_has_failed: Whether a step counts, too, that has ended with an error.
        """
        steps = [task for task in self.state(key).tasks if task.name in ("generator", "editor")]
        return any(step.result is None and (or_has_failed or not step.error) for step in steps)


@contextmanager
def read_half_done(
    folder: Path, batch_id: str, candidates: int, database: str | None = None
) -> Iterator[HalfDone | None]:
    """The checkpoints of a batch, without a lock and without a write. None: they are not there.

    Args:
        folder: The batch's folder.
        batch_id: The batch's id.
        candidates: Images that a prompt asks for at a time.
        database: The PostgreSQL database that holds them. None: a file in the folder.
    """
    with read_checkpoints(folder / "checkpoints.sqlite", database) as saver:
        yield HalfDone(build_graph(checkpointer=saver), batch_id, candidates) if saver else None
